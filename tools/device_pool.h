// The TUN devices of the conns: several may share one, the last to leave takes it down.
//
// Thread safety: the control thread.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "dataplane/dataplane.h"
#include "ifaces/netlink.h"
#include "ifaces/policy_rule.h"
#include "tools/log.h"

namespace espalier::tools {

class DevicePool;

// What the conns of a device carry of IPv6. A device that carries none of it, or not the kernel's
// own chatter (RFC 3810 reports, RFC 4861 solicitations), must not make it: with no policy for it,
// it would only be dropped and counted. A kernel VTI for IPv4 is as silent.
enum class Ipv6Use : std::uint8_t {
  none,
  unicast,
  multicast  // link-local multicast too, as routing daemons need it
};

// Would two conns with these have one device in common?
[[nodiscard]] bool same_device(const dataplane::DeviceSpec& a, const dataplane::DeviceSpec& b);

// A conn's share of a device: while it lives, the device, these addresses and these routes are
// there. Must not outlive the pool.
class DeviceLease {
 public:
  DeviceLease() = default;
  DeviceLease(DeviceLease&& other) noexcept { *this = std::move(other); }
  DeviceLease& operator=(DeviceLease&& other) noexcept;
  ~DeviceLease() { release(); }

  // Throws std::system_error; what was added before stays.
  void add_routes(const std::vector<ifaces::Prefix>& routes);
  // The same, but packets that bear `mark` are routed as if these were not there (Linux's rules,
  // `ip rule`): what the main table knows better still goes its way, as among routes of one table.
  void add_unmarked_routes(const std::vector<ifaces::Prefix>& routes, std::uint32_t mark);
  void release() noexcept;
  // Another lease of the same: what replaces a conn comes up while the routes still lead into the
  // device, so that nothing leaves in the clear meanwhile.
  [[nodiscard]] DeviceLease share() const;

  [[nodiscard]] bool held() const noexcept { return pool_ != nullptr; }
  // The device's, which is the smallest of those that its conns can carry.
  [[nodiscard]] unsigned mtu() const;

 private:
  friend class DevicePool;
  DevicePool* pool_ = nullptr;
  std::string device_;
  unsigned mtu_ = 0;
  std::vector<ifaces::Prefix> addresses_, routes_, unmarked_routes_;
  std::vector<ifaces::PolicyRule> rules_;
};

class DevicePool {
 public:
  DevicePool(dataplane::Dataplane& dataplane, ifaces::Netlink& netlink, const Log& log)
      : dataplane_(dataplane), netlink_(netlink), log_(log) {}

  // The device as libreswan's updown script makes a VTI: created, kernel's checks that a tunnel
  // cannot pass switched off, addressed, MTU set, up, multicast on. Throws std::invalid_argument
  // if it is there with other keys or end points, std::system_error if the kernel refuses; then
  // nothing has changed.
  [[nodiscard]] DeviceLease lease(const dataplane::DeviceSpec& spec, unsigned mtu,
                                  const std::vector<ifaces::Prefix>& addresses, Ipv6Use ipv6);

  // How many leases a device has; 0: it is none of ours.
  [[nodiscard]] unsigned users(const std::string& device) const noexcept;
  // Those that somebody has deleted since this was asked last.
  [[nodiscard]] std::vector<std::string> take_gone();
  // Null, 0: likewise.
  [[nodiscard]] const dataplane::DeviceSpec* spec(const std::string& device) const noexcept;
  [[nodiscard]] unsigned mtu(const std::string& device) const noexcept;

 private:
  friend class DeviceLease;
  struct Device {
    dataplane::DeviceSpec spec;
    dataplane::DeviceId id{};
    unsigned users = 0;
    Ipv6Use ipv6{};
    bool gone = false;
    std::multiset<unsigned> mtus;
    // And how many conns want it.
    std::map<ifaces::Prefix, unsigned> addresses, routes, unmarked_routes;
  };

  Device& create(const dataplane::DeviceSpec& spec, Ipv6Use ipv6);
  void relax(const std::string& device);
  void leave(DeviceLease& lease) noexcept;
  void remove_rules(const DeviceLease& lease) noexcept;
  void guard(const ifaces::Prefix& route, std::uint32_t table);
  void unguard(const DeviceLease& lease) noexcept;
  void remove(const std::string& name) noexcept;
  // Runs `undo`; what fails while taking down is told, and does not stop the rest.
  template <typename Undo>
  void attempt(Undo undo) noexcept;

  dataplane::Dataplane& dataplane_;
  ifaces::Netlink& netlink_;
  const Log& log_;
  ifaces::PolicyRules policy_rules_;
  std::map<ifaces::PolicyRule, unsigned> rules_;  // and how many leases want it
  // Prefixes whose packets must not find another way while the device, and its routes, are gone: by
  // `ip link del`, or because we were killed. And how many leases want it.
  std::map<std::pair<ifaces::Prefix, std::uint32_t>, unsigned> guards_;
  std::map<std::string, Device> devices_;
};

}  // namespace espalier::tools
