#include "tools/device_pool.h"

#include <net/if.h>

#include <array>
#include <cerrno>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace espalier::tools {
namespace {

// The kernel takes the larger of a device's value and `all`'s (ip-sysctl: rp_filter). What comes
// out of a tunnel rarely has its reverse route there, so where `all` demands the strict check (1)
// the device asks for the loose one (2); else for none, as libreswan does.
int rp_filter_value() {
  std::ifstream file("/proc/sys/net/ipv4/conf/all/rp_filter");
  int all = 0;
  file >> all;
  return all == 1 ? 2 : 0;
}

// Best effort, as in a container whose /proc/sys is read-only.
void set_ipv6(const std::string& device, const char* name, int value) {
  std::ofstream file("/proc/sys/net/ipv6/conf/" + device + "/" + name);
  file << value;
}

// Before the device is up or has an address. `before`: what it was prepared for.
void prepare_ipv6(const std::string& device, Ipv6Use use, Ipv6Use before) {
  constexpr int kNoLinkLocal = 1, kRandomLinkLocal = 3;  // IN6_ADDR_GEN_MODE_*
  switch (use) {
    case Ipv6Use::none:
      set_ipv6(device, "disable_ipv6", 1);
      return;
    case Ipv6Use::unicast:
      set_ipv6(device, "addr_gen_mode", kNoLinkLocal);
      // A router would join ff02::2, and report that. Whether packets are forwarded is decided by
      // conf/all alone (ip-sysctl).
      set_ipv6(device, "forwarding", 0);
      break;
    case Ipv6Use::multicast:
      if (before == Ipv6Use::multicast) return;  // a fresh device is as the kernel makes it
      set_ipv6(device, "addr_gen_mode", kRandomLinkLocal);
      set_ipv6(device, "forwarding", 1);
      break;
  }
  // Where a fresh device has none of it, its host wants none (conf/default).
  if (before == Ipv6Use::none) set_ipv6(device, "disable_ipv6", 0);
}

// The rules and the table of routes that must not lead outer packets. The place is any in front of
// the main table's rule (32766) that leaves room for a user's own on both sides.
constexpr std::uint32_t kOuterTable = 4500;
constexpr std::uint32_t kFirstRule = 4500;
constexpr std::uint32_t kMainTable = 254;
constexpr std::uint32_t kLastRule = kFirstRule + 1 + 2 * 129;

// Marked packets skip what follows; all others ask for each prefix, the longest first, whether the
// main table knows better, and then take our route.
std::array<ifaces::PolicyRule, 4> rules_for(const ifaces::Prefix& route, std::uint32_t mark) {
  const ifaces::Prefix anywhere{ifaces::IpAddress::any(route.address.family), 0};
  const std::uint32_t place = kFirstRule + 1 + 2 * (route.address.bits() - route.length);
  ifaces::PolicyRule end{kLastRule, anywhere, 0, 0, 0, {}};
  ifaces::PolicyRule skip{kFirstRule, anywhere, mark, 0, kLastRule, {}};
  ifaces::PolicyRule better{place, route.network(), 0, kMainTable, 0, route.length};
  ifaces::PolicyRule ours{place + 1, route.network(), 0, kOuterTable, 0, {}};
  return {end, skip, better, ours};
}

}  // namespace

bool same_device(const dataplane::DeviceSpec& a, const dataplane::DeviceSpec& b) {
  return a.name == b.name && a.ikey == b.ikey && a.okey == b.okey && a.local == b.local &&
         a.remote == b.remote && a.if_id == b.if_id && a.carrier_follows_sa == b.carrier_follows_sa;
}

DeviceLease& DeviceLease::operator=(DeviceLease&& other) noexcept {
  if (this == &other) return *this;
  release();
  pool_ = std::exchange(other.pool_, nullptr);
  device_ = std::move(other.device_);
  mtu_ = other.mtu_;
  addresses_ = std::move(other.addresses_);
  routes_ = std::move(other.routes_);
  unmarked_routes_ = std::move(other.unmarked_routes_);
  rules_ = std::move(other.rules_);
  return *this;
}

