#include "tools/compile.h"

#include <algorithm>
#include <string>
#include <utility>

namespace espalier::tools {
namespace {

using dataplane::Direction;
using dataplane::Encapsulation;
using dataplane::Mark;
using dataplane::PolicyAction;
using dataplane::PolicySpec;
using dataplane::SaSpec;
using dataplane::Selector;
using ifaces::Family;
using ifaces::IpAddress;
using ifaces::Prefix;

// The default device's key is 0. A mark of {0, 0} would match the key of every VTI as well, and
// draw its packets to conns that are none of its business.
constexpr Mark kDefaultDeviceMark = {0, 0xffffffff};

[[noreturn]] void refuse(const Conn& conn, const std::string& text) {
  throw ConfigError(conn.where + ": " + text);
}

// A conn with its ends named by where they are.
struct View {
  IpAddress local, remote;
  std::uint16_t local_port, remote_port;
  std::vector<Subnet> own, peer;
  ProtoPort own_ports, peer_ports;
};

std::vector<Subnet> or_host(const std::vector<Subnet>& subnets, const IpAddress& end) {
  if (!subnets.empty() || end.family == Family::none) return subnets;
  return {Prefix{end, static_cast<std::uint8_t>(end.bits())}};
}

View view_of(const Conn& c, Side own, const IpAddress& resolved) {
  View v{c.left,       c.right,       c.left_port,     c.right_port,
         c.leftsubnet, c.rightsubnet, c.leftprotoport, c.rightprotoport};
  if (own == Side::right) {
    std::swap(v.local, v.remote);
    std::swap(v.local_port, v.remote_port);
    std::swap(v.own, v.peer);
    std::swap(v.own_ports, v.peer_ports);
  }
  if (local_is_default_route(c, own)) v.local = resolved;
  if (c.action != PolicyAction::protect) {
    v.own = or_host(v.own, v.local);
    v.peer = or_host(v.peer, v.remote);
    return v;
  }
  if (v.remote.family == Family::none) v.remote = IpAddress::any(v.local.family);
  if (v.local.family != v.remote.family)
    refuse(c, "left and right are of different families; write two IPv4 or two IPv6 addresses");
  v.own = or_host(v.own, v.local);
  v.peer = or_host(v.peer, v.remote);
  if (c.encapsulation == Encapsulation::esp) v.local_port = v.remote_port = 0;
  return v;
}

// The most specific pair wins, and of two as long the one that says more about the peer; then a
// range, ports, a protocol. Equal lengths give priorities near each other, so that the data plane
// can keep them in one table.
std::uint32_t priority_of(const Selector& out) {
  constexpr std::uint32_t kWorst = 1024, kStep = 8;
  const std::uint32_t own = out.source.length, peer = out.destination.length;
  const bool ports = out.source_port_first != 0 || out.source_port_last != 65535 ||
                     out.destination_port_first != 0 || out.destination_port_last != 65535;
  return kStep * (kWorst - 2 * (own + peer) - (peer > own ? 1 : 0)) -
         (out.source_range || out.destination_range ? 4 : 0) - (ports ? 2 : 0) -
         (out.protocol != 0 ? 1 : 0);
}

// As outbound packets have it. The type and code of ICMP stand where the ports do, and are those of
// the packet, whoever sends it (ip-xfrm(8)).
Selector selector_of(const View& v, const Subnet& own, const Subnet& peer) {
  Selector s;
  s.source = own.prefix;
  s.destination = peer.prefix;
  s.source_range = own.range;
  s.destination_range = peer.range;
  s.protocol = v.own_ports.protocol != 0 ? v.own_ports.protocol : v.peer_ports.protocol;
  if (v.own_ports.is_icmp() || v.peer_ports.is_icmp()) {
    const ProtoPort& icmp = v.own_ports.any_port() ? v.peer_ports : v.own_ports;
    s.source_port_first = icmp.first;
    s.source_port_last = icmp.last;
    s.destination_port_first = icmp.code_first;
    s.destination_port_last = icmp.code_last;
    return s;
  }
  s.source_port_first = v.own_ports.first;
  s.source_port_last = v.own_ports.last;
  s.destination_port_first = v.peer_ports.first;
  s.destination_port_last = v.peer_ports.last;
  return s;
}

Selector reversed(const View& v, Selector s) {
  std::swap(s.source, s.destination);
  std::swap(s.source_range, s.destination_range);
  if (v.own_ports.is_icmp() || v.peer_ports.is_icmp()) return s;
  std::swap(s.source_port_first, s.destination_port_first);
  std::swap(s.source_port_last, s.destination_port_last);
  return s;
}

void add_policies(const Conn& c, const View& v, std::uint32_t reqid, Compiled& result) {
  const bool tunnel = c.action == PolicyAction::protect;
  const bool default_device = tunnel && c.vti_interface.empty();
  for (const Subnet& own : v.own)
    for (const Subnet& peer : v.peer) {
      if (own.family() != peer.family()) continue;
      PolicySpec out;
      out.direction = Direction::out;
      out.action = c.action;
      out.selector = selector_of(v, own, peer);
      out.mark = default_device ? kDefaultDeviceMark : c.mark_out;
      out.priority = c.priority.value_or(priority_of(out.selector));
      out.reqid = tunnel ? reqid : 0;
      out.name = c.name;
      PolicySpec in = out;
      in.direction = Direction::in;
      in.selector = reversed(v, out.selector);
      in.mark = default_device ? kDefaultDeviceMark : c.mark_in;
      result.policies.push_back(std::move(out));
      // What came through no tunnel never comes here: there is nothing to let by.
      if (c.action != PolicyAction::bypass) result.policies.push_back(std::move(in));
    }
  if (result.policies.empty())
    refuse(c, "no leftsubnet and rightsubnet are of one family; write two that are");
}

std::vector<Prefix> routes_to(const std::vector<Subnet>& subnets) {
  std::vector<Prefix> out;
  for (const Subnet& subnet : subnets)
    for (const Prefix& prefix : subnet.prefixes()) out.push_back(prefix);
  return out;
}

// A conn without SAs. Only what is to be discarded needs a device: one into which it is routed.
Compiled compile_policies(const Conn& c, const View& v, std::uint32_t reqid) {
  Compiled result;
  result.has_sas = false;
  result.sa_out.reqid = reqid;
  result.device.name = kDefaultDevice;
  result.device.carrier_follows_sa = false;
  if (c.action == PolicyAction::discard && c.vti_routing) result.routes = routes_to(v.peer);
  result.uses_device = !result.routes.empty();
  add_policies(c, v, reqid, result);
  return result;
}

SaSpec sa_of(const Conn& c, const View& v, std::uint32_t reqid) {
  SaSpec sa;
  sa.reqid = reqid;
  sa.encapsulation = c.encapsulation;
  sa.local = {v.local, v.local_port};
  sa.peer = {v.remote, v.remote_port};
  sa.suite = c.esp;
  sa.esn = c.esn;
  sa.window_bits = c.replay_window;
  sa.follow_peer = c.encapsulation == Encapsulation::udp && c.nat_follow;
  sa.outer_mark = c.mark_outer;
  sa.outer = c.outer;
  sa.tfc_padding = c.tfc;
  sa.mss_clamp = c.mss_clamp;
  sa.name = c.name;
  return sa;
}

}  // namespace

Side orient(const Conn& conn, const std::function<bool(const IpAddress&)>& is_local) {
  const auto mine = [&](const IpAddress& end, bool default_route) {
    return default_route || (end.family != Family::none && is_local(end));
  };
  const bool left = mine(conn.left, conn.left_is_default_route);
  const bool right = mine(conn.right, conn.right_is_default_route);
  if (conn.action != PolicyAction::protect) return right && !left ? Side::right : Side::left;
  if (left && right)
    refuse(conn, "conn " + conn.name +
                     " has two ends on this host; write the peer's address in "
                     "one of them");
  if (!left && !right)
    refuse(conn, "conn " + conn.name +
                     ": neither left nor right is an address of this host; write "
                     "one that is, or %defaultroute");
  return left ? Side::left : Side::right;
}

bool local_is_default_route(const Conn& conn, Side own) noexcept {
  return own == Side::left ? conn.left_is_default_route : conn.right_is_default_route;
}

const IpAddress& remote_address(const Conn& conn, Side own) noexcept {
  return own == Side::left ? conn.right : conn.left;
}

std::vector<Subnet> peer_subnets(const Conn& conn, Side own) {
  return or_host(own == Side::left ? conn.rightsubnet : conn.leftsubnet, remote_address(conn, own));
}

std::optional<Prefix> looping_route(const Conn& conn, Side own) {
  if (!conn.vti_routing || conn.action != PolicyAction::protect) return std::nullopt;
  if (conn.mark_outer != 0) return std::nullopt;
  const IpAddress& remote = remote_address(conn, own);
  const Family local_family =
      remote_address(conn, own == Side::left ? Side::right : Side::left).family;
  for (const Prefix& route : routes_to(peer_subnets(conn, own))) {
    // A peer at an unknown address is certain to be covered only by everything.
    const bool covers_unknown =
        remote.family == Family::none && route.length == 0 &&
        (local_family == Family::none || local_family == route.address.family);
    if (covers_unknown || route.contains(remote)) return route;
  }
  return std::nullopt;
}

std::string loop_text(const Conn& conn, Side own, const Prefix& route) {
  const IpAddress& remote = remote_address(conn, own);
  const std::string peer = remote.family == Family::none ? "%any" : remote.str();
  const std::string device =
      conn.vti_interface.empty() ? std::string(kDefaultDevice) : conn.vti_interface;
  return "a route to " + route.str() + " covers the peer " + peer +
         " itself and would lead the tunnel's own packets into the tunnel; write mark-outer=auto, "
         "which "
         "routes those by a rule of their own, or vti-routing=no, and make the routes you want by "
         "hand (ip route add PREFIX dev " +
         device + ")";
}

std::string str(const Conn& conn, Side side, const Subnet& subnet) {
  const ProtoPort& ports = side == Side::left ? conn.leftprotoport : conn.rightprotoport;
  return subnet.str() + (ports.protocol == 0 ? "" : " " + ports.str());
}

Compiled compile(const Conn& conn, Side own, const IpAddress& local, StaticKeys keys,
                 std::uint32_t reqid) {
  const View v = view_of(conn, own, local);
  if (conn.action != PolicyAction::protect) return compile_policies(conn, v, reqid);
  if (keys.suite != conn.esp)
    refuse(conn, "the keys are for " + std::string(crypto::info(keys.suite).name) +
                     "; write esp=" + std::string(crypto::info(keys.suite).name));
  if (const auto route = looping_route(conn, own)) refuse(conn, loop_text(conn, own, *route));

  Compiled result;
  const bool default_device = conn.vti_interface.empty();
  const bool shared = default_device || conn.vti_shared;
  result.device.name = default_device ? std::string(kDefaultDevice) : conn.vti_interface;
  result.device.ikey = conn.mark_in.value;
  result.device.okey = conn.mark_out.value;
  // Nobody runs a routing daemon on the default device, and senders are told more by ICMP.
  result.device.carrier_follows_sa = !default_device && conn.vti_carrier_follows;
  result.device.local = shared ? IpAddress{} : v.local;
  result.device.remote = shared ? IpAddress{} : v.remote;
  result.mtu = conn.mtu;
  result.addresses = own == Side::left ? conn.leftvti : conn.rightvti;
  if (conn.vti_routing) {
    for (const Prefix& route : routes_to(v.peer)) {
      const bool may_loop = route.address.family == v.remote.family &&
                            (v.remote.is_any() || route.contains(v.remote));
      (may_loop && conn.mark_outer != 0 ? result.unmarked_routes : result.routes).push_back(route);
    }
  }
  add_policies(conn, v, reqid, result);

  result.sa_out = sa_of(conn, v, reqid);
  result.sa_out.direction = Direction::out;
  result.sa_out.spi = keys.spi_out;
  result.sa_out.keymat = std::move(keys.keymat_out);
  result.sa_in = sa_of(conn, v, reqid);
  result.sa_in.direction = Direction::in;
  result.sa_in.spi = keys.spi_in;
  result.sa_in.keymat = std::move(keys.keymat_in);
  return result;
}

}  // namespace espalier::tools
