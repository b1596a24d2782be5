#include "tools/config_values.h"

#include <net/if.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdio>
#include <optional>
#include <stdexcept>

#include "tools/compile.h"
#include "tools/config_text.h"

namespace espalier::tools {
namespace {

using ifaces::Family;
using ifaces::IpAddress;
using ifaces::Prefix;

constexpr std::size_t kMaxSubnets = 64;  // a side; every pair of subnets becomes two policies

[[noreturn]] void wrong(const std::string& text) {
  throw std::invalid_argument(text);
}

std::optional<std::uint32_t> to_number(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  }
  std::uint32_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::string hex(std::uint32_t value) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "0x%x", value);
  return text.data();
}

std::vector<std::string_view> split(std::string_view text) {
  constexpr std::string_view kSeparators = ", \t";
  std::vector<std::string_view> parts;
  for (;;) {
    const auto first = text.find_first_not_of(kSeparators);
    if (first == std::string_view::npos) return parts;
    text.remove_prefix(first);
    const auto end = text.find_first_of(kSeparators);
    parts.push_back(text.substr(0, end));
    text.remove_prefix(parts.back().size());
  }
}

std::vector<std::string_view> split_list(std::string_view text) {
  const bool opened = text.starts_with('{');
  if (opened != text.ends_with('}')) wrong("has only one of its braces; write {PREFIX, PREFIX}");
  if (opened) text = text.substr(1, text.size() - 2);
  std::vector<std::string_view> parts = split(text);
  if (parts.empty()) wrong("is an empty list; write a prefix, or remove the line");
  if (parts.size() > kMaxSubnets)
    wrong("has more than " + std::to_string(kMaxSubnets) + " entries; write several conns");
  return parts;
}

bool is_v4_mapped(const IpAddress& a) {
  constexpr std::array<std::uint8_t, 12> kStart = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return a.family == Family::v6 && std::equal(kStart.begin(), kStart.end(), a.bytes.begin());
}

// Multicast, or 240.0.0.0/4 with the broadcast address.
bool is_no_host(const IpAddress& a) {
  return a.family == Family::v4 ? a.bytes[0] >= 224 : a.bytes[0] == 0xff;
}

template <typename Value>
void add_once(std::vector<Value>& list, const Value& value) {
  if (std::find(list.begin(), list.end(), value) != list.end())
    wrong("has " + value.str() + " twice; write it once");
  list.push_back(value);
}

}  // namespace

End parse_end(std::string_view text) {
  if (text == "%any") return {};
  if (text == "%defaultroute") return {{}, true};
  if (text.starts_with('%'))
    wrong(in_quotes(text) + " means nothing here; write an address or %any");
  const auto address = IpAddress::parse(text);
  if (!address)
    wrong(in_quotes(text) +
          " is no IPv4 or IPv6 address (names are not resolved); write an address, %any or "
          "%defaultroute");
  if (address->is_any()) wrong("is the unspecified address; write %any");
  if (is_no_host(*address)) wrong(in_quotes(text) + " is no address of a host; write one that is");
  if (is_v4_mapped(*address)) wrong(in_quotes(text) + " is an IPv4 address; write it as a.b.c.d");
  if (address->family == Family::v6 && address->bytes[0] == 0xfe &&
      (address->bytes[1] & 0xc0) == 0x80)
    wrong(in_quotes(text) + " is link-local and says no interface; write a global address");
  return {*address, false};
}

std::vector<Subnet> parse_subnets(std::string_view text) {
  std::vector<Subnet> subnets;
  for (const std::string_view part : split_list(text)) add_once(subnets, parse_subnet(part));
  return subnets;
}

std::vector<Prefix> parse_interface_addresses(std::string_view text) {
  std::vector<Prefix> addresses;
  for (const std::string_view part : split_list(text)) {
    const auto prefix = Prefix::parse(part);
    if (!prefix || part.find('/') == std::string_view::npos)
      wrong(in_quotes(part) + " is no interface address; write ADDRESS/LEN, as in 10.0.1.1/24");
    if (prefix->address.is_any() || is_no_host(prefix->address))
      wrong(in_quotes(part) + " is no address of a host; write one that is");
    add_once(addresses, *prefix);
  }
  return addresses;
}

