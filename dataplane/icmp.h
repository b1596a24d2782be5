// ICMP and ICMPv6 errors: made for packets that cannot go on (RFC 792, 1122 §3.2.2, 4443), and read
// where a router on the way to the peer reports its MTU (RFC 1191, 8201). Pure functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "dataplane/types.h"
#include "ifaces/address.h"

namespace espalier::dataplane {

enum class IcmpReason : std::uint8_t {
  unreachable,  // no policy or no SA: 3/1, 1/3 (RFC 4301 §7.4)
  prohibited,   // a policy says discard: 3/13, 1/1
  too_big,      // 3/4, 2
};

// RFC 4443 §2.4(c): the error with its IPv6 header is at most 1280 bytes. RFC 1812 §4.3.2.3: 576.
inline constexpr std::size_t kMaxIcmpError = 1280 - 40;
inline constexpr std::size_t kMaxIcmpError4 = 576 - 20;

// The ICMP message (no IP header) that tells the sender of the inner packet `packet` why it did not
// go on. `length`: of the packet that did not fit, by its IP header; of a super-packet, of one
// segment. `mtu`: with too_big. Returns the bytes written to `out`; 0 where no error may be sent:
// about an ICMP error, a multicast or broadcast, a fragment but the first, or to a source that is
// no unicast address that a router can send to (RFC 1122 §3.2.2, RFC 4443 §2.4(e)). The checksum of
// ICMPv6 is left to the kernel, which knows the source address (RFC 3542 §3.1).
[[nodiscard]] std::size_t icmp_error(std::span<const std::uint8_t> packet, IcmpReason reason,
                                     std::size_t length, std::uint32_t mtu,
                                     std::span<std::uint8_t, kMaxIcmpError> out) noexcept;

// What a router says of the path to a peer, and of which packet of ours.
struct TooBig {
  std::uint32_t mtu = 0;  // as reported, nothing checked; 0: a router from before RFC 1191
  Encapsulation encapsulation{};
  ifaces::Endpoint local, peer;  // of the quoted packet; port 0 with raw ESP
  Spi spi{};
  std::uint16_t length = 0;  // of the quoted packet, by its IPv4 header; 0 with IPv6
};

// Reads an ICMP (IPv4) or ICMPv6 message that a raw socket received, without its IP header. False
// if it is no "too big", has a wrong checksum (IPv4: of IPv6 the kernel has looked), or does not
// quote the start of an ESP packet up to its SPI: who cannot show the SPI may never have seen one
// of our packets (RFC 4301 §8.2.1). Any bytes may come.
[[nodiscard]] bool parse_too_big(std::span<const std::uint8_t> message, bool ipv6,
                                 TooBig& report) noexcept;

}  // namespace espalier::dataplane
