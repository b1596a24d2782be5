#include "tools/exec/supervisor.h"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tunnel.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <iostream>
#include <optional>
#include <vector>

#include "ifaces/shared_port.h"
#include "tools/control_client.h"
#include "tools/exec/filter.h"
#include "tools/exec/tunnel_request.h"

namespace espalier::tools {
namespace {

constexpr int kLookForDaemonMs = 100;
// A command that is soon done need not hold anything.
constexpr std::chrono::milliseconds kKeepAfter{300};
constexpr std::size_t kMaxSend = 65536;
constexpr std::size_t kMaxParts = 16;  // of a sendmsg()

// Whatever fails is tried again in the next turn: who is held in a call waits for the supervisor.
template <class Action>
void attempt(const Action& action) noexcept {
  try {
    action();
  } catch (const std::exception&) {  // out of memory or of descriptors
  }
}

// What a command sends: its bytes, gathered. Empty if it cannot be read.
std::vector<std::uint8_t> sent_bytes(const Process& process, int call, Arguments a) {
  std::vector<iovec> parts;
  if (call == SYS_sendmsg) {
    const auto header = process.read<msghdr>(a[1]);
    if (!header || header->msg_iovlen == 0 || header->msg_iovlen > kMaxParts) return {};
    parts.resize(header->msg_iovlen);
    if (!process.read(
            reinterpret_cast<std::uint64_t>(header->msg_iov),
            {reinterpret_cast<std::uint8_t*>(parts.data()), parts.size() * sizeof(iovec)}))
      return {};
  } else {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): an address in the other process
    parts.push_back({reinterpret_cast<void*>(a[1]), a[2]});
  }
  std::vector<std::uint8_t> bytes;
  for (const iovec& part : parts) {
    const std::size_t before = bytes.size();
    if (part.iov_len > kMaxSend - before) return {};
    bytes.resize(before + part.iov_len);
    if (!process.read(reinterpret_cast<std::uint64_t>(part.iov_base),
                      std::span(bytes).subspan(before)))
      return {};
  }
  return bytes;
}

int option_of(int fd, int option) noexcept {
  int value = 0;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, option, &value, &length) == 0 ? value : -1;
}

// Any descriptor may have got a number of the filter's block.
bool is_route_socket(const ifaces::UniqueFd& socket) noexcept {
  return socket && option_of(socket.get(), SO_DOMAIN) == AF_NETLINK &&
         option_of(socket.get(), SO_PROTOCOL) == NETLINK_ROUTE;
}

// Does a request that changes a device succeed? Done twice it does no harm.
bool kernel_applies(std::span<const std::uint8_t> request) {
  std::vector<std::uint8_t> bytes(request.begin(), request.end());
  nlmsghdr header{};
  std::memcpy(&header, bytes.data(), sizeof header);
  header.nlmsg_flags |= NLM_F_REQUEST | NLM_F_ACK;
  header.nlmsg_pid = 0;
  std::memcpy(bytes.data(), &header, sizeof header);
  const ifaces::UniqueFd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!socket || ::send(socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT) < 0) return false;
  struct {
    nlmsghdr header;
    nlmsgerr error;
  } answer{};  // there when send() returns; what is cut off is the request
  return ::recv(socket.get(), &answer, sizeof answer, MSG_DONTWAIT) == ssize_t{sizeof answer} &&
         answer.header.nlmsg_type == NLMSG_ERROR && answer.error.error == 0;
}

nlohmann::json vti_request(const char* op, const dataplane::DeviceSpec& device) {
  nlohmann::json request{{"op", op},
                         {"name", device.name},
                         {"ikey", device.ikey},
                         {"okey", device.okey},
                         {"if_id", device.if_id}};
  if (!device.local.is_any()) request["local"] = device.local.str();
  if (!device.remote.is_any()) request["remote"] = device.remote.str();
  return request;
}

