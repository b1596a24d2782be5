#include "ifaces/ike_socket.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/random.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <string>
#include <system_error>

namespace espalier::ifaces {
namespace {

constexpr int kPatienceMs = 200;  // for a datagram on the loopback device

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

void set(int fd, int level, int option, int value, const std::string& what) {
  if (::setsockopt(fd, level, option, &value, sizeof value) != 0) fail("setsockopt " + what);
}

bool try_set(int fd, int level, int option, int value) noexcept {
  return ::setsockopt(fd, level, option, &value, sizeof value) == 0;
}

constexpr sock_filter op(unsigned code, std::uint32_t k, std::uint8_t if_true = 0,
                         std::uint8_t if_false = 0) {
  return {static_cast<std::uint16_t>(code), if_true, if_false, k};
}

// Which socket of the port: IKE's if the first word is zero and the packet came round the loopback
// device, else a worker's by its SPI. What is too short for a word is worker 0's: a load outside
// ends the program with 0.
void steer(int fd, unsigned workers, unsigned ike, const std::string& where) {
  constexpr auto kDevice = static_cast<std::uint32_t>(SKF_AD_OFF + SKF_AD_IFINDEX);
  std::array<sock_filter, 8> program = {
      op(BPF_LD | BPF_W | BPF_ABS, 0),
      op(BPF_JMP | BPF_JEQ | BPF_K, 0, 0, 4),
      op(BPF_LD | BPF_W | BPF_ABS, kDevice),
      op(BPF_JMP | BPF_JEQ | BPF_K, ::if_nametoindex("lo"), 0, 1),
      op(BPF_RET | BPF_K, ike),
      op(BPF_RET | BPF_K, 0),
      op(BPF_ALU | BPF_MOD | BPF_K, workers),
      op(BPF_RET | BPF_A, 0),
  };
  const sock_fprog p{static_cast<unsigned short>(program.size()), program.data()};
  if (::setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &p, sizeof p) != 0)
    fail("setsockopt SO_ATTACH_REUSEPORT_CBPF " + where);
}

// Does a datagram with the marker that goes round the loopback device arrive at `fd`, and there
// alone?
bool arrives(int fd, const Endpoint& local) {
  const UniqueFd sender(::socket(local.address.family == Family::v6 ? AF_INET6 : AF_INET,
                                 SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!sender) fail("socket UDP");
  std::array<std::uint8_t, 20> sent{};
  if (::getrandom(sent.data() + 4, sent.size() - 4, 0) < 0) fail("getrandom");
  sockaddr_storage to{};
  const socklen_t length = local.to(to);
  if (::sendto(sender.get(), sent.data(), sent.size(), 0, reinterpret_cast<const sockaddr*>(&to),
               length) < 0)
    fail("sendto " + local.str());
  pollfd wait{fd, POLLIN, 0};
  while (::poll(&wait, 1, kPatienceMs) == 1) {
    std::array<std::uint8_t, 32> got{};
    const ssize_t n = ::recv(fd, got.data(), got.size(), MSG_DONTWAIT);
    if (n == ssize_t{sent.size()} && std::equal(sent.begin(), sent.end(), got.begin())) return true;
  }
  return false;
}

}  // namespace

UniqueFd open_ike(const Endpoint& local, std::span<const UniqueFd> receivers, unsigned others,
                  std::uint32_t mark) {
  const bool v6 = local.address.family == Family::v6;
  const std::string where = "UDP " + local.str();
  UniqueFd ike(::socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!ike) fail("socket " + where);
  if (v6) set(ike.get(), SOL_IPV6, IPV6_V6ONLY, 1, "IPV6_V6ONLY " + where);
  if (mark != 0) set(ike.get(), SOL_SOCKET, SO_MARK, static_cast<int>(mark), "SO_MARK " + where);
  // Whether datagrams of the network are merged, GRO asks a socket of the port that it chooses
  // without the packet. It would not merge those of every second peer if this one did not want
  // that. What comes round the loopback device is never merged.
  static_cast<void>(try_set(ike.get(), SOL_UDP, UDP_GRO, 1));
  // All must say so while another joins, and the one that is found first for as long as there is
  // one to choose from.
  set(ike.get(), SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT " + where);
  for (const UniqueFd& fd : receivers)
    set(fd.get(), SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT " + where);
  sockaddr_storage sa{};
  const socklen_t length = local.to(sa);
  if (::bind(ike.get(), reinterpret_cast<const sockaddr*>(&sa), length) != 0) fail("bind " + where);
  const auto workers = static_cast<unsigned>(receivers.size());
  steer(ike.get(), workers, workers + others, where);
  if (arrives(ike.get(), local)) return ike;
  throw std::runtime_error(where +
                           ": this kernel does not lead IKE's datagrams to a socket of their own");
}

UniqueFd open_injector(Family family) {
  UniqueFd fd(::socket(family == Family::v6 ? AF_INET6 : AF_INET,
                       SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_RAW));
  if (!fd) fail("socket raw (needs CAP_NET_RAW)");
  sock_filter nothing = op(BPF_RET | BPF_K, 0);
  const sock_fprog p{1, &nothing};
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_ATTACH_FILTER, &p, sizeof p) != 0)
    fail("setsockopt SO_ATTACH_FILTER raw");
  return fd;
}

}  // namespace espalier::ifaces
