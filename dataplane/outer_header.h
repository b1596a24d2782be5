// The outer header's fields, made from the inner ones by the rule of an SA (RFC 4301 §5.1.2).
#pragma once

#include <cstdint>

#include "dataplane/ecn.h"
#include "dataplane/types.h"

namespace espalier::dataplane {

// What may differ between two packets to one peer; packets of one send have the same. One word: as
// bytes that are written one by one and then read together, it would wait in the processor for all
// stores of the packet before.
class OuterFields {
 public:
  OuterFields() = default;
  // `hop_limit` 0: the system's default. `fragmentable`: DF is clear.
  OuterFields(std::uint8_t tos, std::uint8_t hop_limit, bool fragmentable,
              std::uint32_t flow_label) noexcept
      : word_(std::uint64_t{tos} | std::uint64_t{hop_limit} << 8 |
              (fragmentable ? kFragmentable : 0) | std::uint64_t{flow_label} << 32) {}

  [[nodiscard]] std::uint8_t tos() const noexcept { return static_cast<std::uint8_t>(word_); }
  [[nodiscard]] std::uint8_t hop_limit() const noexcept {
    return static_cast<std::uint8_t>(word_ >> 8);
  }
  [[nodiscard]] bool fragmentable() const noexcept { return (word_ & kFragmentable) != 0; }
  // Shares no send, as it may be too long for one.
  [[nodiscard]] bool alone() const noexcept { return (word_ & kAlone) != 0; }
  [[nodiscard]] std::uint32_t flow_label() const noexcept {
    return static_cast<std::uint32_t>(word_ >> 32);
  }
  // The kernel is to fragment it.
  void make_fragments() noexcept { word_ |= kFragmentable | kAlone; }

  bool operator==(const OuterFields&) const = default;

 private:
  static constexpr std::uint64_t kFragmentable = std::uint64_t{1} << 16;
  static constexpr std::uint64_t kAlone = std::uint64_t{1} << 17;
  std::uint64_t word_ = 0;
};

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

  // Are the fields of two packets with the same TOS the same?
  [[nodiscard]] bool by_tos_alone() const noexcept { return !copy_df && !copy_flow_label; }
  // `packet`: the inner one, its header checked.
  [[nodiscard]] OuterFields fields(const std::uint8_t* packet, bool ipv6,
                                   std::uint8_t tos) const noexcept {
    bool fragmentable = clear_df;
    if (copy_df) [[unlikely]]
      fragmentable = fragmentable || !(ipv6 || (packet[6] & 0x40) != 0);
    std::uint32_t flow_label = 0;
    if (copy_flow_label && ipv6) [[unlikely]]
      flow_label = load_be<std::uint32_t>(packet) & 0xfffff;
    return {static_cast<std::uint8_t>((tos & tos_keep) | tos_set), hop_limit, fragmentable,
            flow_label};
  }
};

}  // namespace espalier::dataplane
