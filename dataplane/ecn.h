// Explicit congestion notification across the tunnel (RFC 6040).
#pragma once

#include <cstdint>

#include "dataplane/bytes.h"

namespace espalier::dataplane {

inline constexpr std::uint8_t kEcnMask = 3;
inline constexpr std::uint8_t kDscpMask = 0xfc;
inline constexpr std::uint8_t kNotEct = 0, kEct1 = 1, kEct0 = 2, kCe = 3;

// RFC 6040 §4.2: what the inner field becomes when the packet leaves the tunnel; false: drop it.
[[nodiscard]] constexpr bool ecn_decapsulate(std::uint8_t outer, std::uint8_t& inner) noexcept {
  if (outer == kCe) {
    if (inner == kNotEct) return false;
    inner = kCe;
  } else if (outer == kEct1 && inner == kEct0) {
    inner = kEct1;
  }
  return true;
}

// Sets TOS or traffic class of an IPv4 or IPv6 packet; the IPv4 header checksum is updated (RFC
// 1624).
inline void set_inner_tos(std::uint8_t* packet, std::uint8_t tos) noexcept {
  const auto before = load_be<std::uint16_t>(packet);
  if (packet[0] >> 4 == 6) {
    const auto after = static_cast<std::uint16_t>((before & 0xf00fU) | unsigned{tos} << 4);
    store_be(packet, after);
    return;
  }
  const auto after = static_cast<std::uint16_t>((before & 0xff00U) | tos);
  store_be(packet, after);
  std::uint32_t sum = static_cast<std::uint16_t>(~load_be<std::uint16_t>(packet + 10));
  sum += static_cast<std::uint16_t>(~before);
  sum += after;
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  store_be(packet + 10, static_cast<std::uint16_t>(~sum));
}

}  // namespace espalier::dataplane
