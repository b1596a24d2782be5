// TUN devices: one queue per descriptor.
#pragma once

#include <string>
#include <string_view>

#include "ifaces/unique_fd.h"

namespace espalier::ifaces {

// What the kernel lets a TUN hand over and take in one piece.
struct TunOffloads {
  bool tso4 = false;
  bool tso6 = false;
  bool uso = false;                       // USO4 and USO6, Linux 6.2
  [[nodiscard]] std::string str() const;  // "TSO4 TSO6 USO"
};

// The widest set that `wanted` and this kernel share.
[[nodiscard]] TunOffloads probe_tun_offloads(TunOffloads wanted = {true, true, true});

// Creates the device, or adds a queue to it (`multi_queue`), non-blocking, IFF_NO_PI and
// IFF_VNET_HDR with checksum offload. The device goes away with its last queue. Throws
// std::system_error that names the call and the device.
[[nodiscard]] UniqueFd open_tun(std::string_view name, bool multi_queue, TunOffloads offloads);

// A queue of a device that was made with `multi_queue`, which gets no packets but keeps the device,
// its addresses and its routes there. Throws std::system_error.
[[nodiscard]] UniqueFd hold_tun(std::string_view name);

// What `ip link` shows as LOWER_UP; routing daemons follow it. Throws std::system_error.
void set_carrier(int tun_fd, bool up, std::string_view name);

}  // namespace espalier::ifaces