void DeviceLease::add_routes(const std::vector<ifaces::Prefix>& routes) {
  DevicePool::Device& device = pool_->devices_.at(device_);
  for (const ifaces::Prefix& route : routes) {
    unsigned& users = device.routes[route];
    if (users == 0) pool_->netlink_.add_route(device_, route);
    ++users;
    routes_.push_back(route);
    pool_->guard(route, 0);
  }
}

void DeviceLease::add_unmarked_routes(const std::vector<ifaces::Prefix>& routes,
                                      std::uint32_t mark) {
  DevicePool::Device& device = pool_->devices_.at(device_);
  for (const ifaces::Prefix& route : routes) {
    // The rules first: until they are all there the route would be a loop.
    for (const ifaces::PolicyRule& rule : rules_for(route, mark)) {
      unsigned& users = pool_->rules_[rule];
      if (users == 0) pool_->policy_rules_.add(rule);
      ++users;
      rules_.push_back(rule);
    }
    unsigned& users = device.unmarked_routes[route];
    if (users == 0) pool_->netlink_.add_route(device_, route, {}, kOuterTable);
    ++users;
    unmarked_routes_.push_back(route);
    pool_->guard(route, kOuterTable);
  }
}

void DeviceLease::release() noexcept {
  if (pool_ == nullptr) return;
  std::exchange(pool_, nullptr)->leave(*this);
}

DeviceLease DeviceLease::share() const {
  DeviceLease out;
  if (pool_ == nullptr) return out;
  DevicePool::Device& device = pool_->devices_.at(device_);
  out.pool_ = pool_;
  out.device_ = device_;
  out.mtu_ = mtu_;
  out.addresses_ = addresses_;
  out.routes_ = routes_;
  out.unmarked_routes_ = unmarked_routes_;
  out.rules_ = rules_;
  ++device.users;
  device.mtus.insert(mtu_);
  for (const ifaces::Prefix& address : addresses_) ++device.addresses[address];
  for (const ifaces::Prefix& route : routes_) ++device.routes[route];
  for (const ifaces::Prefix& route : unmarked_routes_) ++device.unmarked_routes[route];
  for (const ifaces::Prefix& route : routes_) ++pool_->guards_[{route, 0}];
  for (const ifaces::Prefix& route : unmarked_routes_) ++pool_->guards_[{route, kOuterTable}];
  for (const ifaces::PolicyRule& rule : rules_) ++pool_->rules_[rule];
  return out;
}

unsigned DeviceLease::mtu() const {
  if (pool_ == nullptr) return mtu_;
  return *pool_->devices_.at(device_).mtus.begin();
}

DeviceLease DevicePool::lease(const dataplane::DeviceSpec& spec, unsigned mtu,
                              const std::vector<ifaces::Prefix>& addresses, Ipv6Use ipv6) {
  auto found = devices_.find(spec.name);
  if (found != devices_.end() && !same_device(found->second.spec, spec))
    throw std::invalid_argument("device " + spec.name +
                                ": already there with other keys or end points; give the conns "
                                "that share it the same mark, left and right, or vti-shared=yes");
  Device& device = found != devices_.end() ? found->second : create(spec, ipv6);
  if (ipv6 > device.ipv6) prepare_ipv6(spec.name, ipv6, std::exchange(device.ipv6, ipv6));

  DeviceLease out;  // from here on its destructor takes back what was done
  out.pool_ = this;
  out.device_ = spec.name;
  out.mtu_ = mtu;
  ++device.users;
  device.mtus.insert(mtu);
  for (const ifaces::Prefix& address : addresses) {
    unsigned& users = device.addresses[address];
    if (users == 0) netlink_.add_address(spec.name, address);
    ++users;
    out.addresses_.push_back(address);
  }
  netlink_.set_link(spec.name, {*device.mtus.begin(), true, true});
  return out;
}

unsigned DevicePool::users(const std::string& device) const noexcept {
  const auto found = devices_.find(device);
  return found == devices_.end() ? 0 : found->second.users;
}

std::vector<std::string> DevicePool::take_gone() {
  std::vector<std::string> gone;
  for (auto& [name, device] : devices_) {
    if (device.gone || ::if_nametoindex(name.c_str()) != 0) continue;
    device.gone = true;
    gone.push_back(name);
  }
  return gone;
}

