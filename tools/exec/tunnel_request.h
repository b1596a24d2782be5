// What `ip link add … type vti|vti6|xfrm` and `ip tunnel add … mode vti` ask of the kernel, read
// from their messages. Pure: bytes in, request out.
#pragma once

#include <linux/if_tunnel.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dataplane/types.h"

namespace espalier::tools {

// A device to be made.
struct TunnelRequest {
  dataplane::DeviceSpec device;
  // The same message without what this kernel does not know: the device is there by then, and the
  // kernel itself applies the rest (MTU, up, …) and acknowledges.
  std::vector<std::uint8_t> rest;
  bool elsewhere = false;  // in another network namespace
};

// `message` is what the command sends on a NETLINK_ROUTE socket. Empty if it is not one request to
// create a device of these kinds; then it is none of ours.
[[nodiscard]] std::optional<TunnelRequest> parse_new_link(std::span<const std::uint8_t> message);

// From the ioctl's structure (ip-tunnel(8), SIOCADDTUNNEL on ip_vti0).
[[nodiscard]] dataplane::DeviceSpec device_of(const ip_tunnel_parm& parameters);
[[nodiscard]] ip_tunnel_parm parameters_of(const dataplane::DeviceSpec& device);

}  // namespace espalier::tools
