#include "ifaces/netlink.h"

#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netlink/errno.h>
#include <netlink/netlink.h>
#include <netlink/route/addr.h>
#include <netlink/route/link.h>
#include <netlink/route/route.h>
#include <netlink/socket.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <limits>
#include <new>
#include <system_error>
#include <utility>

#include "ifaces/unique_fd.h"

namespace espalier::ifaces {
namespace {

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* p) const noexcept {
    Free(p);
  }
};
using Socket = std::unique_ptr<nl_sock, Deleter<nl_socket_free>>;
using Cache = std::unique_ptr<nl_cache, Deleter<nl_cache_free>>;
using Message = std::unique_ptr<nl_msg, Deleter<nlmsg_free>>;
using Link = std::unique_ptr<rtnl_link, Deleter<rtnl_link_put>>;
using Address = std::unique_ptr<rtnl_addr, Deleter<rtnl_addr_put>>;
using Route = std::unique_ptr<rtnl_route, Deleter<rtnl_route_put>>;
using NlAddress = std::unique_ptr<nl_addr, Deleter<nl_addr_put>>;

int af(Family family) {
  return family == Family::v6 ? AF_INET6 : AF_INET;
}

template <typename T>
T must(T object) {
  if (!object) throw std::bad_alloc();
  return object;
}

NlAddress to_nl(const Prefix& p) {
  NlAddress a = must(
      NlAddress(nl_addr_build(af(p.address.family), p.address.bytes.data(), p.address.size())));
  nl_addr_set_prefixlen(a.get(), p.length);
  return a;
}

NlAddress to_nl(const IpAddress& a) {
  return to_nl(Prefix{a, static_cast<std::uint8_t>(a.bits())});
}

IpAddress from_bytes(int family, const void* data, std::size_t size) {
  IpAddress a;
  if (size > a.bytes.size()) return a;
  std::memcpy(a.bytes.data(), data, size);
  if (family == AF_INET && size == 4) a.family = Family::v4;
  if (family == AF_INET6 && size == 16) a.family = Family::v6;
  return a;
}

IpAddress from_nl(const nl_addr* a) {
  if (a == nullptr) return {};
  return from_bytes(nl_addr_get_family(a), nl_addr_get_binary_addr(a), nl_addr_get_len(a));
}

// Where libnl itself failed there is only its own error; the kernel's errno is kept by State.
int errno_of(int nl_error) {
  switch (nl_error < 0 ? -nl_error : nl_error) {
    case NLE_EXIST:
      return EEXIST;
    case NLE_NODEV:
      return ENODEV;
    case NLE_OBJ_NOTFOUND:
      return ESRCH;
    case NLE_NOADDR:
      return EADDRNOTAVAIL;
    case NLE_PERM:
      return EPERM;
    case NLE_NOACCESS:
      return EACCES;
    case NLE_INVAL:
      return EINVAL;
    case NLE_RANGE:
      return ERANGE;
    case NLE_NOMEM:
      return ENOMEM;
    case NLE_BUSY:
      return EBUSY;
    case NLE_AGAIN:
      return EAGAIN;
    case NLE_INTR:
    case NLE_DUMP_INTR:
      return EINTR;
    case NLE_OPNOTSUPP:
      return EOPNOTSUPP;
    case NLE_AF_NOSUPPORT:
      return EAFNOSUPPORT;
    case NLE_MSG_TRUNC:
    case NLE_MSG_TOOSHORT:
      return EMSGSIZE;
    default:
      return EIO;
  }
}

// The answer to a route lookup.
struct Lookup {
  bool found = false;
  int device = 0;
  IpAddress source, gateway;
};

int read_lookup(nl_msg* message, void* result) {
  const nlmsghdr* header = nlmsg_hdr(message);
  if (header->nlmsg_type != RTM_NEWROUTE || !nlmsg_valid_hdr(header, sizeof(rtmsg))) return NL_OK;
  auto& lookup = *static_cast<Lookup*>(result);
  const auto* route = static_cast<const rtmsg*>(nlmsg_data(header));
  lookup.found = true;
  if (const nlattr* oif = nlmsg_find_attr(const_cast<nlmsghdr*>(header), sizeof(rtmsg), RTA_OIF);
      oif != nullptr && nla_len(oif) == sizeof(int))
    std::memcpy(&lookup.device, nla_data(oif), sizeof lookup.device);
  const auto address = [&](int attribute, IpAddress& out) {
    const nlattr* a = nlmsg_find_attr(const_cast<nlmsghdr*>(header), sizeof(rtmsg), attribute);
    if (a != nullptr)
      out = from_bytes(route->rtm_family, nla_data(a), static_cast<std::size_t>(nla_len(a)));
  };
  address(RTA_PREFSRC, lookup.source);
  address(RTA_GATEWAY, lookup.gateway);
  return NL_OK;
}

}  // namespace

