// Devices, addresses and routes by rtnetlink (libnl-route-3).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ifaces/address.h"

namespace espalier::ifaces {

// Every call throws std::system_error that names the operation and the device. Not thread-safe.
class Netlink {
 public:
  Netlink();
  Netlink(Netlink&&) noexcept;
  Netlink& operator=(Netlink&&) noexcept;
  ~Netlink();

  struct LinkSettings {
    unsigned mtu = 0;  // 0: leave
    bool up = true;
    bool multicast = true;
  };
  void set_link(const std::string& device, const LinkSettings& settings);
  [[nodiscard]] bool link_exists(const std::string& device);
  [[nodiscard]] unsigned device_mtu(const std::string& device);
  // A device that is not there is no error.
  void remove_link(const std::string& device);
  void add_address(const std::string& device, const Prefix& address);
  void remove_address(const std::string& device, const Prefix& address);
  // `source`: preferred source address, if set. Replaces a route of ours to the same prefix.
  // `table` 0: main.
  void add_route(const std::string& device, const Prefix& to, const IpAddress& source = {},
                 std::uint32_t table = 0);
  void remove_route(const std::string& device, const Prefix& to, std::uint32_t table = 0);
  // What is left of a prefix when every other route to it is gone: ICMP unreachable. One that is
  // there already is ours.
  void add_unreachable(const Prefix& to, std::uint32_t table = 0);
  void remove_unreachable(const Prefix& to, std::uint32_t table = 0);
  // Is it an address of this host?
  [[nodiscard]] bool is_local(const IpAddress& address);
  // One of this host's addresses in `range`.
  [[nodiscard]] std::optional<IpAddress> local_in(const Prefix& range);
  // The same, of those that are good outside of a host and a link.
  [[nodiscard]] std::optional<IpAddress> global_in(const Prefix& range);
  // The source address of the default route (libreswan's %defaultroute).
  [[nodiscard]] std::optional<IpAddress> default_source(Family family);
  // The device that a packet to `to` would leave through.
  [[nodiscard]] std::string route_device(const IpAddress& to);
  // Where a packet between the two goes first, if not to `to` itself.
  [[nodiscard]] std::optional<IpAddress> gateway(const IpAddress& to, const IpAddress& from);
  // The MTU of that device, whatever the kernel has heard of the path behind it. `mark`: SO_MARK of
  // the packet.
  [[nodiscard]] unsigned link_mtu(const IpAddress& to, std::uint32_t mark);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Writes /proc/sys/net/ipv4/conf/DEVICE/NAME; what libreswan's updown script sets for a VTI.
// Returns false where it cannot be written (a read-only /proc in a container).
bool set_device_sysctl(const std::string& device, const std::string& name, int value);

}  // namespace espalier::ifaces
