#include "ifaces/shared_port.h"

#include <linux/bpf.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace espalier::ifaces {
namespace {

constexpr std::uint32_t kIke = 0;  // index in the map; worker n is n + 1
constexpr std::uint32_t kWorker0 = 1;

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

int bpf(bpf_cmd command, bpf_attr& attr) noexcept {
  return static_cast<int>(::syscall(SYS_bpf, command, &attr, sizeof attr));
}

std::uint64_t pointer(const void* p) noexcept {
  return reinterpret_cast<std::uintptr_t>(p);
}

UniqueFd make_map(unsigned workers) {
  bpf_attr attr{};
  attr.map_type = BPF_MAP_TYPE_REUSEPORT_SOCKARRAY;
  attr.key_size = sizeof(std::uint32_t);
  attr.value_size = sizeof(std::uint64_t);  // in: a descriptor; out: the socket's cookie
  attr.max_entries = kWorker0 + workers;
  UniqueFd map(bpf(BPF_MAP_CREATE, attr));
  if (!map) fail("bpf BPF_MAP_CREATE (a shared UDP port needs CAP_BPF)");
  return map;
}

// One instruction. Registers: 0 result, 1–5 arguments, 6–9 kept, 10 the stack.
constexpr bpf_insn op(unsigned code, unsigned to, unsigned from, std::int16_t offset,
                      std::int32_t value) {
  bpf_insn i{};
  i.code = static_cast<std::uint8_t>(code);
  i.dst_reg = to & 0xf;
  i.src_reg = from & 0xf;
  i.off = offset;
  i.imm = value;
  return i;
}
constexpr bpf_insn move(unsigned to, unsigned from) {
  return op(BPF_ALU64 | BPF_MOV | BPF_X, to, from, 0, 0);
}
constexpr bpf_insn move(unsigned to, int value) {
  return op(BPF_ALU64 | BPF_MOV | BPF_K, to, 0, 0, value);
}
constexpr bpf_insn add(unsigned to, int value) {
  // NOLINTNEXTLINE(misc-redundant-expression): several of the codes are 0
  return op(BPF_ALU64 | BPF_ADD | BPF_K, to, 0, 0, value);
}
constexpr bpf_insn load_word(unsigned to, unsigned from, int offset) {
  return op(BPF_LDX | BPF_W | BPF_MEM, to, from, static_cast<std::int16_t>(offset), 0);
}
constexpr bpf_insn big_endian(unsigned reg) {
  return op(BPF_ALU | BPF_END | BPF_TO_BE, reg, 0, 0, 32);
}
constexpr bpf_insn call(int helper) {
  return op(BPF_JMP | BPF_CALL, 0, 0, 0, helper);
}

// The stack: the index to choose at -4, bytes of the datagram at -8.
constexpr int kIndex = -4, kBytes = -8;
constexpr int kUdpHeader = 8;
constexpr int kMarker = 4;      // RFC 3948 §2.2
constexpr int kIkeLength = 24;  // where an IKE header has the length of its message (RFC 7296 §3.1)

UniqueFd make_program(const UniqueFd& map, unsigned workers) {
  constexpr unsigned kContext = 6;
  const auto n = static_cast<int>(workers);
  // Jumps count from the instruction behind them.
  const std::array program = {
      move(kContext, 1U),
      op(BPF_ST | BPF_W | BPF_MEM, 10, 0, kIndex, kWorker0),
      // The first word; what is too short for one is a keepalive.
      move(2, kUdpHeader),
      move(3, 10U),
      add(3, kBytes),
      move(4, 4),
      call(BPF_FUNC_skb_load_bytes),
      op(BPF_JMP | BPF_JNE | BPF_K, 0, 0, 20, 0),  // choose
      load_word(5, 10, kBytes),
      big_endian(5),
      op(BPF_JMP | BPF_JEQ | BPF_K, 5, 0, 4, 0),
      // ESP.
      op(BPF_ALU | BPF_MOD | BPF_K, 5, 0, 0, n),
      add(5, static_cast<int>(kWorker0)),
      op(BPF_STX | BPF_W | BPF_MEM, 10, 5, kIndex, 0),
      op(BPF_JMP | BPF_JA, 0, 0, 13, 0),  // choose
      // The marker, and behind it a message that is as long as it says?
      move(1, kContext),
      move(2, kUdpHeader + kMarker + kIkeLength),
      move(3, 10U),
      add(3, kBytes),
      move(4, 4),
      call(BPF_FUNC_skb_load_bytes),
      op(BPF_JMP | BPF_JNE | BPF_K, 0, 0, 6, 0),  // choose
      load_word(5, 10, kBytes),
      big_endian(5),
      add(5, kUdpHeader + kMarker),
      load_word(0, kContext, offsetof(sk_reuseport_md, len)),
      op(BPF_JMP | BPF_JNE | BPF_X, 5, 0, 1, 0),  // choose
      op(BPF_ST | BPF_W | BPF_MEM, 10, 0, kIndex, kIke),
      // Choose.
      move(1, kContext),
      // NOLINTNEXTLINE(misc-redundant-expression): several of the codes are 0
      op(BPF_LD | BPF_DW | BPF_IMM, 2, BPF_PSEUDO_MAP_FD, 0, map.get()),
      op(0, 0, 0, 0, 0),
      move(3, 10U),
      add(3, kIndex),
      move(4, 0),
      call(BPF_FUNC_sk_select_reuseport),
      move(0, SK_PASS),
      op(BPF_JMP | BPF_EXIT, 0, 0, 0, 0),
  };
  bpf_attr attr{};
  attr.prog_type = BPF_PROG_TYPE_SK_REUSEPORT;
  attr.insns = pointer(program.data());
  attr.insn_cnt = static_cast<std::uint32_t>(program.size());
  attr.license = pointer("");
  UniqueFd fd(bpf(BPF_PROG_LOAD, attr));
  if (!fd) fail("bpf BPF_PROG_LOAD (a shared UDP port needs CAP_BPF)");
  return fd;
}

int option_of(int fd, int option) {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 ? value : -1;
}

}  // namespace