// A device of the daemon's, as it tells of it.
std::optional<dataplane::DeviceSpec> device_named(const std::filesystem::path& control,
                                                  const std::string& name) {
  const nlohmann::json reply = ask(control, {{"op", "vti-list"}});
  for (const nlohmann::json& vti : reply.at("vtis")) {
    if (vti.at("name") != name) continue;
    dataplane::DeviceSpec device;
    device.name = name;
    device.ikey = vti.at("ikey");
    device.okey = vti.at("okey");
    // A wildcard is told by a word.
    using ifaces::IpAddress;
    device.local = IpAddress::parse(vti.at("local").get<std::string>()).value_or(IpAddress{});
    device.remote = IpAddress::parse(vti.at("remote").get<std::string>()).value_or(IpAddress{});
    return device;
  }
  return std::nullopt;
}

}  // namespace

Supervisor::Supervisor(ifaces::UniqueFd listener, std::filesystem::path control)
    : listener_(std::move(listener)),
      control_(std::move(control)),
      xfrm_(front::socket_path(control_)),
      natt_(xfrm_),
      keep_from_(std::chrono::steady_clock::now() + kKeepAfter),
      keeper_(xfrm_, static_cast<std::uint32_t>(::getpid())) {}

void Supervisor::run() {
  for (;;) {
    int wait = kLookForDaemonMs;
    attempt([&] { wait = look_for_daemon(); });
    std::vector<pollfd> fds{{listener_.get(), POLLIN, 0}, {keeper_.fd(), POLLIN, 0}};
    if (natt_.link() >= 0) fds.push_back({natt_.link(), POLLIN, 0});
    for (const auto& [cookie, relay] : relays_) {
      const bool full = relay->is_full();
      fds.push_back({relay->command_fd(), static_cast<short>(full ? POLLOUT : POLLIN), 0});
      if (relay->daemon_fd() >= 0 && !full) fds.push_back({relay->daemon_fd(), POLLIN, 0});
    }
    const int count = ::poll(fds.data(), fds.size(), wait);
    if (count < 0 && errno != EINTR) return;
    if (count <= 0) continue;
    if ((fds[0].revents & (POLLHUP | POLLERR)) != 0) return;
    attempt([&] {
      if (keeper_.fd() >= 0 && fds[1].revents != 0) {
        keeper_.serve();
        if (keeper_.fd() < 0) natt_.lose_daemon();
      }
      // Before a request can reach a daemon that knows nothing yet.
      if (keeper_.fd() < 0 && is_keeper()) static_cast<void>(give_back());
    });
    attempt([&] { serve_relays(std::span(fds).subspan(2)); });
    if ((fds[0].revents & POLLIN) != 0) serve_call();
  }
}

bool Supervisor::is_keeper() const noexcept {
  return std::chrono::steady_clock::now() >= keep_from_;
}

// Ports first: the states that come back send from them.
bool Supervisor::give_back() {
  natt_.look_for_daemon();
  return keeper_.connect();
}

int Supervisor::look_for_daemon() {
  if (!is_keeper()) {
    const auto left = keep_from_ - std::chrono::steady_clock::now();
    return static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(left).count());
  }
  bool away = !give_back();
  // Who listens for events must be told when there are some again.
  for (const auto& [cookie, relay] : relays_)
    if (relay->daemon_fd() < 0 && relay->state().groups != 0 && !away) away = !relay->connect();
  const auto next = natt_.next_try();
  if (!next) return away ? kLookForDaemonMs : -1;
  const auto wait = static_cast<int>(next->count());
  return away ? std::min(wait, kLookForDaemonMs) : wait;
}

void Supervisor::serve_relays(std::span<const pollfd> ready) {
  for (const pollfd& fd : ready) {
    if (fd.revents == 0) continue;
    if (fd.fd == natt_.link()) {
      natt_.lose_daemon();  // it has nothing to say there
      continue;
    }
    const auto found = std::find_if(relays_.begin(), relays_.end(), [&fd](const auto& entry) {
      return entry.second->command_fd() == fd.fd || entry.second->daemon_fd() == fd.fd;
    });
    if (found == relays_.end()) continue;
    Relay& relay = *found->second;
    if ((fd.revents & POLLOUT) != 0)
      relay.flush();
    else if (relay.daemon_fd() == fd.fd)
      relay.from_daemon();
    else if (!relay.from_command())
      relays_.erase(found);
  }
}

