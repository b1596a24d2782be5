#include "tools/xfrm/policy_routes.h"

#include <netinet/in.h>

#include <exception>
#include <optional>

#include "dataplane/esp.h"
#include "ifaces/tun.h"
#include "tools/compile.h"

namespace espalier::tools::xfrm {
namespace {

using dataplane::Selector;
using ifaces::IpAddress;
using ifaces::PolicyRule;
using ifaces::Prefix;

// In front of strongSwan's rule (220), whose table leads the same packets to the gateway, in clear.
constexpr std::uint32_t kOuterRule = 210;
constexpr std::uint32_t kInnerRule = 211;
constexpr std::uint32_t kTable = 4501;
constexpr std::uint32_t kMainTable = 254;
constexpr std::uint16_t kIke = 500, kNatt = 4500;
constexpr std::uint16_t kLastPort = 65535;
constexpr std::size_t kPath = 1500;

Prefix host(const IpAddress& address) {
  return {address, static_cast<std::uint8_t>(address.bits())};
}

// Rules can name ports of these only (fib_rules: the flow's ports).
PolicyRule::Ports ports(const Selector& selector, std::uint16_t first, std::uint16_t last) {
  const std::uint8_t p = selector.protocol;
  const bool has = p == IPPROTO_TCP || p == IPPROTO_UDP || p == IPPROTO_SCTP || p == IPPROTO_DCCP;
  if (!has || (first == 0 && last == kLastPort)) return {};
  return {first, last};
}

PolicyRule rule_of(const Selector& selector) {
  PolicyRule rule;
  rule.priority = kInnerRule;
  rule.to = selector.destination;
  rule.table = kTable;
  rule.from = selector.source;
  rule.protocol = selector.protocol;
  rule.source_ports = ports(selector, selector.source_port_first, selector.source_port_last);
  rule.destination_ports =
      ports(selector, selector.destination_port_first, selector.destination_port_last);
  return rule;
}

}  // namespace

void PolicyRoutes::add(Way& way, const PolicyRule& rule) {
  const auto [entry, added] = rules_.try_emplace(rule, 0U);
  try {
    if (added) policy_rules_.add(rule);
    way.rules_.push_back(rule);
  } catch (...) {
    if (added) rules_.erase(entry);
    throw;
  }
  ++entry->second;
}

std::unique_ptr<PolicyRoutes::Way> PolicyRoutes::open(const Selector& selector,
                                                      const IpAddress& local,
                                                      const IpAddress& remote) {
  auto way = std::make_unique<Way>(*this);
  dataplane::DeviceSpec device;
  device.name = kDefaultDevice;
  device.carrier_follows_sa = false;
  device.holdable = keep_ != nullptr;
  const bool v6 = selector.destination.address.family == ifaces::Family::v6;
  // What the usual path and the suite that takes most of it leave; the SAs come later.
  const std::size_t mtu =
      dataplane::inner_mtu(crypto::info(crypto::Suite::aes_gcm256), kPath, v6, true);
  way->device_ =
      devices_.lease(device, static_cast<unsigned>(mtu), {}, v6 ? Ipv6Use::unicast : Ipv6Use::none);
  hold();

  // Where the selector has our own outer packets too, those stay outside.
  if (selector.source.contains(local) && selector.destination.contains(remote) && !local.is_any() &&
      !remote.is_any()) {
    PolicyRule outer;
    outer.priority = kOuterRule;
    outer.to = host(remote);
    outer.table = kMainTable;
    outer.from = host(local);
    outer.protocol = IPPROTO_ESP;
    add(*way, outer);
    outer.protocol = IPPROTO_UDP;
    for (const std::uint16_t port : {kIke, kNatt}) {
      outer.source_ports = {port, port};
      add(*way, outer);
    }
  }

  const ifaces::Family family = selector.destination.address.family;
  const auto [barrier, first] = barriers_.try_emplace(family, 0U);
  ++barrier->second;
  way->behind_barrier_ = family;
  if (first) netlink_.add_unreachable({ifaces::IpAddress::any(family), 0}, kTable);
  // The route before the rule: from that on packets are led to it.
  const Prefix& to = selector.destination;
  const auto [route, added] = routes_.try_emplace(to, 0U);
  way->routes_.push_back(to);
  ++route->second;
  if (added) {
    const auto own = netlink_.local_in(selector.source);
    netlink_.add_route(device.name, to, own.value_or(IpAddress{}), kTable);
  }
  PolicyRule rule = rule_of(selector);
  add(*way, rule);
  // What this host sends may have no source yet; it gets the route's, which is in the selector.
  if (selector.source.length != 0) {
    rule.from = host(IpAddress::any(selector.source.address.family));
    add(*way, rule);
  }
  return way;
}

void PolicyRoutes::hold() {
  const std::string name(kDefaultDevice);
  if (keep_ == nullptr || keep_->holds().contains(name)) return;
  try {
    keep_->hold(name, ifaces::hold_tun(name));
  } catch (const std::system_error& e) {
    // One of a conn's, made for itself alone: it goes with us.
    log_.warning(e.what());
  }
}

void PolicyRoutes::close(Way& way) noexcept {
  if (leaving_) return;
  const auto attempt = [this](const auto& undo) {
    try {
      undo();
    } catch (const std::exception& e) {
      log_.warning(e.what());
    }
  };
  for (const PolicyRule& rule : way.rules_) {
    const auto found = rules_.find(rule);
    if (--found->second > 0) continue;
    rules_.erase(found);
    attempt([&] { policy_rules_.remove(rule); });
  }
  for (const Prefix& to : way.routes_) {
    const auto found = routes_.find(to);
    if (--found->second > 0) continue;
    routes_.erase(found);
    attempt([&] { netlink_.remove_route(std::string(kDefaultDevice), to, kTable); });
  }
  const auto barrier = barriers_.find(way.behind_barrier_);
  if (barrier != barriers_.end() && --barrier->second == 0) {
    barriers_.erase(barrier);
    attempt([&] {
      netlink_.remove_unreachable({ifaces::IpAddress::any(way.behind_barrier_), 0}, kTable);
    });
  }
  way.device_.release();
  const std::string name(kDefaultDevice);
  if (keep_ == nullptr || !routes_.empty()) return;
  keep_->drop(name);
  // Whoever holds it lets go a moment later.
  if (devices_.users(name) == 0) attempt([&] { netlink_.remove_link(name); });
}

}  // namespace espalier::tools::xfrm
