#include "tools/subnet.h"

#include <netdb.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <stdexcept>

#include "tools/config_text.h"

namespace espalier::tools {
namespace {

using dataplane::AddressRange;
using ifaces::Family;
using ifaces::IpAddress;
using ifaces::Prefix;

__extension__ using Number = unsigned __int128;

[[noreturn]] void wrong(const std::string& text) {
  throw std::invalid_argument(text);
}

Number number(const IpAddress& a) noexcept {
  Number n = 0;
  for (std::size_t i = 0; i < a.size(); ++i) n = n << 8 | a.bytes[i];
  return n;
}

IpAddress address(Number n, Family family) noexcept {
  IpAddress a = IpAddress::any(family);
  for (std::size_t i = a.size(); i-- > 0; n >>= 8) a.bytes[i] = static_cast<std::uint8_t>(n);
  return a;
}

// The addresses of a prefix of `bits` host bits, less one.
Number tail(unsigned bits) noexcept {
  return bits >= 128 ? ~Number{0} : (Number{1} << bits) - 1;
}

Prefix covering(const AddressRange& r) {
  const unsigned bits = r.first.bits();
  unsigned host = 0;
  for (Number difference = number(r.first) ^ number(r.last); difference != 0; difference >>= 1)
    ++host;
  return Prefix{r.first, static_cast<std::uint8_t>(bits - host)}.network();
}

// Names as in /etc/protocols, without asking for the file: a container may have none.
struct Protocol {
  std::string_view name;
  std::uint8_t number;
};
constexpr std::array<Protocol, 15> kProtocols = {{{"icmp", 1},
                                                  {"igmp", 2},
                                                  {"ipip", 4},
                                                  {"tcp", 6},
                                                  {"udp", 17},
                                                  {"dccp", 33},
                                                  {"gre", 47},
                                                  {"esp", 50},
                                                  {"ah", 51},
                                                  {"ipv6-icmp", 58},
                                                  {"icmpv6", 58},
                                                  {"ospf", 89},
                                                  {"vrrp", 112},
                                                  {"sctp", 132},
                                                  {"udplite", 136}}};

std::optional<std::uint16_t> to_u16(std::string_view text) {
  std::uint16_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::uint16_t parse_port(std::string_view text, const ProtoPort& p) {
  const std::uint16_t most = p.is_icmp() ? 255 : 65535;
  if (const auto value = to_u16(text)) {
    if (*value > most) wrong(in_quotes(text) + " is more than " + std::to_string(most));
    return *value;
  }
  if (!p.is_icmp())
    if (const servent* service =
            ::getservbyname(std::string(text).c_str(), p.protocol == 17 ? "udp" : "tcp"))
      return ntohs(static_cast<std::uint16_t>(service->s_port));
  wrong(in_quotes(text) + " is no " + (p.is_icmp() ? "number" : "port") +
        "; write a number from 0 to " + std::to_string(most));
}

void parse_range(std::string_view text, const ProtoPort& p, std::uint16_t& first,
                 std::uint16_t& last) {
  // A service may have '-' in its name, a range starts with a digit.
  const auto dash = text.find('-');
  const bool is_range = dash != std::string_view::npos && to_u16(text.substr(0, dash)).has_value();
  first = parse_port(text.substr(0, is_range ? dash : text.size()), p);
  last = is_range ? parse_port(text.substr(dash + 1), p) : first;
  if (last < first) wrong(in_quotes(text) + " is the wrong way round; write the lower one first");
}

}  // namespace

Subnet::Subnet(const AddressRange& r) : prefix(covering(r)), range(r) {
  if (Subnet(prefix).addresses() == r) range.reset();
}

AddressRange Subnet::addresses() const {
  if (range) return *range;
  const IpAddress first = prefix.network().address;
  return {first, address(number(first) + tail(first.bits() - prefix.length), first.family)};
}

bool Subnet::contains(const IpAddress& a) const noexcept {
  if (!prefix.contains(a)) return false;
  return !range || (number(range->first) <= number(a) && number(a) <= number(range->last));
}

std::vector<Prefix> Subnet::prefixes() const {
  if (!range) return {prefix};
  std::vector<Prefix> out;
  const Family family = range->first.family;
  const unsigned bits = range->first.bits();
  Number at = number(range->first);
  const Number last = number(range->last);
  for (;;) {
    unsigned host = 0;  // the largest prefix that starts here and ends inside
    while (host < bits && (at & tail(host + 1)) == 0 && tail(host + 1) <= last - at) ++host;
    out.push_back({address(at, family), static_cast<std::uint8_t>(bits - host)});
    if (last - at == tail(host)) return out;
    at += tail(host) + 1;
  }
}

std::string Subnet::str() const {
  return range ? range->first.str() + "-" + range->last.str() : prefix.str();
}

bool overlap(const Subnet& a, const Subnet& b) {
  if (a.family() != b.family()) return false;
  const AddressRange x = a.addresses(), y = b.addresses();
  return number(x.first) <= number(y.last) && number(y.first) <= number(x.last);
}

std::uint32_t count(const AddressRange& range) noexcept {
  const Number n = number(range.last) - number(range.first);
  return n >= 0xffffffff ? 0xffffffff : static_cast<std::uint32_t>(n) + 1;
}

IpAddress nth(const AddressRange& range, std::uint32_t n) noexcept {
  return address(number(range.first) + n, range.first.family);
}

std::string ProtoPort::str() const {
  if (protocol == 0) return {};
  const auto* known = std::find_if(kProtocols.begin(), kProtocols.end(),
                                   [this](const Protocol& p) { return p.number == protocol; });
  std::string out = known == kProtocols.end() ? std::to_string(protocol) : std::string(known->name);
  const auto put = [&out](std::uint16_t from, std::uint16_t to) {
    if (from == 0 && to == 65535) return;
    out += "/" + std::to_string(from);
    if (to != from) out += "-" + std::to_string(to);
  };
  put(first, last);
  put(code_first, code_last);
  return out;
}

Subnet parse_subnet(std::string_view text) {
  const auto dash = text.find('-');
  if (dash != std::string_view::npos) {
    const auto first = IpAddress::parse(text.substr(0, dash));
    const auto last = IpAddress::parse(text.substr(dash + 1));
    if (!first || !last || first->family != last->family)
      wrong(in_quotes(text) +
            " is no range of addresses; write FIRST-LAST, as in "
            "10.1.3.5-10.1.3.20");
    if (number(*last) < number(*first))
      wrong(in_quotes(text) + " is the wrong way round; write " + last->str() + "-" + first->str());
    return Subnet(AddressRange{*first, *last});
  }
  const auto prefix = Prefix::parse(text);
  if (!prefix)
    wrong(in_quotes(text) + " is no prefix; write ADDRESS/LEN, as in 10.1.3.0/24, or FIRST-LAST");
  const Prefix network = prefix->network();
  if (network != *prefix)
    wrong(in_quotes(text) + " has bits set behind its length; write " + network.str() + ", or " +
          Prefix{prefix->address, static_cast<std::uint8_t>(prefix->address.bits())}.str());
  return network;
}

ProtoPort parse_protoport(std::string_view text) {
  ProtoPort out;
  const auto slash = text.find('/');
  const std::string_view name = text.substr(0, slash);
  if (name != "%any") {
    const auto* known = std::find_if(kProtocols.begin(), kProtocols.end(),
                                     [name](const Protocol& p) { return p.name == name; });
    const auto value = to_u16(name);
    if (known == kProtocols.end() && (!value || *value > 255))
      wrong(in_quotes(name) + " is no protocol; write one like tcp, udp, icmp, or its number");
    out.protocol = known == kProtocols.end() ? static_cast<std::uint8_t>(*value) : known->number;
  }
  if (slash == std::string_view::npos) return out;
  std::string_view port = text.substr(slash + 1);
  if (port == "%any") return out;
  constexpr std::array<std::uint8_t, 7> kWithPorts = {1, 6, 17, 33, 58, 132, 136};
  if (std::find(kWithPorts.begin(), kWithPorts.end(), out.protocol) == kWithPorts.end())
    wrong(in_quotes(text) + " has a port, and the protocol has none; write the protocol alone");
  if (out.is_icmp()) {
    const auto second = port.find('/');
    if (second != std::string_view::npos)
      parse_range(port.substr(second + 1), out, out.code_first, out.code_last);
    port = port.substr(0, second);
  } else if (port == "0") {
    return out;  // libreswan's word for any
  }
  parse_range(port, out, out.first, out.last);
  return out;
}

}  // namespace espalier::tools