struct Netlink::State {
  Socket socket{nl_socket_alloc()};
  int kernel_errno = 0;  // of the last refusal

  State() {
    must(socket.get());
    check("connect", "rtnetlink", nl_connect(socket.get(), NETLINK_ROUTE));
    nl_socket_modify_err_cb(socket.get(), NL_CB_CUSTOM, &State::keep_errno, &kernel_errno);
  }

  // libnl folds many errnos into NLE_FAILURE; this keeps what the kernel said.
  static int keep_errno(sockaddr_nl*, nlmsgerr* error, void* kept) {
    *static_cast<int*>(kept) = -error->error;
    return -nl_syserr2nlerr(error->error);
  }

  // The first of at least this scope.
  std::optional<IpAddress> own_address(const Prefix& range, int scope) {
    nl_cache* dump = nullptr;
    check("list addresses", "", rtnl_addr_alloc_cache(socket.get(), &dump));
    const Cache cache(dump);
    for (nl_object* o = nl_cache_get_first(cache.get()); o != nullptr; o = nl_cache_get_next(o)) {
      auto* const entry = reinterpret_cast<rtnl_addr*>(o);
      const IpAddress own = from_nl(rtnl_addr_get_local(entry));
      if (own.family == range.address.family && range.contains(own) &&
          rtnl_addr_get_scope(entry) <= scope)
        return own;
    }
    return std::nullopt;
  }

  void check(const std::string& operation, const std::string& what, int result) {
    const int kernel = std::exchange(kernel_errno, 0);
    if (result >= 0) return;
    throw std::system_error(kernel != 0 ? kernel : errno_of(result), std::generic_category(),
                            "rtnetlink " + operation + " " + what);
  }

  int index(const std::string& operation, const std::string& device) {
    rtnl_link* found = nullptr;
    check(operation, device, rtnl_link_get_kernel(socket.get(), 0, device.c_str(), &found));
    return rtnl_link_get_ifindex(Link(found).get());
  }

  std::string name(const std::string& operation, int device) {
    rtnl_link* found = nullptr;
    check(operation, "device " + std::to_string(device),
          rtnl_link_get_kernel(socket.get(), device, nullptr, &found));
    const Link link(found);
    const char* name = rtnl_link_get_name(link.get());
    return name == nullptr ? std::string() : std::string(name);
  }

  Address address(const std::string& operation, const std::string& device, const Prefix& p) {
    Address a = must(Address(rtnl_addr_alloc()));
    rtnl_addr_set_ifindex(a.get(), index(operation, device));
    const NlAddress local = to_nl(p);
    check(operation, p.str() + " dev " + device, rtnl_addr_set_local(a.get(), local.get()));
    // Duplicate address detection would keep an IPv6 address unusable for a second, and a
    // tunnel has nobody to ask.
    if (p.address.family == Family::v6) rtnl_addr_set_flags(a.get(), IFA_F_NODAD);
    return a;
  }

  // Without a next hop.
  Route route_to(const std::string& operation, const Prefix& to, std::uint32_t table) {
    Route r = must(Route(rtnl_route_alloc()));
    const NlAddress destination = to_nl(to.network());
    rtnl_route_set_family(r.get(), static_cast<std::uint8_t>(af(to.address.family)));
    check(operation, to.str(), rtnl_route_set_dst(r.get(), destination.get()));
    rtnl_route_set_table(r.get(), table);
    rtnl_route_set_protocol(r.get(), RTPROT_STATIC);
    return r;
  }