const dataplane::DeviceSpec* DevicePool::spec(const std::string& device) const noexcept {
  const auto found = devices_.find(device);
  return found == devices_.end() ? nullptr : &found->second.spec;
}

unsigned DevicePool::mtu(const std::string& device) const noexcept {
  const auto found = devices_.find(device);
  return found == devices_.end() || found->second.mtus.empty() ? 0 : *found->second.mtus.begin();
}

DevicePool::Device& DevicePool::create(const dataplane::DeviceSpec& spec, Ipv6Use ipv6) {
  Device device;
  device.spec = spec;
  device.id = dataplane_.add_device(spec);
  device.ipv6 = ipv6;
  relax(spec.name);
  prepare_ipv6(spec.name, ipv6, ipv6);
  return devices_.insert_or_assign(spec.name, std::move(device)).first->second;
}

void DevicePool::relax(const std::string& device) {
  const bool done = ifaces::set_device_sysctl(device, "disable_policy", 1) &&
                    ifaces::set_device_sysctl(device, "rp_filter", rp_filter_value()) &&
                    ifaces::set_device_sysctl(device, "forwarding", 1);
  if (!done)
    log_.warning("device " + device +
                 ": rp_filter and forwarding could not be set (is /proc/sys read-only?); packets "
                 "between sites may be dropped until they are");
}

template <typename Undo>
void DevicePool::attempt(Undo undo) noexcept {
  try {
    undo();
  } catch (const std::system_error& e) {
    // Somebody else was faster: `ip link del`, `ip route del`.
    const int code = e.code().value();
    const bool gone = code == ENODEV || code == ESRCH || code == ENOENT || code == EADDRNOTAVAIL;
    if (!gone) log_.warning(e.what());
  } catch (const std::exception& e) {
    log_.warning(e.what());
  }
}

void DevicePool::leave(DeviceLease& lease) noexcept {
  const auto found = devices_.find(lease.device_);
  if (found == devices_.end()) return;
  Device& device = found->second;
  if (--device.users == 0) {
    remove(lease.device_);  // addresses and routes go with it
    remove_rules(lease);
    unguard(lease);
    return;
  }
  for (const ifaces::Prefix& route : lease.unmarked_routes_)
    if (--device.unmarked_routes[route] == 0)
      attempt([&] { netlink_.remove_route(lease.device_, route, kOuterTable); });
  remove_rules(lease);
  for (const ifaces::Prefix& route : lease.routes_)
    if (--device.routes[route] == 0) attempt([&] { netlink_.remove_route(lease.device_, route); });
  unguard(lease);
  for (const ifaces::Prefix& address : lease.addresses_)
    if (--device.addresses[address] == 0)
      attempt([&] { netlink_.remove_address(lease.device_, address); });
  device.mtus.erase(device.mtus.find(lease.mtu_));
  attempt([&] { netlink_.set_link(lease.device_, {*device.mtus.begin(), true, true}); });
}

// After the route itself: what fails here leaves no route without a lease.
void DevicePool::guard(const ifaces::Prefix& route, std::uint32_t table) {
  unsigned& users = guards_[{route, table}];
  ++users;
  if (users == 1) netlink_.add_unreachable(route, table);
}

void DevicePool::unguard(const DeviceLease& lease) noexcept {
  const auto leave = [this](const ifaces::Prefix& route, std::uint32_t table) {
    const auto found = guards_.find({route, table});
    if (found == guards_.end() || --found->second > 0) return;
    guards_.erase(found);
    attempt([&] { netlink_.remove_unreachable(route, table); });
  };
  for (const ifaces::Prefix& route : lease.routes_) leave(route, 0);
  for (const ifaces::Prefix& route : lease.unmarked_routes_) leave(route, kOuterTable);
}

void DevicePool::remove_rules(const DeviceLease& lease) noexcept {
  for (const ifaces::PolicyRule& rule : lease.rules_) {
    const auto found = rules_.find(rule);
    if (found == rules_.end() || --found->second > 0) continue;
    rules_.erase(found);
    attempt([&] { policy_rules_.remove(rule); });
  }
}

void DevicePool::remove(const std::string& name) noexcept {
  const auto found = devices_.find(name);
  attempt([&] { dataplane_.remove_device(found->second.id); });
  devices_.erase(found);
}

}  // namespace espalier::tools
