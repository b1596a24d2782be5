// What stands behind a gateway: a prefix or a range of addresses, and which protocol and ports of
// it. Values of the configuration file; parsing throws std::invalid_argument like config_values.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "dataplane/types.h"
#include "ifaces/address.h"

namespace espalier::tools {

struct Subnet {
  ifaces::Prefix prefix;                         // covers the range, if there is one
  std::optional<dataplane::AddressRange> range;  // not set where the prefix says it all

  Subnet() = default;
  Subnet(const ifaces::Prefix& p) : prefix(p) {}  // NOLINT(google-explicit-constructor)
  explicit Subnet(const dataplane::AddressRange& r);
  [[nodiscard]] ifaces::Family family() const noexcept { return prefix.address.family; }
  [[nodiscard]] bool contains(const ifaces::IpAddress& a) const noexcept;
  [[nodiscard]] dataplane::AddressRange addresses() const;     // first to last
  [[nodiscard]] std::vector<ifaces::Prefix> prefixes() const;  // which together are the same
  [[nodiscard]] std::string str() const;                       // 10.1.3.0/24, 10.1.3.5-10.1.3.9
  auto operator<=>(const Subnet&) const = default;             // NOLINT(modernize-use-nullptr)
};

[[nodiscard]] bool overlap(const Subnet& a, const Subnet& b);

// leftprotoport and rightprotoport. Without ports for a protocol that has none; for ICMP and ICMPv6
// a type instead of the port, and perhaps a code.
struct ProtoPort {
  std::uint8_t protocol = 0;  // 0: any
  std::uint16_t first = 0, last = 65535;
  std::uint16_t code_first = 0, code_last = 65535;

  [[nodiscard]] bool any_port() const noexcept { return first == 0 && last == 65535; }
  [[nodiscard]] bool is_icmp() const noexcept { return protocol == 1 || protocol == 58; }
  [[nodiscard]] std::string str() const;  // tcp/22, udp/1000-2000, icmp/8/0; empty: everything
  auto operator<=>(const ProtoPort&) const = default;
};

// A-B, both included, of one family; or a prefix without host bits.
[[nodiscard]] Subnet parse_subnet(std::string_view text);
[[nodiscard]] ProtoPort parse_protoport(std::string_view text);

// Of an address range: how many addresses it has, at most 2^32 - 1; and one of them.
[[nodiscard]] std::uint32_t count(const dataplane::AddressRange& range) noexcept;
[[nodiscard]] ifaces::IpAddress nth(const dataplane::AddressRange& range, std::uint32_t n) noexcept;

}  // namespace espalier::tools
