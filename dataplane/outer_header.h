// The outer header's fields, made from the inner ones by the rule of an SA (RFC 4301 §5.1.2).
#pragma once

#include <bit>
#include <cstdint>

#include "dataplane/ecn.h"
#include "dataplane/types.h"

namespace espalier::dataplane {

// What may differ between two packets to one peer; packets of one send have the same.
struct OuterFields {
  std::uint8_t tos = 0;
  std::uint8_t hop_limit = 0;     // 0: the system's default
  std::uint8_t fragmentable = 0;  // 1: DF is clear
  std::uint8_t alone = 0;         // 1: shares no send, as it may be too long for one
  std::uint32_t flow_label = 0;

  [[nodiscard]] bool operator==(const OuterFields& other) const noexcept {
    return std::bit_cast<std::uint64_t>(*this) == std::bit_cast<std::uint64_t>(other);
  }
};
static_assert(sizeof(OuterFields) == 8);

// OuterHeader, made ready. The default copies TOS and sets DF.
struct OuterRule {
  std::uint8_t tos_keep = 0xff;
  std::uint8_t tos_set = 0;
  std::uint8_t hop_limit = 0;
  bool copy_df = false;
  bool clear_df = false;
  bool copy_flow_label = false;

  OuterRule() = default;
  explicit OuterRule(const OuterHeader& spec) noexcept
      : hop_limit(spec.hop_limit),
        copy_df(spec.df == OuterHeader::Df::copy),
        clear_df(spec.df == OuterHeader::Df::clear),
        copy_flow_label(spec.copy_flow_label) {
    // RFC 6040 §4.1: normal mode copies ECN, compatibility mode clears it.
    tos_keep = spec.ecn ? kEcnMask : 0;
    switch (spec.dscp) {
      case OuterHeader::Dscp::copy:
        tos_keep |= kDscpMask;
        break;
      case OuterHeader::Dscp::set:
        tos_set = static_cast<std::uint8_t>(spec.dscp_value << 2);
        break;
      case OuterHeader::Dscp::no:
        break;
    }
  }

  // `packet`: the inner one, its header checked.
  [[nodiscard]] OuterFields fields(const std::uint8_t* packet, bool ipv6,
                                   std::uint8_t tos) const noexcept {
    OuterFields f;
    f.tos = static_cast<std::uint8_t>((tos & tos_keep) | tos_set);
    f.hop_limit = hop_limit;
    const bool inner_df = ipv6 || (packet[6] & 0x40) != 0;
    f.fragmentable = clear_df || (copy_df && !inner_df) ? 1 : 0;
    if (copy_flow_label && ipv6) [[unlikely]]
      f.flow_label = load_be<std::uint32_t>(packet) & 0xfffff;
    return f;
  }
};

}  // namespace espalier::dataplane
