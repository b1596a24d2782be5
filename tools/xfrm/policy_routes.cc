#include "tools/xfrm/policy_routes.h"

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <exception>
#include <optional>
#include <system_error>

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
constexpr std::uint32_t kPastRule = 210;
constexpr std::uint32_t kInnerRule = 211;
// Of IPv6, around the rules for packets that have no source yet: "from any" is true of them in IPv4
// alone, so those that have one skip rules that ask for none (fib6_rule_match).
constexpr std::uint32_t kSourcedRule = 212, kNearRule = 213, kUnsourcedRule = 214;
constexpr std::uint32_t kGoOnRule = 215;
constexpr std::uint32_t kTable = 4501;
constexpr std::uint32_t kMainTable = 254;
constexpr std::uint16_t kIke = 500;
constexpr std::uint16_t kLastPort = 65535;
constexpr std::size_t kPath = 1500;

Prefix host(const IpAddress& address) {
  return {address, static_cast<std::uint8_t>(address.bits())};
}
Prefix anywhere(ifaces::Family family) {
  return {IpAddress::any(family), 0};
}

PolicyRule past_rule(const Prefix& to) {
  PolicyRule rule;
  rule.priority = kPastRule;
  rule.to = to;
  rule.skip_to = kGoOnRule;
  return rule;
}

// What others send to be forwarded is no packet of ours, whatever its ports.
PolicyRule own_rule(ifaces::Family family, std::uint8_t protocol, std::uint16_t port) {
  PolicyRule rule = past_rule(anywhere(family));
  rule.protocol = protocol;
  rule.source_ports = {port, port};
  rule.own = true;
  return rule;
}

PolicyRule go_on_rule(ifaces::Family family) {
  PolicyRule rule;
  rule.priority = kGoOnRule;
  rule.to = anywhere(family);
  return rule;
}

std::array<PolicyRule, 2> sourced_rules() {
  PolicyRule rule = past_rule(anywhere(ifaces::Family::v6));
  rule.priority = kSourcedRule;
  std::array<PolicyRule, 2> halves{rule, rule};
  halves[0].from = halves[1].from = {IpAddress::any(ifaces::Family::v6), 1};
  halves[1].from.address.bytes[0] = 0x80;
  return halves;
}

PolicyRule near_rule(const IpAddress& gateway) {
  PolicyRule rule;
  rule.to = host(gateway);
  rule.table = kMainTable;
  return rule;
}

// The same for packets that have no source yet.
PolicyRule unsourced(PolicyRule rule, std::uint32_t v4, std::uint32_t v6) {
  const ifaces::Family family = rule.to.address.family;
  rule.priority = family == ifaces::Family::v4 ? v4 : v6;
  rule.from = family == ifaces::Family::v4 ? host(IpAddress::any(family)) : Prefix{};
  return rule;
}

bool overlap(const Prefix& a, const Prefix& b) {
  return a.length <= b.length ? a.contains(b.address) : b.contains(a.address);
}

// Is there a packet that both have? Ranges that are no prefix count as the prefix around them.
bool overlap(const Selector& a, const Selector& b) {
  return overlap(a.source, b.source) && overlap(a.destination, b.destination) &&
         (a.protocol == 0 || b.protocol == 0 || a.protocol == b.protocol) &&
         a.source_port_first <= b.source_port_last && b.source_port_first <= a.source_port_last &&
         a.destination_port_first <= b.destination_port_last &&
         b.destination_port_first <= a.destination_port_last;
}

// As the data plane orders them.
bool comes_before(const PolicyRoutes::Wish& a, const PolicyRoutes::Wish& b) {
  const auto bits = [](const Selector& s) { return s.source.length + s.destination.length; };
  if (a.spec.priority != b.spec.priority) return a.spec.priority < b.spec.priority;
  if (bits(a.spec.selector) != bits(b.spec.selector))
    return bits(a.spec.selector) > bits(b.spec.selector);
  return a.id < b.id;
}

bool lets_pass(const PolicyRoutes::Wish& wish) {
  return wish.spec.action == dataplane::PolicyAction::bypass;
}

// Rules can name ports of these only (fib_rules: the flow's ports).
PolicyRule::Ports ports(const Selector& selector, std::uint16_t first, std::uint16_t last) {
  const std::uint8_t p = selector.protocol;
  const bool has = p == IPPROTO_TCP || p == IPPROTO_UDP || p == IPPROTO_SCTP || p == IPPROTO_DCCP;
  if (!has || last == 0 || (first == 0 && last == kLastPort)) return {};
  return {std::max(first, std::uint16_t{1}), last};  // 0 is no port
}