  Route unreachable(const std::string& operation, const Prefix& to, std::uint32_t table) {
    // Metrics are compared within one prefix: any other route to it comes first.
    constexpr std::uint32_t kLastMetric = 0xffffffff;
    Route r = route_to(operation, to, table == 0 ? RT_TABLE_MAIN : table);
    check(operation, to.str(), rtnl_route_set_type(r.get(), RTN_UNREACHABLE));
    rtnl_route_set_scope(r.get(), RT_SCOPE_UNIVERSE);
    rtnl_route_set_priority(r.get(), kLastMetric);
    return r;
  }

  Route route(const std::string& operation, const std::string& device, const Prefix& to,
              std::uint32_t table) {
    Route r = route_to(operation, to, table);
    rtnl_route_set_type(r.get(), RTN_UNICAST);
    rtnl_route_set_scope(r.get(),
                         to.address.family == Family::v4 ? RT_SCOPE_LINK : RT_SCOPE_UNIVERSE);
    rtnl_nexthop* hop = must(rtnl_route_nh_alloc());
    rtnl_route_nh_set_ifindex(hop, index(operation, device));
    rtnl_route_add_nexthop(r.get(), hop);  // owns it
    return r;
  }

  // Is there a route of ours (static, this device) to exactly this prefix?
  bool has_route(const Prefix& to, int device, std::uint32_t table) {
    nl_cache* dump = nullptr;
    check("list routes", to.str(),
          rtnl_route_alloc_cache(socket.get(), af(to.address.family), 0, &dump));
    const Cache cache(dump);
    const Prefix wanted = to.network();
    for (nl_object* o = nl_cache_get_first(cache.get()); o != nullptr; o = nl_cache_get_next(o)) {
      auto* r = reinterpret_cast<rtnl_route*>(o);
      if (rtnl_route_get_table(r) != table || rtnl_route_get_protocol(r) != RTPROT_STATIC ||
          rtnl_route_get_nnexthops(r) != 1 ||
          rtnl_route_nh_get_ifindex(rtnl_route_nexthop_n(r, 0)) != device)
        continue;
      const nl_addr* dst = rtnl_route_get_dst(r);
      const unsigned length = dst == nullptr ? 0 : nl_addr_get_prefixlen(dst);
      if (length == wanted.length && (length == 0 || from_nl(dst) == wanted.address)) return true;
    }
    return false;
  }

  // What `ip route get` says; not found where the kernel has no route. `device` 0: any.
  Lookup lookup(const IpAddress& to, int device, std::uint32_t mark = 0,
                const IpAddress& from = {}) {
    const Message message = must(Message(nlmsg_alloc_simple(RTM_GETROUTE, NLM_F_REQUEST)));
    rtmsg request{};
    request.rtm_family = static_cast<unsigned char>(af(to.family));
    request.rtm_dst_len = static_cast<unsigned char>(to.bits());
    request.rtm_src_len = static_cast<unsigned char>(from.is_any() ? 0 : from.bits());
    check("lookup", to.str(), nlmsg_append(message.get(), &request, sizeof request, NLMSG_ALIGNTO));
    check("lookup", to.str(),
          nla_put(message.get(), RTA_DST, static_cast<int>(to.size()), to.bytes.data()));
    if (!from.is_any())
      check("lookup", to.str(),
            nla_put(message.get(), RTA_SRC, static_cast<int>(from.size()), from.bytes.data()));
    if (device != 0)
      check("lookup", to.str(), nla_put(message.get(), RTA_OIF, sizeof device, &device));
    if (mark != 0) check("lookup", to.str(), nla_put_u32(message.get(), RTA_MARK, mark));
    Lookup result;
    nl_socket_modify_cb(socket.get(), NL_CB_VALID, NL_CB_CUSTOM, &read_lookup, &result);
    // The answer and then its acknowledgement, or an error alone.
    int error = nl_send_auto(socket.get(), message.get());
    if (error >= 0) error = nl_recvmsgs_default(socket.get());
    if (error >= 0) error = nl_wait_for_ack(socket.get());
    nl_socket_modify_cb(socket.get(), NL_CB_VALID, NL_CB_DEFAULT, nullptr, nullptr);
    if (error < 0 && (kernel_errno == ENETUNREACH || kernel_errno == EHOSTUNREACH ||
                      kernel_errno == EACCES || kernel_errno == EINVAL)) {
      kernel_errno = 0;
      return {};
    }
    check("lookup", to.str(), error);
    return result;
  }
};

