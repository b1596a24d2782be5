#include "tools/device_pool.h"

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
  set_ipv6(device, "disable_ipv6", 0);
}

}  // namespace

bool same_device(const dataplane::DeviceSpec& a, const dataplane::DeviceSpec& b) {
  return a.name == b.name && a.ikey == b.ikey && a.okey == b.okey && a.local == b.local &&
         a.remote == b.remote && a.if_id == b.if_id;
}

DeviceLease& DeviceLease::operator=(DeviceLease&& other) noexcept {
  if (this == &other) return *this;
  release();
  pool_ = std::exchange(other.pool_, nullptr);
  device_ = std::move(other.device_);
  mtu_ = other.mtu_;
  addresses_ = std::move(other.addresses_);
  routes_ = std::move(other.routes_);
  return *this;
}

void DeviceLease::add_routes(const std::vector<ifaces::Prefix>& routes) {
  DevicePool::Device& device = pool_->devices_.at(device_);
  for (const ifaces::Prefix& route : routes) {
    unsigned& users = device.routes[route];
    if (users == 0) pool_->netlink_.add_route(device_, route);
    ++users;
    routes_.push_back(route);
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
  ++device.users;
  device.mtus.insert(mtu_);
  for (const ifaces::Prefix& address : addresses_) ++device.addresses[address];
  for (const ifaces::Prefix& route : routes_) ++device.routes[route];
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
    return;
  }
  for (const ifaces::Prefix& route : lease.routes_)
    if (--device.routes[route] == 0) attempt([&] { netlink_.remove_route(lease.device_, route); });
  for (const ifaces::Prefix& address : lease.addresses_)
    if (--device.addresses[address] == 0)
      attempt([&] { netlink_.remove_address(lease.device_, address); });
  device.mtus.erase(device.mtus.find(lease.mtu_));
  attempt([&] { netlink_.set_link(lease.device_, {*device.mtus.begin(), true, true}); });
}

void DevicePool::remove(const std::string& name) noexcept {
  const auto found = devices_.find(name);
  attempt([&] { dataplane_.remove_device(found->second.id); });
  devices_.erase(found);
}

}  // namespace espalier::tools
