#include "dataplane/ike_packet.h"

#include <netinet/in.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "dataplane/bytes.h"
#include "dataplane/checksum.h"

namespace espalier::dataplane {
namespace {

constexpr std::uint8_t kHops = 64;
constexpr std::size_t kUdpHeader = 8;

std::size_t write_ipv4_header(const ifaces::Endpoint& from, const ifaces::Endpoint& to,
                              std::uint8_t tos, std::size_t udp_length,
                              std::uint8_t* out) noexcept {
  constexpr std::size_t kHeader = 20;
  std::fill_n(out, kHeader, std::uint8_t{0});
  out[0] = 0x45;
  out[1] = tos;
  store_be(out + 2, static_cast<std::uint16_t>(kHeader + udp_length));
  out[8] = kHops;
  out[9] = IPPROTO_UDP;
  std::memcpy(out + 12, from.address.bytes.data(), 4);
  std::memcpy(out + 16, to.address.bytes.data(), 4);
  return kHeader;
}

std::size_t write_ipv6_header(const ifaces::Endpoint& from, const ifaces::Endpoint& to,
                              std::uint8_t tos, std::size_t udp_length,
                              std::uint8_t* out) noexcept {
  constexpr std::size_t kHeader = 40;
  store_be(out, 0x60000000U | std::uint32_t{tos} << 20);
  store_be(out + 4, static_cast<std::uint16_t>(udp_length));
  out[6] = IPPROTO_UDP;
  out[7] = kHops;
  std::memcpy(out + 8, from.address.bytes.data(), 16);
  std::memcpy(out + 24, to.address.bytes.data(), 16);
  return kHeader;
}

}  // namespace

std::size_t write_ike_packet(const ifaces::Endpoint& from, const ifaces::Endpoint& to,
                             std::uint8_t tos, std::span<const std::uint8_t> payload,
                             std::uint8_t* out) noexcept {
  const std::size_t length = kUdpHeader + payload.size();
  const bool v6 = to.address.family == ifaces::Family::v6;
  const std::size_t header = v6 ? write_ipv6_header(from, to, tos, length, out)
                                : write_ipv4_header(from, to, tos, length, out);
  std::uint8_t* udp = out + header;
  store_be(udp, from.port);
  store_be(udp + 2, to.port);
  store_be(udp + 4, static_cast<std::uint16_t>(length));
  store_be(udp + 6, std::uint16_t{0});
  std::memcpy(udp + kUdpHeader, payload.data(), payload.size());
  if (v6) {  // RFC 8200 §8.1: mandatory, and 0 is sent as 0xffff
    std::array<std::uint8_t, 40> pseudo{};
    std::memcpy(pseudo.data(), out + 8, 32);
    store_be(pseudo.data() + 32, static_cast<std::uint32_t>(length));
    pseudo[39] = IPPROTO_UDP;
    const auto sum = static_cast<std::uint16_t>(
        ~fold(sum_bytes(pseudo.data(), pseudo.size()) + sum_bytes(udp, length)));
    const std::uint16_t sent = sum == 0 ? std::uint16_t{0xffff} : sum;
    std::memcpy(udp + 6, &sent, sizeof sent);
  }
  return header + length;
}

}  // namespace espalier::dataplane