Netlink::Netlink() : state_(std::make_unique<State>()) {}
Netlink::Netlink(Netlink&&) noexcept = default;
Netlink& Netlink::operator=(Netlink&&) noexcept = default;
Netlink::~Netlink() = default;

void Netlink::set_link(const std::string& device, const LinkSettings& settings) {
  rtnl_link* found = nullptr;
  state_->check("set", device,
                rtnl_link_get_kernel(state_->socket.get(), 0, device.c_str(), &found));
  const Link link(found);
  const Link change = must(Link(rtnl_link_alloc()));
  if (settings.mtu != 0) rtnl_link_set_mtu(change.get(), settings.mtu);
  const auto set_flag = [&change](unsigned flag, bool on) {
    if (on)
      rtnl_link_set_flags(change.get(), flag);
    else
      rtnl_link_unset_flags(change.get(), flag);
  };
  set_flag(IFF_UP, settings.up);
  set_flag(IFF_MULTICAST, settings.multicast);
  state_->check("set", device, rtnl_link_change(state_->socket.get(), link.get(), change.get(), 0));
}

bool Netlink::link_exists(const std::string& device) {
  rtnl_link* found = nullptr;
  const int error = rtnl_link_get_kernel(state_->socket.get(), 0, device.c_str(), &found);
  const Link link(found);
  if (error < 0 && (error == -NLE_NODEV || error == -NLE_OBJ_NOTFOUND)) {
    state_->kernel_errno = 0;
    return false;
  }
  state_->check("get", device, error);
  return true;
}

unsigned Netlink::device_mtu(const std::string& device) {
  rtnl_link* found = nullptr;
  const int error = rtnl_link_get_kernel(state_->socket.get(), 0, device.c_str(), &found);
  const Link link(found);
  state_->check("get", device, error);
  return rtnl_link_get_mtu(link.get());
}

void Netlink::remove_link(const std::string& device) {
  rtnl_link* found = nullptr;
  const int error = rtnl_link_get_kernel(state_->socket.get(), 0, device.c_str(), &found);
  const Link link(found);
  if (error < 0) {
    state_->kernel_errno = 0;
    return;
  }
  state_->check("delete", device, rtnl_link_delete(state_->socket.get(), link.get()));
}

void Netlink::add_address(const std::string& device, const Prefix& address) {
  const Address a = state_->address("add address", device, address);
  state_->check("add address", address.str() + " dev " + device,
                rtnl_addr_add(state_->socket.get(), a.get(), 0));
}

void Netlink::remove_address(const std::string& device, const Prefix& address) {
  const Address a = state_->address("remove address", device, address);
  state_->check("remove address", address.str() + " dev " + device,
                rtnl_addr_delete(state_->socket.get(), a.get(), 0));
}

void Netlink::add_route(const std::string& device, const Prefix& to, const IpAddress& source,
                        std::uint32_t table) {
  if (table == 0) table = RT_TABLE_MAIN;
  const Route r = state_->route("add route", device, to, table);
  if (source.family != Family::none)
    state_->check("add route", to.str(), rtnl_route_set_pref_src(r.get(), to_nl(source).get()));
  // Without NLM_F_EXCL the kernel would replace whatever route to this prefix comes first.
  int error = rtnl_route_add(state_->socket.get(), r.get(), NLM_F_EXCL);
  if (error < 0 && state_->kernel_errno == EEXIST) {
    const int device_index = rtnl_route_nh_get_ifindex(rtnl_route_nexthop_n(r.get(), 0));
    if (state_->has_route(to, device_index, table))
      error = rtnl_route_add(state_->socket.get(), r.get(), NLM_F_REPLACE);
    else
      state_->kernel_errno = EEXIST;
  }
  state_->check("add route", to.str() + " dev " + device, error);
}

void Netlink::remove_route(const std::string& device, const Prefix& to, std::uint32_t table) {
  const Route r = state_->route("remove route", device, to, table == 0 ? RT_TABLE_MAIN : table);
  state_->check("remove route", to.str() + " dev " + device,
                rtnl_route_delete(state_->socket.get(), r.get(), 0));
}

void Netlink::add_unreachable(const Prefix& to, std::uint32_t table) {
  const Route r = state_->unreachable("add unreachable route", to, table);
  const int error = rtnl_route_add(state_->socket.get(), r.get(), NLM_F_EXCL);
  if (error < 0 && state_->kernel_errno == EEXIST) return;  // a crash has left it
  state_->check("add unreachable route", to.str(), error);
}