bool Supervisor::still_waiting(const seccomp_notif& call) const noexcept {
  return ::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_ID_VALID, &call.id) == 0;
}

void Supervisor::serve_call() {
  seccomp_notif call{};
  if (::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_RECV, &call) != 0) return;
  seccomp_notif_resp answer{};
  answer.id = call.id;
  try {
    if (call.data.nr == SYS_socket && make_socket(call)) return;
    const Verdict verdict = call.data.nr == SYS_socket ? native() : judge(call);
    answer.error = -verdict.error;
    answer.val = verdict.value;
    answer.flags = verdict.go_on ? SECCOMP_USER_NOTIF_FLAG_CONTINUE : 0;
  } catch (const std::exception&) {
    answer.flags = 0;
    answer.error = -ENOMEM;
  }
  ::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_SEND, &answer);  // fails if the caller is gone
}

bool Supervisor::give(const seccomp_notif& call, int fd, int wanted, bool close_on_exec) {
  seccomp_notif_addfd add{};
  add.id = call.id;
  add.flags = SECCOMP_ADDFD_FLAG_SEND;
  add.srcfd = static_cast<std::uint32_t>(fd);
  add.newfd_flags = close_on_exec ? O_CLOEXEC : 0;
  if (wanted >= 0) {
    add.flags |= SECCOMP_ADDFD_FLAG_SETFD;
    add.newfd = static_cast<std::uint32_t>(wanted);
  }
  return ::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_ADDFD, &add) >= 0;
}

bool Supervisor::make_socket(const seccomp_notif& call) {
  const Process process(static_cast<pid_t>(call.pid));
  if (!process.shares_network()) return false;  // another network namespace is not ours
  const auto type = static_cast<int>(call.data.args[1]);
  const bool close_on_exec = (type & SOCK_CLOEXEC) != 0;

  if (static_cast<int>(call.data.args[2]) == NETLINK_ROUTE) {
    // It would have this process's rights; who may make no device needs none of these.
    if (!process.may_configure()) return false;
    const ifaces::UniqueFd fd(::socket(AF_NETLINK, type, NETLINK_ROUTE));
    if (!fd || !still_waiting(call)) return false;
    for (int i = 0; i < kRouteCount; ++i) {
      const int number = kRouteFirst + (next_route_ + i) % kRouteCount;
      if (process.has_descriptor(number)) continue;
      next_route_ = (next_route_ + i + 1) % kRouteCount;
      return give(call, fd.get(), number, close_on_exec);
    }
    return false;
  }

  if (!process.may_configure()) {
    seccomp_notif_resp refusal{};
    refusal.id = call.id;
    refusal.error = -EPERM;
    ::ioctl(listener_.get(), SECCOMP_IOCTL_NOTIF_SEND, &refusal);
    return true;
  }
  // The first of a process is named after it, as the kernel does; others get high numbers.
  const auto pid = static_cast<std::uint32_t>(process.pid());
  const bool first = std::none_of(relays_.begin(), relays_.end(), [pid](const auto& entry) {
    return entry.second->state().portid == pid;
  });
  auto relay = std::make_unique<Relay>(xfrm_, pid, first ? pid : 0xf0000000U + ++next_portid_);
  const ifaces::UniqueFd end = relay->take_command_end();
  if ((type & SOCK_NONBLOCK) != 0) ::fcntl(end.get(), F_SETFL, O_NONBLOCK);
  if (!still_waiting(call) || !give(call, end.get(), -1, close_on_exec)) return false;
  relays_.emplace(relay->cookie(), std::move(relay));
  return true;
}

Relay* Supervisor::relay_of(const ifaces::UniqueFd& socket) noexcept {
  std::uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (!socket || ::getsockopt(socket.get(), SOL_SOCKET, SO_COOKIE, &cookie, &length) != 0)
    return nullptr;
  const auto found = relays_.find(cookie);
  return found == relays_.end() ? nullptr : found->second.get();
}

