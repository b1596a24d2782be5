#include "tools/compile.h"

#include <algorithm>
#include <string>
#include <utility>

namespace espalier::tools {
namespace {

using dataplane::Direction;
using dataplane::Encapsulation;
using dataplane::Mark;
using dataplane::PolicySpec;
using dataplane::SaSpec;
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
  std::vector<Prefix> own, peer;
};

std::vector<Prefix> or_host(const std::vector<Prefix>& subnets, const IpAddress& end) {
  if (!subnets.empty() || end.family == Family::none) return subnets;
  return {Prefix{end, static_cast<std::uint8_t>(end.bits())}};
}

View view_of(const Conn& c, Side own, const IpAddress& resolved) {
  View v{c.left, c.right, c.left_port, c.right_port, c.leftsubnet, c.rightsubnet};
  if (own == Side::right) {
    std::swap(v.local, v.remote);
    std::swap(v.local_port, v.remote_port);
    std::swap(v.own, v.peer);
  }
  if (local_is_default_route(c, own)) v.local = resolved;
  if (v.remote.family == Family::none) v.remote = IpAddress::any(v.local.family);
  if (v.local.family != v.remote.family)
    refuse(c, "left and right are of different families; write two IPv4 or two IPv6 addresses");
  v.own = or_host(v.own, v.local);
  v.peer = or_host(v.peer, v.remote);
  if (c.encapsulation == Encapsulation::esp) v.local_port = v.remote_port = 0;
  return v;
}

// The most specific pair wins, and of two as long the one that says more about the peer. Equal
// lengths give equal priorities, so that the data plane can keep them in one table.
std::uint32_t priority_of(const Prefix& own, const Prefix& peer) {
  constexpr std::uint32_t kWorst = 1024;
  return kWorst - 2 * (std::uint32_t{own.length} + peer.length) -
         (peer.length > own.length ? 1 : 0);
}

void add_policies(const Conn& c, const View& v, std::uint32_t reqid, Compiled& result) {
  const bool default_device = c.vti_interface.empty();
  for (const Prefix& own : v.own)
    for (const Prefix& peer : v.peer) {
      if (own.address.family != peer.address.family) continue;
      PolicySpec out;
      out.direction = Direction::out;
      out.selector.source = own;
      out.selector.destination = peer;
      out.mark = default_device ? kDefaultDeviceMark : c.mark_out;
      out.priority = priority_of(own, peer);
      out.reqid = reqid;
      out.name = c.name;
      PolicySpec in = out;
      in.direction = Direction::in;
      std::swap(in.selector.source, in.selector.destination);
      in.mark = default_device ? kDefaultDeviceMark : c.mark_in;
      result.policies.push_back(std::move(out));
      result.policies.push_back(std::move(in));
    }
  if (result.policies.empty())
    refuse(c, "no leftsubnet and rightsubnet are of one family; write two that are");
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
  sa.follow_peer = c.encapsulation == Encapsulation::udp;
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

std::vector<Prefix> peer_subnets(const Conn& conn, Side own) {
  return or_host(own == Side::left ? conn.rightsubnet : conn.leftsubnet, remote_address(conn, own));
}

std::optional<Prefix> looping_route(const Conn& conn, Side own) {
  if (!conn.vti_routing) return std::nullopt;
  const IpAddress& remote = remote_address(conn, own);
  const Family local_family =
      remote_address(conn, own == Side::left ? Side::right : Side::left).family;
  for (const Prefix& route : peer_subnets(conn, own)) {
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
         " itself and would lead the tunnel's own packets into the tunnel; write vti-routing=no, "
         "and make the routes you want by hand (ip route add PREFIX dev " +
         device + ")";
}

Compiled compile(const Conn& conn, Side own, const IpAddress& local, StaticKeys keys,
                 std::uint32_t reqid) {
  if (keys.suite != conn.esp)
    refuse(conn, "the keys are for " + std::string(crypto::info(keys.suite).name) +
                     "; write esp=" + std::string(crypto::info(keys.suite).name));
  const View v = view_of(conn, own, local);
  if (const auto route = looping_route(conn, own)) refuse(conn, loop_text(conn, own, *route));

  Compiled result;
  const bool default_device = conn.vti_interface.empty();
  const bool shared = default_device || conn.vti_shared;
  result.device.name = default_device ? std::string(kDefaultDevice) : conn.vti_interface;
  result.device.ikey = conn.mark_in.value;
  result.device.okey = conn.mark_out.value;
  result.device.local = shared ? IpAddress{} : v.local;
  result.device.remote = shared ? IpAddress{} : v.remote;
  result.mtu = conn.mtu;
  result.addresses = own == Side::left ? conn.leftvti : conn.rightvti;
  if (conn.vti_routing) result.routes = v.peer;
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
