// Single values of the configuration file. Each throws std::invalid_argument whose text says what
// is wrong and what to write instead; the caller puts the option's name and place in front.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "crypto/suite.h"
#include "dataplane/types.h"
#include "ifaces/address.h"
#include "tools/subnet.h"

namespace espalier::tools {

// An address of a gateway. %any and %defaultroute have no family.
struct End {
  ifaces::IpAddress address;
  bool default_route = false;
};

// What may be handed to the kernel, and taken from it, in one piece: all that it offers, unless the
// file says less.
struct OffloadChoice {
  bool tso4 = true, tso6 = true, uso = true;  // of the TUN devices
  bool gso = true;                            // of the outer UDP sockets
  auto operator<=>(const OffloadChoice&) const = default;
};

[[nodiscard]] End parse_end(std::string_view text);
// Prefixes and ranges, separated by commas or spaces, perhaps in braces; without host bits.
[[nodiscard]] std::vector<Subnet> parse_subnets(std::string_view text);
// ADDRESS/LEN, several of them.
[[nodiscard]] std::vector<ifaces::Prefix> parse_interface_addresses(std::string_view text);
[[nodiscard]] dataplane::Mark parse_mark(std::string_view text);  // VALUE[/MASK]
[[nodiscard]] std::string parse_device_name(std::string_view text);
[[nodiscard]] bool parse_yes_no(std::string_view text);
[[nodiscard]] dataplane::Encapsulation parse_encapsulation(std::string_view text);
[[nodiscard]] crypto::Suite parse_esp(std::string_view text);
// auto, none, or some of tso4, tso6, uso, gso, with commas between.
[[nodiscard]] OffloadChoice parse_offloads(std::string_view text);
// Decimal or 0x…, within the limits.
[[nodiscard]] std::uint32_t parse_number(std::string_view text, std::uint32_t least,
                                         std::uint32_t most);
// One of the words; they are in the message.
[[nodiscard]] std::string parse_word(std::string_view text,
                                     std::span<const std::string_view> words);

[[nodiscard]] std::string str(const dataplane::Mark& mark);  // 5/0xffffffff

}  // namespace espalier::tools
