#include "tools/config_outer.h"

#include <array>
#include <stdexcept>
#include <string_view>

#include "tools/config_text.h"
#include "tools/config_values.h"

namespace espalier::tools {
namespace {

using dataplane::OuterHeader;

// yes, no, or a number from `least` to `most`; a number of 0 is no.
std::uint32_t number_or_word(const std::string& value, std::uint32_t yes, std::uint32_t least,
                             std::uint32_t most) {
  if (value == "yes") return yes;
  if (value == "no" || value == "0") return 0;
  try {
    return parse_number(value, least, most);
  } catch (const std::invalid_argument&) {
    throw std::invalid_argument(in_quotes(value) + " is neither; write yes, no or a number from " +
                                std::to_string(least) + " to " + std::to_string(most));
  }
}

}  // namespace

void set_dscp(Conn& conn, const std::string& value) {
  constexpr std::uint32_t kMost = 63;
  OuterHeader& outer = conn.outer;
  if (value == "copy") {
    outer.dscp = OuterHeader::Dscp::copy;
  } else if (value == "no") {
    outer.dscp = OuterHeader::Dscp::no;
  } else {
    try {
      outer.dscp_value = static_cast<std::uint8_t>(parse_number(value, 0, kMost));
    } catch (const std::invalid_argument&) {
      throw std::invalid_argument(in_quotes(value) +
                                  " is no DSCP; write copy, no or a number from 0 to 63");
    }
    outer.dscp = OuterHeader::Dscp::set;
  }
}

void set_encap_dscp(Conn& conn, const std::string& value) {
  conn.outer.dscp = parse_yes_no(value) ? OuterHeader::Dscp::copy : OuterHeader::Dscp::no;
}

void set_df(Conn& conn, const std::string& value) {
  constexpr std::array<std::string_view, 3> kWords = {"copy", "set", "clear"};
  const std::string word = parse_word(value, kWords);
  conn.outer.df = word == "copy"  ? OuterHeader::Df::copy
                  : word == "set" ? OuterHeader::Df::set
                                  : OuterHeader::Df::clear;
}

void set_nopmtudisc(Conn& conn, const std::string& value) {
  conn.outer.df = parse_yes_no(value) ? OuterHeader::Df::clear : OuterHeader::Df::copy;
}

void set_flow_label(Conn& conn, const std::string& value) {
  constexpr std::array<std::string_view, 2> kWords = {"copy", "auto"};
  conn.outer.copy_flow_label = parse_word(value, kWords) == "copy";
}

void set_tfc(Conn& conn, const std::string& value) {
  constexpr std::uint32_t kMost = 65000;
  conn.tfc = number_or_word(value, dataplane::kTfcToMtu, 1, kMost);
}

void set_mss_clamp(Conn& conn, const std::string& value) {
  constexpr std::uint32_t kLeast = 88;
  constexpr std::uint32_t kMost = 65495;
  conn.mss_clamp =
      static_cast<std::uint16_t>(number_or_word(value, dataplane::kMssToPath, kLeast, kMost));
}

}  // namespace espalier::tools