Endpoint shared_endpoint(int fd) {
  if (option_of(fd, SO_TYPE) != SOCK_DGRAM || option_of(fd, SO_PROTOCOL) != IPPROTO_UDP)
    throw std::invalid_argument("not a UDP socket");
  sockaddr_storage name{};
  socklen_t length = sizeof name;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&name), &length) != 0) fail("getsockname");
  const Endpoint local = Endpoint::from(name);
  if (local.address.family == Family::none || local.port == 0)
    throw std::invalid_argument("the socket is bound to no port yet; set UDP_ENCAP after bind()");
  int only6 = 1;
  length = sizeof only6;
  if (local.address.family == Family::v6 && local.address.is_any() &&
      ::getsockopt(fd, SOL_IPV6, IPV6_V6ONLY, &only6, &length) == 0 && only6 == 0)
    throw std::invalid_argument("the socket takes IPv4 over IPv6; open one for each family");
  return local;
}

void let_share(int fd) {
  const int on = 1;
  if (::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0)
    fail("setsockopt SO_REUSEPORT");
  // Whether to merge, GRO asks a socket of the port that it chooses without the packet: all must
  // say the same. What is merged is never this one's.
  static_cast<void>(::setsockopt(fd, SOL_UDP, UDP_GRO, &on, sizeof on));
}

SharedPort::SharedPort(unsigned workers)
    : map_(make_map(workers)), program_(make_program(map_, workers)) {}

void SharedPort::attach(int fd) const {
  const int program = program_.get();
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_EBPF, &program, sizeof program) != 0)
    fail("setsockopt SO_ATTACH_REUSEPORT_EBPF");
}

void SharedPort::set(std::uint32_t index, int fd) const {
  const std::uint64_t value = static_cast<std::uint64_t>(fd);
  bpf_attr attr{};
  attr.map_fd = static_cast<std::uint32_t>(map_.get());
  attr.key = pointer(&index);
  attr.value = pointer(&value);
  // A socket is in one map at most. That of a daemon that has ended lives as long as its program,
  // which attach() has replaced, and goes in the kernel's own time.
  constexpr int kTries = 4;
  for (int tries = 0; bpf(BPF_MAP_UPDATE_ELEM, attr) != 0; ++tries) {
    if (errno != EBUSY || tries == kTries) fail("bpf BPF_MAP_UPDATE_ELEM");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void SharedPort::set_worker(unsigned index, int fd) const {
  set(kWorker0 + index, fd);
}
void SharedPort::set_ike(int fd) const {
  set(kIke, fd);
}

std::uint64_t SharedPort::ike_cookie() const noexcept {
  const std::uint32_t index = kIke;
  std::uint64_t cookie = 0;
  bpf_attr attr{};
  attr.map_fd = static_cast<std::uint32_t>(map_.get());
  attr.key = pointer(&index);
  attr.value = pointer(&cookie);
  return bpf(BPF_MAP_LOOKUP_ELEM, attr) == 0 ? cookie : 0;
}

bool SharedPort::has_ike() const noexcept {
  return ike_cookie() != 0;
}

bool SharedPort::is_ike(int fd) const noexcept {
  std::uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  return ::getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &length) == 0 && cookie != 0 &&
         cookie == ike_cookie();
}

}  // namespace espalier::ifaces