dataplane::Mark parse_mark(std::string_view text) {
  if (text == "-1" || text.starts_with('%'))
    wrong("asks for a mark that is made up; write a number, as in 5/0xffffffff");
  const auto slash = text.find('/');
  const auto value = to_number(text.substr(0, slash));
  const auto mask = slash == std::string_view::npos ? std::optional<std::uint32_t>(0xffffffff)
                                                    : to_number(text.substr(slash + 1));
  if (!value || !mask) wrong(in_quotes(text) + " is no mark; write VALUE/MASK, as in 5/0xffffffff");
  // XFRM matches (mark & mask) == value, which could never hold.
  if ((*value & ~*mask) != 0)
    wrong(in_quotes(text) +
          " has value bits outside its mask and could match nothing: a packet matches if "
          "(mark & MASK) == VALUE; write " +
          hex(*value & *mask) + "/" + hex(*mask) + " or " + hex(*value) + "/" +
          hex(*value | *mask));
  if (*value == 0)
    wrong(in_quotes(text) + " has the value 0, which is no mark; write a value from 1");
  return {*value, *mask};
}

std::string parse_device_name(std::string_view text) {
  // What the kernel's dev_valid_name refuses, and names that it or sysctl understands otherwise.
  if (text.size() >= IFNAMSIZ)
    wrong(in_quotes(text) + " is longer than " + std::to_string(IFNAMSIZ - 1) +
          " characters; write a shorter name");
  if (text.find_first_of("/:% \t") != std::string_view::npos || text == "." || text == ".." ||
      text == "all" || text == "default" || text == "lo")
    wrong(in_quotes(text) + " is no name for an interface; write one like vti01");
  if (text == kDefaultDevice)
    wrong(in_quotes(text) +
          " is the device of the conns without one; write another name, like vti01");
  return std::string(text);
}

bool parse_yes_no(std::string_view text) {
  constexpr std::array<std::string_view, 5> kYes = {"yes", "y", "true", "on", "1"};
  constexpr std::array<std::string_view, 5> kNo = {"no", "n", "false", "off", "0"};
  if (std::find(kYes.begin(), kYes.end(), text) != kYes.end()) return true;
  if (std::find(kNo.begin(), kNo.end(), text) != kNo.end()) return false;
  wrong(in_quotes(text) + " is neither; write yes or no");
}

dataplane::Encapsulation parse_encapsulation(std::string_view text) {
  // Nobody negotiates, so there is nothing to detect a NAT: auto is UDP, which passes one.
  if (text == "auto" || text == "udp") return dataplane::Encapsulation::udp;
  if (text == "esp") return dataplane::Encapsulation::esp;
  try {
    return parse_yes_no(text) ? dataplane::Encapsulation::udp : dataplane::Encapsulation::esp;
  } catch (const std::invalid_argument&) {
    wrong(in_quotes(text) +
          " is no encapsulation; write yes (UDP port 4500), no (raw ESP) or auto");
  }
}

crypto::Suite parse_esp(std::string_view text) {
  std::string_view why;
  if (const auto suite = crypto::parse_suite(text, &why)) return *suite;
  wrong(in_quotes(text) + " " + std::string(why));
}

std::uint32_t parse_number(std::string_view text, std::uint32_t least, std::uint32_t most) {
  const auto value = to_number(text);
  if (!value || *value < least || *value > most)
    wrong(in_quotes(text) + " is no number from " + std::to_string(least) + " to " +
          std::to_string(most) + "; write one");
  return *value;
}

OffloadChoice parse_offloads(std::string_view text) {
  if (text == "auto") return {};
  OffloadChoice choice{false, false, false, false};
  if (text == "none") return choice;
  while (!text.empty()) {
    const std::size_t comma = std::min(text.find(','), text.size());
    const std::string_view word = text.substr(0, comma);
    text.remove_prefix(std::min(comma + 1, text.size()));
    if (word == "tso4") {
      choice.tso4 = true;
    } else if (word == "tso6") {
      choice.tso6 = true;
    } else if (word == "uso") {
      choice.uso = true;
    } else if (word == "gso") {
      choice.gso = true;
    } else {
      wrong(in_quotes(word) + " is no offload; write auto, none, or some of tso4,tso6,uso,gso");
    }
  }
  return choice;
}

std::string parse_word(std::string_view text, std::span<const std::string_view> words) {
  if (std::find(words.begin(), words.end(), text) != words.end()) return std::string(text);
  std::string known;
  for (const std::string_view w : words) known += (known.empty() ? "" : ", ") + std::string(w);
  const std::string_view near = nearest(text, words);
  wrong(in_quotes(text) + " is not possible; write " +
        (near.empty() ? "one of " + known : std::string(near) + " (possible: " + known + ")"));
}

std::string str(const dataplane::Mark& mark) {
  return std::to_string(mark.value) + "/" + hex(mark.mask);
}

}  // namespace espalier::tools
