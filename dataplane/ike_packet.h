// An IKE datagram that came to the ESP socket goes on to the socket of the IKE daemon: as the IP
// packet that it once was, back through the loopback device.
#pragma once

#include <cstdint>
#include <span>

#include "ifaces/address.h"

namespace espalier::dataplane {

inline constexpr std::size_t kIkeHeadroom = 48;  // IPv6 and UDP headers

// Writes the IP packet (payload included, at most kIkeHeadroom more than it) to `out` and returns
// its length. Both ends are of one family. The IPv4 checksum and the UDP checksum over IPv4, which
// is optional, are 0: the kernel fills in the former.
[[nodiscard]] std::size_t write_ike_packet(const ifaces::Endpoint& from, const ifaces::Endpoint& to,
                                           std::uint8_t tos, std::span<const std::uint8_t> payload,
                                           std::uint8_t* out) noexcept;

}  // namespace espalier::dataplane
