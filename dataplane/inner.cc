#include "dataplane/inner.h"

#include "dataplane/bytes.h"

namespace espalier::dataplane {
namespace {

constexpr std::uint8_t kIcmp = 1, kTcp = 6, kUdp = 17, kDccp = 33, kIcmp6 = 58, kSctp = 132,
                       kMobility = 135, kUdpLite = 136;

constexpr bool protocol_has_ports(std::uint8_t protocol) {
  return protocol == kTcp || protocol == kUdp || protocol == kDccp || protocol == kSctp ||
         protocol == kUdpLite;
}

constexpr bool is_extension(std::uint8_t next) {
  return next == 0 || next == 43 || next == 60;  // hop by hop, routing, destination
}

void read_ports(std::span<const std::uint8_t> packet, std::size_t at, InnerKey& key) noexcept {
  if (at + 4 > key.length) return;
  if (protocol_has_ports(key.protocol)) {
    key.source_port = load_be<std::uint16_t>(&packet[at]);
    key.destination_port = load_be<std::uint16_t>(&packet[at + 2]);
  } else if (key.protocol == (key.ipv6 ? kIcmp6 : kIcmp)) {
    key.source_port = packet[at];
    key.destination_port = packet[at + 1];
  } else if (key.ipv6 && key.protocol == kMobility) {
    key.source_port = packet[at + 2];  // RFC 6275 §6.1.1: MH Type
  } else {
    return;
  }
  key.has_ports = true;
}

bool parse_v4(std::span<const std::uint8_t> packet, InnerKey& key) noexcept {
  if (packet.size() < 20) return false;
  const std::size_t header = std::size_t{packet[0] & 0xfU} * 4;
  key.length = load_be<std::uint16_t>(&packet[2]);
  if (header < 20 || key.length < header || key.length > packet.size()) return false;
  key.tos = packet[1];
  key.protocol = packet[9];
  key.source = {std::uint64_t{load_be<std::uint32_t>(&packet[12])} << 32, 0};
  key.destination = {std::uint64_t{load_be<std::uint32_t>(&packet[16])} << 32, 0};
  key.ipv6 = false;
  const bool later_fragment = (load_be<std::uint16_t>(&packet[6]) & 0x1fff) != 0;
  if (!later_fragment) read_ports(packet, header, key);
  return true;
}

bool parse_v6(std::span<const std::uint8_t> packet, InnerKey& key) noexcept {
  if (packet.size() < 40) return false;
  key.length = 40U + load_be<std::uint16_t>(&packet[4]);
  if (key.length > packet.size()) return false;
  key.tos = static_cast<std::uint8_t>(load_be<std::uint16_t>(&packet[0]) >> 4);
  key.source = {load_be<std::uint64_t>(&packet[8]), load_be<std::uint64_t>(&packet[16])};
  key.destination = {load_be<std::uint64_t>(&packet[24]), load_be<std::uint64_t>(&packet[32])};
  key.ipv6 = true;
  key.protocol = packet[6];
  std::size_t at = 40;
  // RFC 4301 §4.4.1.1: selectors see the upper layer, behind the extension headers.
  for (int headers = 0; headers < 8 && at + 8 <= key.length; ++headers) {
    if (is_extension(key.protocol)) {
      key.protocol = packet[at];
      at += (packet[at + 1] + std::size_t{1}) * 8;
    } else if (key.protocol == 44) {  // fragment
      key.protocol = packet[at];
      if ((load_be<std::uint16_t>(&packet[at + 2]) & 0xfff8) != 0) return true;
      at += 8;
    } else {
      break;
    }
  }
  read_ports(packet, at, key);
  return true;
}

}  // namespace

AddressWords words(const ifaces::IpAddress& address) noexcept {
  if (address.family != ifaces::Family::v6)
    return {std::uint64_t{load_be<std::uint32_t>(address.bytes.data())} << 32, 0};
  return {load_be<std::uint64_t>(address.bytes.data()),
          load_be<std::uint64_t>(address.bytes.data() + 8)};
}

AddressWords prefix_mask(unsigned length) noexcept {
  const auto word = [](unsigned bits) {
    if (bits == 0) return std::uint64_t{0};
    return bits >= 64 ? ~std::uint64_t{0} : ~std::uint64_t{0} << (64 - bits);
  };
  return {word(length), word(length > 64 ? length - 64 : 0)};
}

bool parse_inner(std::span<const std::uint8_t> packet, InnerKey& key) noexcept {
  key.source_port = key.destination_port = 0;
  key.has_ports = false;
  if (packet.empty()) return false;
  switch (packet[0] >> 4) {
    case 4:
      return parse_v4(packet, key);
    case 6:
      return parse_v6(packet, key);
    default:
      return false;
  }
}

SelectorMatcher::SelectorMatcher(const Selector& s) noexcept
    : source_mask_(prefix_mask(s.source.length)),
      destination_mask_(prefix_mask(s.destination.length)),
      ipv6_(s.source.address.family == ifaces::Family::v6),
      any_ports_(s.source_port_first == 0 && s.source_port_last == 65535 &&
                 s.destination_port_first == 0 && s.destination_port_last == 65535),
      protocol_(s.protocol),
      source_port_first_(s.source_port_first),
      source_port_last_(s.source_port_last),
      destination_port_first_(s.destination_port_first),
      destination_port_last_(s.destination_port_last) {
  source_ = words(s.source.address);
  destination_ = words(s.destination.address);
  for (std::size_t i = 0; i < 2; ++i) {
    source_[i] &= source_mask_[i];
    destination_[i] &= destination_mask_[i];
  }
  if (s.source_range) source_range_ = {words(s.source_range->first), words(s.source_range->last)};
  if (s.destination_range)
    destination_range_ = {words(s.destination_range->first), words(s.destination_range->last)};
  prefixes_only_ = protocol_ == 0 && any_ports_ && !s.source_range && !s.destination_range;
}

bool SelectorMatcher::matches(const InnerKey& key) const noexcept {
  const std::uint64_t differs = ((key.source[0] & source_mask_[0]) ^ source_[0]) |
                                ((key.source[1] & source_mask_[1]) ^ source_[1]) |
                                ((key.destination[0] & destination_mask_[0]) ^ destination_[0]) |
                                ((key.destination[1] & destination_mask_[1]) ^ destination_[1]);
  return differs == 0 && key.ipv6 == ipv6_ && matches_rest(key);
}

bool SelectorMatcher::matches_ranges(const InnerKey& key) const noexcept {
  if (protocol_ != 0 && protocol_ != key.protocol) return false;
  if (!source_range_.contains(key.source) || !destination_range_.contains(key.destination))
    return false;
  if (any_ports_) return true;
  // RFC 4301 §4.4.1.1: what has no ports to look at (later fragments) matches only ANY.
  return key.has_ports && key.source_port >= source_port_first_ &&
         key.source_port <= source_port_last_ && key.destination_port >= destination_port_first_ &&
         key.destination_port <= destination_port_last_;
}

}  // namespace espalier::dataplane
