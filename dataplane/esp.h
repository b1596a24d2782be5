// The shape of an ESP packet (RFC 4303 §2): SPI, SN, IV, payload, padding, pad length, next header,
// ICV.
#pragma once

#include <cstddef>
#include <cstdint>

#include "crypto/suite.h"

namespace espalier::dataplane {

inline constexpr std::size_t kEspHeader = 8;   // SPI and sequence number
inline constexpr std::size_t kEspTrailer = 2;  // pad length and next header
inline constexpr std::size_t kUdpHeader = 8;
inline constexpr std::size_t kMaxPadding = 255;

inline constexpr std::uint8_t kNextIpv4 = 4;
inline constexpr std::uint8_t kNextIpv6 = 41;
inline constexpr std::uint8_t kNextNone = 59;  // a dummy packet (RFC 4303 §2.6)

// Bytes of padding for a payload of `length` bytes, before the trailer. Every alignment is a power
// of two.
[[nodiscard]] constexpr std::size_t esp_padding(const crypto::SuiteInfo& suite,
                                                std::size_t length) noexcept {
  return (std::size_t{0} - length - kEspTrailer) & (suite.align - std::size_t{1});
}

// Bytes from the SPI to the end of the ICV.
[[nodiscard]] constexpr std::size_t esp_length(const crypto::SuiteInfo& suite,
                                               std::size_t payload) noexcept {
  return kEspHeader + suite.iv + payload + esp_padding(suite, payload) + kEspTrailer + suite.icv;
}

// The longest inner packet whose ESP packet still fits `outer` bytes of IP packet: what the
// device's MTU must be.
[[nodiscard]] constexpr std::size_t inner_mtu(const crypto::SuiteInfo& suite, std::size_t outer,
                                              bool outer_ipv6, bool udp) noexcept {
  const std::size_t headers =
      (outer_ipv6 ? 40U : 20U) + (udp ? kUdpHeader : 0U) + kEspHeader + suite.iv + suite.icv;
  if (outer < headers + suite.align) return 0;
  return (outer - headers) / suite.align * suite.align - kEspTrailer;
}

}  // namespace espalier::dataplane