Supervisor::Verdict Supervisor::judge(const seccomp_notif& call) {
  const Process process(static_cast<pid_t>(call.pid));
  const Arguments a(&call.data.args[0], std::size(call.data.args));
  // The descriptor that the call is about. Only then: if the caller has ended, its number may be
  // another process's already, and so what was fetched.
  const ifaces::UniqueFd socket = process.descriptor(static_cast<int>(a[0]));
  if (!still_waiting(call)) return native();
  switch (call.data.nr) {
    case SYS_sendmsg:
    case SYS_sendto:
    case SYS_write:
      return on_send(process, socket, call.data.nr, a);
    case SYS_ioctl:
      return on_tunnel(process, a);
    case SYS_setsockopt:
      if (static_cast<int>(a[1]) == IPPROTO_UDP) return on_udp_option(process, socket, a);
      // Only a kernel with XFRM could let these sockets pass its policies; ours never sees them.
      if (static_cast<int>(a[1]) != SOL_NETLINK) return done();
      break;
    default:
      break;
  }
  Relay* relay = relay_of(socket);
  if (relay == nullptr && call.data.nr == SYS_bind) return on_udp_bind(process, socket, a);
  if (relay == nullptr) return native();
  if (call.data.nr == SYS_bind) return on_bind(process, *relay, a);
  if (call.data.nr == SYS_getsockname) return on_getsockname(process, *relay, a);
  return on_option(process, *relay, a);
}

Supervisor::Verdict Supervisor::on_bind(const Process& process, Relay& relay, Arguments a) {
  const auto name = process.read<sockaddr_nl>(a[1]);
  if (!name) return failed(EFAULT);
  if (name->nl_family != AF_NETLINK) return failed(EINVAL);
  relay.set_name(name->nl_pid, name->nl_groups);
  return done();
}

Supervisor::Verdict Supervisor::on_getsockname(const Process& process, const Relay& relay,
                                               Arguments a) {
  sockaddr_nl name{};
  name.nl_family = AF_NETLINK;
  name.nl_pid = relay.state().portid;
  name.nl_groups = relay.state().groups;
  const auto room = process.read<socklen_t>(a[2]);
  if (!room) return failed(EFAULT);
  const std::size_t size = std::min<std::size_t>(*room, sizeof name);
  const std::span bytes(reinterpret_cast<const std::uint8_t*>(&name), size);
  if (!process.write(a[1], bytes) || !process.write(a[2], socklen_t{sizeof name}))
    return failed(EFAULT);
  return done();
}

Supervisor::Verdict Supervisor::on_option(const Process& process, Relay& relay, Arguments a) {
  const auto value = process.read<std::int32_t>(a[3]);
  if (!value) return failed(EFAULT);
  relay.set_option(static_cast<int>(a[2]), *value);
  return done();
}

// An IKE daemon that starts again finds its port in the hands of espalierd, whose sockets may only
// be joined by who says so before bind().
Supervisor::Verdict Supervisor::on_udp_bind(const Process& process, const ifaces::UniqueFd& socket,
                                            Arguments a) const {
  int protocol = 0;
  socklen_t length = sizeof protocol;
  if (!socket || ::getsockopt(socket.get(), SOL_SOCKET, SO_PROTOCOL, &protocol, &length) != 0 ||
      protocol != IPPROTO_UDP)
    return native();
  sockaddr_storage name{};
  const auto size = std::min<std::size_t>(a[2], sizeof(sockaddr_in6));
  if (!process.read(a[1], {reinterpret_cast<std::uint8_t*>(&name), size})) return native();
  const ifaces::Endpoint local = ifaces::Endpoint::from(name);
  if (local.port != 0 && process.may_configure() && natt_.may_share(local))
    ifaces::let_share(socket.get());
  return native();
}