// False: rules have no words for it, and would have more packets.
bool can_say(const Selector& selector) {
  const auto all = [](std::uint16_t first, std::uint16_t last) {
    return first == 0 && last == kLastPort;
  };
  const bool with_ports = ports(selector, 0, 1).last != 0 ||
                          (all(selector.source_port_first, selector.source_port_last) &&
                           all(selector.destination_port_first, selector.destination_port_last));
  const bool from_zero = selector.source_port_last == 0 || selector.destination_port_last == 0;
  return with_ports && !from_zero && !selector.source_range && !selector.destination_range;
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

template <class Action>
void PolicyRoutes::attempt(const Action& action) const noexcept {
  try {
    action();
  } catch (const std::exception& e) {
    log_.warning(e.what());
  }
}

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

void PolicyRoutes::remove_if_there(const PolicyRule& rule) {
  try {
    policy_rules_.remove(rule);
  } catch (const std::system_error& e) {
    if (e.code().value() != ENOENT) throw;
  }
}

void PolicyRoutes::drop_rules(Way& way) noexcept {
  for (const PolicyRule& rule : way.rules_) {
    const auto found = rules_.find(rule);
    if (--found->second > 0) continue;
    rules_.erase(found);
    attempt([&] { policy_rules_.remove(rule); });
  }
  way.rules_.clear();
}

std::unique_ptr<PolicyRoutes::Way> PolicyRoutes::open(Wish wish) {
  auto way = std::make_unique<Way>(*this, std::move(wish));
  ways_.insert(way.get());
  if (lets_pass(way->wish_)) {
    let_pass(*way);
  } else {
    look_again();
    lead(*way);
  }
  return way;
}

bool PolicyRoutes::may_pass(const Way& way) const noexcept {
  return can_say(way.wish_.spec.selector) &&
         std::none_of(ways_.begin(), ways_.end(), [&way](const Way* other) {
           return !lets_pass(other->wish_) && comes_before(other->wish_, way.wish_) &&
                  overlap(other->wish_.spec.selector, way.wish_.spec.selector);
         });
}

// Not those without a source yet: the one that they get may be another policy's.
void PolicyRoutes::let_pass(Way& way) {
  if (!way.rules_.empty() || !any() || !may_pass(way)) return;
  PolicyRule rule = rule_of(way.wish_.spec.selector);
  rule.priority = kPastRule;
  rule.table = 0;
  rule.skip_to = kGoOnRule;
  add(way, rule);
}

void PolicyRoutes::look_again() noexcept {
  for (Way* const way : ways_) {
    if (!lets_pass(way->wish_)) continue;
    if (!any() || !may_pass(*way))
      drop_rules(*way);
    else
      attempt([&] { let_pass(*way); });
  }
}

void PolicyRoutes::lead(Way& way) {
  const Selector& selector = way.wish_.spec.selector;
  dataplane::DeviceSpec device;
  device.name = kDefaultDevice;
  device.carrier_follows_sa = false;
  device.holdable = keep_ != nullptr;
  const ifaces::Family family = selector.destination.address.family;
  const bool v6 = family == ifaces::Family::v6;
  // What the usual path and the suite that takes most of it leave; the SAs come later.
  const std::size_t mtu =
      dataplane::inner_mtu(crypto::info(crypto::Suite::aes_gcm256), kPath, v6, true);
  way.device_ =
      devices_.lease(device, static_cast<unsigned>(mtu), {}, v6 ? Ipv6Use::unicast : Ipv6Use::none);
  hold();
  open_family(family);
  way.behind_barrier_ = family;
  // The route before the rule: from that on packets are led to it.
  const Prefix& to = selector.destination;
  Route& route = routes_[to];
  way.route_ = to;
  if (++route.wanted == 1 || !route.source) set_source(to, route);
  PolicyRule rule = rule_of(selector);
  add(way, rule);
  if (selector.source.length != 0) lead_unsourced(way, rule);
  look_again();
}

// What this host sends may have no source yet; it gets the route's, which is in the selector.
void PolicyRoutes::lead_unsourced(Way& way, const PolicyRule& rule) {
  const auto& [spec, id, local, remote] = way.wish_;
  // Not to the gateway: there this host's own end is its source, which is not in the selector.
  // Scripts ask so by which device the gateway is reached (libreswan's, for its routes).
  if (!local.is_any() && !remote.is_any() && !spec.selector.source.contains(local)) {
    const auto gateway = netlink_.gateway(remote, local);
    if (gateway && gateway->family == rule.to.address.family && rule.to.contains(*gateway))
      add(way, unsourced(near_rule(*gateway), kPastRule, kNearRule));
  }
  add(way, unsourced(rule, kInnerRule, kUnsourcedRule));
}

// The first of the policies of which this host has an address gives it. From anywhere: the kernel
// chooses.
void PolicyRoutes::set_source(const Prefix& to, Route& route) {
  std::optional<IpAddress> source;
  for (const Way* const way : ways_) {
    const Selector& selector = way->wish_.spec.selector;
    if (way->route_ == to && selector.source.length != 0 && !source)
      source = netlink_.global_in(selector.source);
  }
  netlink_.add_route(std::string(kDefaultDevice), to, source.value_or(IpAddress{}), kTable);
  route.source = source;
}

void PolicyRoutes::addresses_changed() noexcept {
  for (auto& [to, route] : routes_)
    // With its source address a route goes as well, or loses it.
    attempt([this, &to = to, &route = route] {
      if (!route.source || !netlink_.is_local(*route.source)) set_source(to, route);
    });
}

// What a daemon that was killed has left, and lets something pass. Not the ways: until they are
// said again, nothing of theirs leaves in clear.
void PolicyRoutes::clear_stale(ifaces::Family family) {
  const auto all = [](auto&& remove) {
    try {
      for (;;) remove();
    } catch (const std::system_error& e) {
      if (e.code().value() != ENOENT) throw;
    }
  };
  all([&] { policy_rules_.remove_jump(kPastRule, kGoOnRule, family); });
  const PolicyRule near = unsourced(near_rule(IpAddress::any(family)), kPastRule, kNearRule);
  all([&] { policy_rules_.remove_to_any(near); });
}

void PolicyRoutes::open_family(ifaces::Family family) {
  if (++barriers_[family] != 1) return;
  try {
    clear_stale(family);
    policy_rules_.add(go_on_rule(family));
    if (family == ifaces::Family::v6)
      for (const PolicyRule& rule : sourced_rules()) policy_rules_.add(rule);
    policy_rules_.add(own_rule(family, IPPROTO_ESP, 0));
    for (const std::uint16_t port : ports_) policy_rules_.add(own_rule(family, IPPROTO_UDP, port));
    look_at_ports();
    netlink_.add_unreachable(anywhere(family), kTable);
  } catch (...) {
    close_family(family);
    throw;
  }
}

void PolicyRoutes::close_family(ifaces::Family family) noexcept {
  const auto barrier = barriers_.find(family);
  if (barrier == barriers_.end() || --barrier->second > 0) return;
  barriers_.erase(barrier);
  for (const std::uint16_t port : ports_)
    attempt([&] { policy_rules_.remove(own_rule(family, IPPROTO_UDP, port)); });
  attempt([&] { policy_rules_.remove(own_rule(family, IPPROTO_ESP, 0)); });
  if (family == ifaces::Family::v6)
    for (const PolicyRule& rule : sourced_rules()) attempt([&] { policy_rules_.remove(rule); });
  attempt([&] { policy_rules_.remove(go_on_rule(family)); });
  attempt([&] { netlink_.remove_unreachable(anywhere(family), kTable); });
}

// What could not be is tried again the next time.
void PolicyRoutes::look_at_ports() noexcept {
  if (!any()) return;
  const auto change = [this](std::uint16_t port, auto&& call) {
    for (const auto& entry : barriers_) call(own_rule(entry.first, IPPROTO_UDP, port));
  };
  attempt([&] {
    std::set<std::uint16_t> wanted = dataplane_.udp_ports();
    wanted.insert(kIke);
    for (const std::uint16_t port : wanted)
      if (!ports_.contains(port))
        attempt([&] {
          change(port, [this](const PolicyRule& rule) { policy_rules_.add(rule); });
          ports_.insert(port);
        });
    for (auto next = ports_.begin(); next != ports_.end();) {
      const auto port = next++;
      if (!wanted.contains(*port))
        attempt([&] {
          change(*port, [this](const PolicyRule& rule) { remove_if_there(rule); });
          ports_.erase(port);
        });
    }
  });
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
  ways_.erase(&way);
  if (leaving_) return;
  drop_rules(way);
  if (way.route_ && --routes_.at(*way.route_).wanted == 0) {
    routes_.erase(*way.route_);
    attempt([&] { netlink_.remove_route(std::string(kDefaultDevice), *way.route_, kTable); });
  }
  if (lets_pass(way.wish_)) return;
  close_family(way.behind_barrier_);
  look_again();
  way.device_.release();
  const std::string name(kDefaultDevice);
  if (keep_ == nullptr || !routes_.empty()) return;
  keep_->drop(name);
  // Whoever holds it lets go a moment later.
  if (devices_.users(name) == 0) attempt([&] { netlink_.remove_link(name); });
}

}  // namespace espalier::tools::xfrm