void Netlink::remove_unreachable(const Prefix& to, std::uint32_t table) {
  const Route r = state_->unreachable("remove unreachable route", to, table);
  state_->check("remove unreachable route", to.str(),
                rtnl_route_delete(state_->socket.get(), r.get(), 0));
}

bool Netlink::is_local(const IpAddress& address) {
  return local_in({address, static_cast<std::uint8_t>(address.bits())}).has_value();
}

std::optional<IpAddress> Netlink::local_in(const Prefix& range) {
  return state_->own_address(range, RT_SCOPE_HOST);
}

std::optional<IpAddress> Netlink::global_in(const Prefix& range) {
  return state_->own_address(range, RT_SCOPE_UNIVERSE);
}

std::optional<IpAddress> Netlink::default_source(Family family) {
  nl_cache* dump = nullptr;
  state_->check("list routes", "default",
                rtnl_route_alloc_cache(state_->socket.get(), af(family), 0, &dump));
  const Cache cache(dump);
  rtnl_route* best = nullptr;
  std::uint32_t best_metric = std::numeric_limits<std::uint32_t>::max();
  for (nl_object* o = nl_cache_get_first(cache.get()); o != nullptr; o = nl_cache_get_next(o)) {
    auto* r = reinterpret_cast<rtnl_route*>(o);
    const nl_addr* to = rtnl_route_get_dst(r);
    const bool everywhere = to == nullptr || nl_addr_get_prefixlen(to) == 0;
    if (!everywhere || rtnl_route_get_table(r) != RT_TABLE_MAIN ||
        rtnl_route_get_type(r) != RTN_UNICAST || rtnl_route_get_nnexthops(r) < 1)
      continue;
    if (best == nullptr || rtnl_route_get_priority(r) < best_metric) {
      best = r;
      best_metric = rtnl_route_get_priority(r);
    }
  }
  if (best == nullptr) return std::nullopt;
  if (const IpAddress source = from_nl(rtnl_route_get_pref_src(best)); !source.is_any())
    return source;
  // What the kernel would take towards the gateway; without one (a point-to-point device) towards
  // an address for documentation, which no more specific route names (RFC 5737, RFC 3849).
  rtnl_nexthop* hop = rtnl_route_nexthop_n(best, 0);
  IpAddress towards = from_nl(rtnl_route_nh_get_gateway(hop));
  if (towards.family != family)
    towards = *IpAddress::parse(family == Family::v4 ? "192.0.2.1" : "2001:db8::1");
  const Lookup found = state_->lookup(towards, rtnl_route_nh_get_ifindex(hop));
  if (!found.found || found.source.family == Family::none) return std::nullopt;
  return found.source;
}

std::string Netlink::route_device(const IpAddress& to) {
  const Lookup found = state_->lookup(to, 0);
  if (!found.found || found.device == 0)
    throw std::system_error(ENETUNREACH, std::generic_category(), "rtnetlink lookup " + to.str());
  return state_->name("lookup " + to.str(), found.device);
}

std::optional<IpAddress> Netlink::gateway(const IpAddress& to, const IpAddress& from) {
  const Lookup found = state_->lookup(to, 0, 0, from);
  if (found.gateway.family != to.family) return std::nullopt;
  return found.gateway;
}

unsigned Netlink::link_mtu(const IpAddress& to, std::uint32_t mark) {
  const Lookup found = state_->lookup(to, 0, mark);
  if (!found.found || found.device == 0)
    throw std::system_error(ENETUNREACH, std::generic_category(), "rtnetlink lookup " + to.str());
  rtnl_link* link = nullptr;
  state_->check("lookup", to.str(),
                rtnl_link_get_kernel(state_->socket.get(), found.device, nullptr, &link));
  return rtnl_link_get_mtu(Link(link).get());
}

bool set_device_sysctl(const std::string& device, const std::string& name, int value) {
  if (device.empty() || device.find('/') != std::string::npos || device == "." || device == "..")
    return false;
  const std::string path = "/proc/sys/net/ipv4/conf/" + device + "/" + name;
  const UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!fd) return false;
  const std::string text = std::to_string(value);
  return ::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

}  // namespace espalier::ifaces
