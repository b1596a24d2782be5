#include "ifaces/esp_socket.h"

#include <linux/filter.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <system_error>
#include <vector>

namespace espalier::ifaces {
namespace {

// A burst of the largest sends (64 KiB, charged with their overhead) must not be refused while the
// first of them is still in the device's queue.
constexpr int kSocketBuffer = 8 << 20;

std::string_view hint(int error) {
  switch (error) {
    case EADDRNOTAVAIL:
      return " (not an address of this host)";
    case EADDRINUSE:
      return " (in use by another program, perhaps an IKE daemon)";
    case EPERM:
    case EACCES:
      return " (needs CAP_NET_RAW for raw ESP, CAP_NET_ADMIN for a mark, CAP_NET_BIND_SERVICE for "
             "a port below 1024)";
    case EAFNOSUPPORT:
      return " (this kernel has no such address family; is IPv6 off?)";
    case ENETUNREACH:
    case EHOSTUNREACH:
      return " (no route)";
    default:
      return "";
  }
}

[[noreturn]] void fail(const std::string& call, int error) {
  throw std::system_error(error, std::generic_category(), call + std::string(hint(error)));
}

int family_of(const IpAddress& a) {
  return a.family == Family::v6 ? AF_INET6 : AF_INET;
}

// One socket while it is being set up; its errors name call and address.
class Setup {
 public:
  Setup(const Endpoint& local, int type, int protocol, std::string_view what)
      : where_(std::string(what) + " " + local.str()),
        v6_(local.address.family == Family::v6),
        fd_(::socket(family_of(local.address), type | SOCK_NONBLOCK | SOCK_CLOEXEC, protocol)) {
    if (!fd_) fail("socket " + where_, errno);
    if (v6_ && type == SOCK_DGRAM) set(SOL_IPV6, IPV6_V6ONLY, 1, "IPV6_V6ONLY");
  }

  void set(int level, int option, int value, const char* name) {
    if (!try_set(level, option, value))
      fail(std::string("setsockopt ") + name + " " + where_, errno);
  }
  bool try_set(int level, int option, int value) noexcept {
    return ::setsockopt(fd_.get(), level, option, &value, sizeof value) == 0;
  }
  void attach(int option, std::vector<sock_filter> program, const char* name) {
    const sock_fprog p{static_cast<unsigned short>(program.size()), program.data()};
    if (::setsockopt(fd_.get(), SOL_SOCKET, option, &p, sizeof p) != 0)
      fail(std::string("setsockopt ") + name + " " + where_, errno);
  }
  void bind(const Endpoint& local) {
    sockaddr_storage sa;
    const socklen_t len = local.to(sa);
    if (::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&sa), len) != 0)
      fail("bind " + where_, errno);
  }

