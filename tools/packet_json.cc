#include "tools/packet_json.h"

#include <algorithm>
#include <string>

#include "dataplane/bytes.h"
#include "tools/control_json.h"

namespace espalier::tools {
namespace {

constexpr std::uint8_t kIcmp = 1, kIcmp6 = 58;
constexpr std::size_t kHeader4 = 20, kHeader6 = 40;
constexpr std::size_t kUpper = 8;    // as much of the upper header as selectors see
constexpr std::size_t kUsual = 100;  // bytes, where nobody says how long it is
constexpr std::size_t kMost = 65535;

std::uint8_t parse_upper(Fields& fields, std::span<std::uint8_t> upper) {
  const std::uint8_t protocol = fields.parsed("protocol", parse_protocol).value_or(0);
  if (protocol == kIcmp || protocol == kIcmp6) {
    upper[0] = static_cast<std::uint8_t>(fields.number("icmp_type", 0, 255).value_or(0));
    upper[1] = static_cast<std::uint8_t>(fields.number("icmp_code", 0, 255).value_or(0));
    return protocol;
  }
  const auto source = fields.number("source_port", 0, 65535);
  const auto destination = fields.number("destination_port", 0, 65535);
  if ((source || destination) && !has_ports(protocol))
    fields.refuse(source ? "source_port" : "destination_port",
                  "write a \"protocol\" that has ports, too");
  dataplane::store_be(upper.data(), static_cast<std::uint16_t>(source.value_or(0)));
  dataplane::store_be(upper.data() + 2, static_cast<std::uint16_t>(destination.value_or(0)));
  return protocol == 0 ? std::uint8_t{253} : protocol;  // RFC 3692: of nobody
}

}  // namespace

std::vector<std::uint8_t> parse_packet(Fields& fields) {
  const auto source = fields.address("source");
  const auto destination = fields.address("destination");
  if (!source) fields.refuse("source", "is missing; write an address, as in 10.1.3.2");
  if (!destination) fields.refuse("destination", "is missing; write an address, as in 10.1.4.2");
  if (source->family != destination->family)
    fields.refuse("destination", "is of another family than source");
  const bool ipv6 = source->family == ifaces::Family::v6;
  const std::size_t header = ipv6 ? kHeader6 : kHeader4;
  const auto length =
      static_cast<std::size_t>(fields.number("length", header + kUpper, kMost).value_or(kUsual));
  const bool df = fields.flag("df").value_or(true);
  std::vector<std::uint8_t> packet(length);
  const std::uint8_t protocol = parse_upper(fields, std::span(packet).subspan(header, kUpper));
  std::uint8_t* const ip = packet.data();
  if (ipv6) {
    ip[0] = 0x60;
    dataplane::store_be(ip + 4, static_cast<std::uint16_t>(length - kHeader6));
    ip[6] = protocol;
    ip[7] = 64;
    std::copy_n(source->bytes.begin(), 16, ip + 8);
    std::copy_n(destination->bytes.begin(), 16, ip + 24);
  } else {
    ip[0] = 0x45;
    dataplane::store_be(ip + 2, static_cast<std::uint16_t>(length));
    ip[6] = df ? 0x40 : 0;
    ip[8] = 64;
    ip[9] = protocol;
    std::copy_n(source->bytes.begin(), 4, ip + 12);
    std::copy_n(destination->bytes.begin(), 4, ip + 16);
  }
  return packet;
}

ifaces::IpAddress destination_of(std::span<const std::uint8_t> packet) {
  return packet[0] >> 4 == 6 ? ifaces::IpAddress::v6(packet.subspan<24, 16>())
                             : ifaces::IpAddress::v4(packet.subspan<16, 4>());
}

}  // namespace espalier::tools