// The kernel itself must not see UDP_ENCAP: without ESP in it, it would drop every ESP packet of
// the socket, and tell the sender that the port is closed. UDP_GRO is espalierd's business from
// then on: what is merged may be ESP as well.
Supervisor::Verdict Supervisor::on_udp_option(const Process& process, const ifaces::UniqueFd& copy,
                                              Arguments a) {
  const auto number = static_cast<int>(a[0]);
  const auto value = process.read<std::int32_t>(a[3]);
  if (!copy || !value) return native();
  if (static_cast<int>(a[2]) == UDP_GRO) return natt_.has(copy) ? done() : native();
  if (*value != UDP_ENCAP_ESPINUDP || !process.may_configure()) return native();
  const int error = natt_.hand_over(process.pid(), number, copy);
  return error == 0 ? done() : failed(error);
}

Supervisor::Verdict Supervisor::on_send(const Process& process, const ifaces::UniqueFd& socket,
                                        int call, Arguments a) const {
  const auto request = parse_new_link(sent_bytes(process, call, a));
  if (!request || !is_route_socket(socket) || !process.may_configure()) return native();
  if (request->elsewhere) return failed(EOPNOTSUPP);  // espalierd's queues would not follow
  try {
    static_cast<void>(ask(control_, vti_request("vti-add", request->device)));
  } catch (const ControlError&) {
    // The kernel answers for us: the name is taken, or the kind unknown.
    return native();
  }
  // The kernel tells the command what is wrong, on its own socket: there we cannot look.
  const bool applies = kernel_applies(request->rest);
  const ssize_t sent =
      ::send(socket.get(), request->rest.data(), request->rest.size(), MSG_DONTWAIT);
  const int error = errno;
  if (sent < 0 || !applies) try {
      static_cast<void>(ask(control_, {{"op", "vti-delete"}, {"name", request->device.name}}));
    } catch (const ControlError&) {  // gone already
    }
  return sent < 0 ? failed(error)
                  : done(call == SYS_sendmsg || call == SYS_write || call == SYS_sendto
                             ? static_cast<std::int64_t>(sent)
                             : 0);
}

Supervisor::Verdict Supervisor::on_tunnel(const Process& process, Arguments a) const {
  if (!process.may_configure()) return native();
  const auto request = process.read<ifreq>(a[2]);
  if (!request) return failed(EFAULT);
  const auto address = reinterpret_cast<std::uint64_t>(request->ifr_data);
  const auto parameters = process.read<ip_tunnel_parm>(address);
  const std::string on(request->ifr_name, ::strnlen(request->ifr_name, sizeof request->ifr_name));
  if (!parameters) return failed(EFAULT);
  dataplane::DeviceSpec device = device_of(*parameters);
  // Other kinds of tunnels are the kernel's own; ours are asked for on ip_vti0, or by their name.
  const bool by_kind = on == "ip_vti0";
  const auto command = static_cast<unsigned>(a[1]);
  try {
    if (command == SIOCADDTUNNEL) {
      if (!by_kind) return native();
      static_cast<void>(ask(control_, vti_request("vti-add", device)));
      return done();
    }
    device.name = by_kind ? device.name : on;
    if (command == SIOCDELTUNNEL) {
      static_cast<void>(ask(control_, {{"op", "vti-delete"}, {"name", device.name}}));
      return done();
    }
    if (command == SIOCGETTUNNEL) {
      const auto found = device_named(control_, device.name);
      if (!found) return native();
      return process.write(address, parameters_of(*found)) ? done() : failed(EFAULT);
    }
  } catch (const ControlError& e) {
    if (!by_kind) return native();
    if (command != SIOCADDTUNNEL) return failed(ENODEV);
    // `ip tunnel` has one word for it; where that is not the reason, the reason.
    if (::access(("/proc/sys/net/ipv4/conf/" + device.name).c_str(), F_OK) != 0)
      std::cerr << "espalier exec: ip tunnel add " << device.name << ": " << e.what() << '\n';
    return failed(EEXIST);
  } catch (const nlohmann::json::exception&) {
    return native();  // a daemon of another version
  }
  return native();
}

}  // namespace espalier::tools
