#include "dataplane/icmp.h"

#include <algorithm>
#include <cstring>

#include "dataplane/bytes.h"
#include "dataplane/checksum.h"
#include "dataplane/esp.h"
#include "dataplane/inner.h"

namespace espalier::dataplane {
namespace {

using Bytes = std::span<const std::uint8_t>;

constexpr std::uint8_t kIcmp = 1, kUdp = 17, kEsp = 50, kIcmp6 = 58;
constexpr std::size_t kIcmpHeader = 8;
constexpr std::uint8_t kUnreachable4 = 3, kFragNeeded = 4;
constexpr std::uint8_t kTooBig6 = 2;

struct TypeCode {
  std::uint8_t type, code;
};

constexpr TypeCode type_of(IcmpReason reason, bool ipv6) noexcept {
  switch (reason) {
    case IcmpReason::unreachable:
      return ipv6 ? TypeCode{1, 3} : TypeCode{kUnreachable4, 1};
    case IcmpReason::prohibited:
      return ipv6 ? TypeCode{1, 1} : TypeCode{kUnreachable4, 13};
    case IcmpReason::too_big:
      break;
  }
  return ipv6 ? TypeCode{kTooBig6, 0} : TypeCode{kUnreachable4, kFragNeeded};
}

// Of the queries and their answers an error may be told; of errors, and of what nobody knows, not.
constexpr bool is_query4(std::uint8_t type) noexcept {
  return type == 0 || type == 8 || type == 9 || type == 10 || (type >= 13 && type <= 18);
}

bool is_host4(std::uint32_t address) noexcept {
  const std::uint32_t first = address >> 24;
  return first != 0 && first != 127 && first < 224;
}

bool answerable4(Bytes packet) noexcept {
  const std::size_t header = std::size_t{packet[0] & 0xfU} * 4;
  if (!is_host4(load_be<std::uint32_t>(&packet[12]))) return false;
  if (packet[16] >= 224) return false;
  if ((load_be<std::uint16_t>(&packet[6]) & 0x1fff) != 0) return false;
  if (packet[9] != kIcmp) return true;
  return header < packet.size() && is_query4(packet[header]);
}

bool is_host6(const std::uint8_t* a) noexcept {
  if (a[0] == 0xff) return false;
  // Link-local: nobody forwards such a packet, and only the device itself knows the link.
  if (a[0] == 0xfe && (a[1] & 0xc0) == 0x80) return false;
  const bool low = load_be<std::uint64_t>(a) == 0 && load_be<std::uint32_t>(a + 8) == 0;
  return !low || load_be<std::uint32_t>(a + 12) > 1;  // neither :: nor ::1
}

bool answerable6(Bytes packet, IcmpReason reason) noexcept {
  if (!is_host6(&packet[8])) return false;
  if (packet[24] == 0xff && reason != IcmpReason::too_big) return false;
  std::uint8_t next = packet[6];
  std::size_t at = 40;
  for (int headers = 0; headers < 8; ++headers) {
    if (next == kIcmp6) return at < packet.size() && packet[at] >= 128 && packet[at] != 137;
    const bool fragment = next == 44;
    if (next != 0 && next != 43 && next != 60 && !fragment) return true;
    if (at + 8 > packet.size()) return false;
    if (fragment && (load_be<std::uint16_t>(&packet[at + 2]) & 0xfff8) != 0) return false;
    next = packet[at];
    at += fragment ? 8 : (packet[at + 1] + std::size_t{1}) * 8;
  }
  return false;
}

// The quoted packet as it would have been sent: a super-packet's header says its own length.
void set_length(std::uint8_t* ip, bool ipv6, std::size_t length) noexcept {
  if (ipv6) return store_be(ip + 4, static_cast<std::uint16_t>(length - 40));
  store_be(ip + 2, static_cast<std::uint16_t>(length));
  store_be(ip + 10, std::uint16_t{0});
  const auto sum = static_cast<std::uint16_t>(~fold(sum_bytes(ip, std::size_t{ip[0] & 0xfU} * 4)));
  std::memcpy(ip + 10, &sum, sizeof sum);
}

// The headers that the ESP packet follows, and the SPI.
bool parse_esp(Bytes quote, std::uint8_t protocol, TooBig& report) noexcept {
  std::size_t at = 0;
  if (protocol == kUdp) {
    if (quote.size() < kUdpHeader) return false;
    report.encapsulation = Encapsulation::udp;
    report.local.port = load_be<std::uint16_t>(&quote[0]);
    report.peer.port = load_be<std::uint16_t>(&quote[2]);
    at = kUdpHeader;
  } else if (protocol == kEsp) {
    report.encapsulation = Encapsulation::esp;
  } else {
    return false;
  }
  if (quote.size() < at + 4) return false;
  report.spi = Spi{load_be<std::uint32_t>(&quote[at])};
  return true;
}

bool parse_quote4(Bytes quote, TooBig& report) noexcept {
  if (quote.size() < 20 || quote[0] >> 4 != 4) return false;
  const std::size_t header = std::size_t{quote[0] & 0xfU} * 4;
  if (header < 20 || header > quote.size()) return false;
  if ((load_be<std::uint16_t>(&quote[6]) & 0x1fff) != 0) return false;
  report.length = load_be<std::uint16_t>(&quote[2]);
  report.local.address = ifaces::IpAddress::v4(quote.subspan<12, 4>());
  report.peer.address = ifaces::IpAddress::v4(quote.subspan<16, 4>());
  return parse_esp(quote.subspan(header), quote[9], report);
}

// We send no extension headers, so there are none to step over.
bool parse_quote6(Bytes quote, TooBig& report) noexcept {
  if (quote.size() < 40 || quote[0] >> 4 != 6) return false;
  report.local.address = ifaces::IpAddress::v6(quote.subspan<8, 16>());
  report.peer.address = ifaces::IpAddress::v6(quote.subspan<24, 16>());
  return parse_esp(quote.subspan(40), quote[6], report);
}

}  // namespace

std::size_t icmp_error(std::span<const std::uint8_t> packet, IcmpReason reason, std::size_t length,
                       std::uint32_t mtu, std::span<std::uint8_t, kMaxIcmpError> out) noexcept {
  InnerKey key{};
  if (!parse_inner(packet, key)) return 0;
  const Bytes whole = packet.first(key.length);
  if (key.ipv6 ? !answerable6(whole, reason) : !answerable4(whole)) return 0;

  const std::size_t room = (key.ipv6 ? kMaxIcmpError : kMaxIcmpError4) - kIcmpHeader;
  const std::size_t quoted = std::min({whole.size(), length, room});
  std::uint8_t* quote = out.data() + kIcmpHeader;
  std::memcpy(quote, whole.data(), quoted);
  if (length != key.length) set_length(quote, key.ipv6, length);

  const auto [type, code] = type_of(reason, key.ipv6);
  std::fill_n(out.begin(), kIcmpHeader, std::uint8_t{0});
  out[0] = type;
  out[1] = code;
  if (reason == IcmpReason::too_big) {
    if (key.ipv6) {
      store_be(&out[4], mtu);  // RFC 4443 §3.2
    } else {
      store_be(&out[6], static_cast<std::uint16_t>(std::min(mtu, 0xffffU)));  // RFC 1191 §4
    }
  }
  const std::size_t total = kIcmpHeader + quoted;
  if (!key.ipv6) {
    const auto sum = static_cast<std::uint16_t>(~fold(sum_bytes(out.data(), total)));
    std::memcpy(&out[2], &sum, sizeof sum);
  }
  return total;
}

bool parse_too_big(std::span<const std::uint8_t> message, bool ipv6, TooBig& report) noexcept {
  if (message.size() < kIcmpHeader) return false;
  report = {};
  const Bytes quote = message.subspan(kIcmpHeader);
  if (ipv6) {
    if (message[0] != kTooBig6) return false;
    report.mtu = load_be<std::uint32_t>(&message[4]);
    return parse_quote6(quote, report);
  }
  if (message[0] != kUnreachable4 || message[1] != kFragNeeded) return false;
  // A raw socket of IPv4 gets its copy before the kernel looks at the checksum; ICMPv6 after.
  if (fold(sum_bytes(message.data(), message.size())) != 0xffff) return false;
  report.mtu = load_be<std::uint16_t>(&message[6]);
  return parse_quote4(quote, report);
}

}  // namespace espalier::dataplane