  void common(const OuterOptions& options) {
    if (!try_set(SOL_SOCKET, SO_RCVBUFFORCE, kSocketBuffer))
      try_set(SOL_SOCKET, SO_RCVBUF, kSocketBuffer);
    if (!try_set(SOL_SOCKET, SO_SNDBUFFORCE, kSocketBuffer))
      try_set(SOL_SOCKET, SO_SNDBUF, kSocketBuffer);
    if (v6_) {
      set(SOL_IPV6, IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS");
    } else {
      set(SOL_IP, IP_RECVTOS, 1, "IP_RECVTOS");
    }
    fragmenting(options.fragmenting);
    if (options.mark != 0) set(SOL_SOCKET, SO_MARK, static_cast<int>(options.mark), "SO_MARK");
  }

  // As a rule DF is set, and what is too long refused with EMSGSIZE: only so does the sender hear
  // that its tunnel MTU is too large. Without it the outer packets would be fragmented, which costs
  // the receiver far more than the segments it saves (RFC 4301 §8.2).
  void fragmenting(Fragmenting how) {
    int v4 = IP_PMTUDISC_PROBE;
    int v6 = IPV6_PMTUDISC_PROBE;
    switch (how) {
      case Fragmenting::refuse_link:
        break;
      case Fragmenting::refuse_path:
        v4 = IP_PMTUDISC_DO;
        v6 = IPV6_PMTUDISC_DO;
        break;
      case Fragmenting::allow:
        v4 = IP_PMTUDISC_OMIT;    // routers may fragment what the path does not take
        v6 = IPV6_PMTUDISC_WANT;  // only the source may (RFC 8200 §5)
        break;
    }
    if (v6_) {
      set(SOL_IPV6, IPV6_MTU_DISCOVER, v6, "IPV6_MTU_DISCOVER");
    } else {
      set(SOL_IP, IP_MTU_DISCOVER, v4, "IP_MTU_DISCOVER");
    }
  }
  void report_destination() {
    if (v6_)
      set(SOL_IPV6, IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO");
    else
      set(SOL_IP, IP_PKTINFO, 1, "IP_PKTINFO");
  }
  void receive_nothing() {
    attach(SO_ATTACH_FILTER, {sock_filter{BPF_RET | BPF_K, 0, 0, 0}}, "SO_ATTACH_FILTER");
  }

  [[nodiscard]] bool v6() const noexcept { return v6_; }
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  [[nodiscard]] UniqueFd finish() noexcept { return std::move(fd_); }

 private:
  std::string where_;
  bool v6_;
  UniqueFd fd_;
};

constexpr sock_filter op(unsigned code, std::uint32_t k, std::uint8_t if_true = 0,
                         std::uint8_t if_false = 0) {
  return {static_cast<std::uint16_t>(code), if_true, if_false, k};
}

// The program sees the UDP payload. Too short for an SPI (a keepalive): a load outside ends the
// program with 0, which is worker 0; so does IKE's non-ESP marker.
std::vector<sock_filter> worker_by_spi(unsigned workers) {
  return {op(BPF_LD | BPF_W | BPF_ABS, 0), op(BPF_ALU | BPF_MOD | BPF_K, workers),
          op(BPF_RET | BPF_A, 0)};
}

// Raw sockets: IPv4 shows the IP header first, IPv6 the ESP header.
std::vector<sock_filter> only_spi(bool v6, Shard shard) {
  std::vector<sock_filter> program;
  if (v6) {
    program.push_back(op(BPF_LD | BPF_W | BPF_ABS, 0));
  } else {
    program.push_back(op(BPF_LDX | BPF_B | BPF_MSH, 0));
    program.push_back(op(BPF_LD | BPF_W | BPF_IND, 0));
  }
  program.push_back(op(BPF_ALU | BPF_MOD | BPF_K, shard.workers));
  program.push_back(op(BPF_JMP | BPF_JEQ | BPF_K, shard.index, 0, 1));
  program.push_back(op(BPF_RET | BPF_K, 0xffffffff));
  program.push_back(op(BPF_RET | BPF_K, 0));
  return program;
}

}  // namespace

UniqueFd open_udp(const Endpoint& local, Shard shard, OuterOptions options) {
  Setup s(local, SOCK_DGRAM, IPPROTO_UDP, "UDP");
  s.common(options);
  // Where it is missing every datagram simply arrives alone.
  s.try_set(SOL_UDP, UDP_GRO, 1);
  if (shard.workers > 1 || options.shared) s.set(SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT");
  if (local.address.is_any()) s.report_destination();
  s.bind(local);
  if (shard.workers > 1 && !options.shared)
    s.attach(SO_ATTACH_REUSEPORT_CBPF, worker_by_spi(shard.workers), "SO_ATTACH_REUSEPORT_CBPF");
  return s.finish();
}

UniqueFd open_raw_esp(const IpAddress& local, Shard shard, OuterOptions options) {
  const Endpoint where{local, 0};
  Setup s(where, SOCK_RAW, IPPROTO_ESP, "raw ESP");
  s.common(options);
  // Before bind(): from then on it receives.
  if (shard.workers > 1) s.attach(SO_ATTACH_FILTER, only_spi(s.v6(), shard), "SO_ATTACH_FILTER");
  s.bind(where);
  return s.finish();
}

void check_mark(const IpAddress& local) {
  Setup s({local, 0}, SOCK_DGRAM, IPPROTO_UDP, "UDP");
  s.set(SOL_SOCKET, SO_MARK, 1, "SO_MARK");
}

// Sockets may share a port if all say SO_REUSEPORT, and then form a group in which a program
// chooses the receiver; the workers' come first, so the sender is never chosen. One worker alone
// says so only while the sender joins: no other program shall be able to share its port.
UniqueFd open_udp_sender(const Endpoint& local, std::span<const UniqueFd> receivers, bool grouped,
                         OuterOptions options) {
  const bool alone = !grouped;
  const auto reuse = [&](int fd, int on) {
    if (::setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0)
      fail("setsockopt SO_REUSEPORT " + local.str(), errno);
  };
  Setup s(local, SOCK_DGRAM, IPPROTO_UDP, "UDP");
  s.common(options);
  s.receive_nothing();
  // GRO asks a socket of the group that it chooses by hash, without the packet, whether to merge:
  // it would not for every second peer.
  s.try_set(SOL_UDP, UDP_GRO, 1);
  s.set(SOL_SOCKET, SO_REUSEPORT, 1, "SO_REUSEPORT");
  if (alone) reuse(receivers.front().get(), 1);
  try {
    s.bind(local);
  } catch (...) {
    if (alone) reuse(receivers.front().get(), 0);
    throw;
  }
  if (!alone) return s.finish();
  s.attach(SO_ATTACH_REUSEPORT_CBPF, worker_by_spi(1), "SO_ATTACH_REUSEPORT_CBPF");
  reuse(receivers.front().get(), 0);
  return s.finish();
}

UniqueFd open_raw_esp_sender(const IpAddress& local, OuterOptions options) {
  const Endpoint where{local, 0};
  Setup s(where, SOCK_RAW, IPPROTO_ESP, "raw ESP");
  s.common(options);
  s.receive_nothing();
  s.bind(where);
  return s.finish();
}

unsigned probe_udp_gso(const IpAddress& local) {
  constexpr unsigned kAlways = 64;  // of every kernel that has UDP_SEGMENT
  constexpr unsigned kNewer = 128;
  try {
    const Endpoint here{local, 0};
    Setup s(here, SOCK_DGRAM, IPPROTO_UDP, "UDP");
    if (!s.try_set(SOL_UDP, UDP_SEGMENT, 1)) return 0;
    s.bind(here);
    // To itself, so that nothing leaves the host.
    sockaddr_storage self{};
    socklen_t len = sizeof self;
    if (::getsockname(s.fd(), reinterpret_cast<sockaddr*>(&self), &len) != 0 ||
        ::connect(s.fd(), reinterpret_cast<sockaddr*>(&self), len) != 0)
      return kAlways;
    const std::array<std::uint8_t, kNewer> bytes{};
    return ::send(s.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT) == ssize_t{kNewer} ? kNewer
                                                                                       : kAlways;
  } catch (const std::system_error&) {
    return 0;
  }
}

unsigned outer_mtu(const IpAddress& local, const IpAddress& remote) {
  constexpr std::uint16_t kNatT = 4500;  // nothing is sent
  const Endpoint from{local, 0};
  const Endpoint to{remote, kNatT};
  Setup s(local.family == Family::none ? Endpoint{IpAddress::any(remote.family), 0} : from,
          SOCK_DGRAM, IPPROTO_UDP, "UDP");
  if (!local.is_any()) s.bind(from);
  sockaddr_storage sa;
  const socklen_t len = to.to(sa);
  if (::connect(s.fd(), reinterpret_cast<const sockaddr*>(&sa), len) != 0)
    fail("connect UDP " + to.str(), errno);
  int mtu = 0;
  socklen_t size = sizeof mtu;
  if (::getsockopt(s.fd(), s.v6() ? SOL_IPV6 : SOL_IP, s.v6() ? IPV6_MTU : IP_MTU, &mtu, &size) !=
      0)
    fail(std::string("getsockopt ") + (s.v6() ? "IPV6_MTU " : "IP_MTU ") + to.str(), errno);
  return static_cast<unsigned>(mtu);
}

}  // namespace espalier::ifaces
