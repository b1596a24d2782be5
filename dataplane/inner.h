// What the tables need to know of an inner packet: addresses as two words, so that a prefix is a
// mask.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "dataplane/types.h"
#include "ifaces/address.h"

namespace espalier::dataplane {

// An address as a 128-bit number, most significant word first; IPv4 sits in the top 32 bits.
using AddressWords = std::array<std::uint64_t, 2>;

// Equality without the call to memcmp that comparing the arrays would be.
[[nodiscard]] constexpr bool same(const AddressWords& a, const AddressWords& b) noexcept {
  return ((a[0] ^ b[0]) | (a[1] ^ b[1])) == 0;
}

[[nodiscard]] AddressWords words(const ifaces::IpAddress& address) noexcept;
[[nodiscard]] AddressWords prefix_mask(unsigned length) noexcept;

struct InnerKey {
  AddressWords source;
  AddressWords destination;
  std::uint32_t length;            // of the IP packet by its own header, bytes
  std::uint16_t source_port;       // ICMP, ICMPv6, Mobility Header: the type
  std::uint16_t destination_port;  // ICMP, ICMPv6: the code
  std::uint8_t protocol;
  std::uint8_t tos;  // TOS or traffic class
  bool ipv6;
  // The two ports mean something: TCP, UDP, UDP-Lite, SCTP, DCCP, ICMP, ICMPv6, Mobility Header;
  // not in a fragment but the first.
  bool has_ports;
};

// Would every selector treat them alike? The small fields one by one: read together right after
// they were written apart, they would wait in the processor for the stores before.
[[nodiscard]] inline bool same_flow(const InnerKey& a, const InnerKey& b) noexcept {
  const std::uint32_t differs = (std::uint32_t{a.source_port} ^ b.source_port) |
                                (std::uint32_t{a.destination_port} ^ b.destination_port) |
                                (std::uint32_t{a.protocol} ^ b.protocol) |
                                (std::uint32_t{a.ipv6} ^ std::uint32_t{b.ipv6}) |
                                (std::uint32_t{a.has_ports} ^ std::uint32_t{b.has_ports});
  return differs == 0 && same(a.destination, b.destination) && same(a.source, b.source);
}

// False if `packet` is no IPv4 or IPv6 packet, or is longer by its own header than `packet`. It may
// be shorter: TFC padding (RFC 4303 §2.7).
[[nodiscard]] bool parse_inner(std::span<const std::uint8_t> packet, InnerKey& key) noexcept;

// A selector made ready for matching.
class SelectorMatcher {
 public:
  explicit SelectorMatcher(const Selector& selector) noexcept;
  [[nodiscard]] bool matches(const InnerKey& key) const noexcept;
  // What the prefixes do not say: ranges, protocol and ports; for the SPD, which has found the
  // prefixes by hashing.
  [[nodiscard]] bool matches_rest(const InnerKey& key) const noexcept {
    return prefixes_only_ || matches_ranges(key);
  }
  // Does matches_rest() hold for every packet?
  [[nodiscard]] bool any_rest() const noexcept { return prefixes_only_; }

 private:
  struct WordRange {
    AddressWords first{}, last{~std::uint64_t{0}, ~std::uint64_t{0}};
    [[nodiscard]] bool contains(const AddressWords& a) const noexcept {
      return !(a < first) && !(last < a);
    }
  };

  [[nodiscard]] bool matches_ranges(const InnerKey& key) const noexcept;

  AddressWords source_, source_mask_, destination_, destination_mask_;
  bool ipv6_;
  bool prefixes_only_;
  bool any_ports_;
  std::uint8_t protocol_;
  std::uint16_t source_port_first_, source_port_last_;
  std::uint16_t destination_port_first_, destination_port_last_;
  WordRange source_range_, destination_range_;
};

}  // namespace espalier::dataplane
