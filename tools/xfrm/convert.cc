#include "tools/xfrm/convert.h"

#include <arpa/inet.h>

#include <cerrno>
#include <cstring>

#include "tools/xfrm/message.h"

namespace espalier::tools::xfrm {
namespace {

using ifaces::Family;
using ifaces::IpAddress;

struct Ports {
  std::uint16_t first = 0, last = 65535;
};

Ports to_ports(std::uint16_t port_be, std::uint16_t mask_be) {
  const std::uint16_t mask = ntohs(mask_be);
  const auto rest = static_cast<std::uint16_t>(~mask);
  if ((rest & (rest + 1U)) != 0)
    throw Refused(EINVAL, "a port mask must be ones, then zeros: 0xff00, not 0x00ff");
  const auto first = static_cast<std::uint16_t>(ntohs(port_be) & mask);
  return {first, static_cast<std::uint16_t>(first | rest)};
}

// What kernels take for no limit, and what makes no sense as one.
dataplane::Limit to_limit(std::uint64_t soft, std::uint64_t hard) noexcept {
  dataplane::Limit out;
  if (hard != XFRM_INF) out.hard = hard;
  if (soft != XFRM_INF && (out.hard == 0 || soft < out.hard)) out.soft = soft;
  return out;
}

std::uint64_t or_infinite(std::uint64_t limit) noexcept {
  return limit == 0 ? XFRM_INF : limit;
}

}  // namespace

IpAddress to_address(const xfrm_address_t& address, std::uint16_t family) noexcept {
  IpAddress out;
  if (family == AF_INET) out.family = Family::v4;
  if (family == AF_INET6) out.family = Family::v6;
  if (out.family != Family::none) std::memcpy(out.bytes.data(), &address, out.size());
  return out;
}

xfrm_address_t from_address(const IpAddress& address) noexcept {
  auto out = zeroed<xfrm_address_t>();
  std::memcpy(&out, address.bytes.data(), address.bytes.size());
  return out;
}

std::uint16_t family_of(const IpAddress& address) noexcept {
  return address.family == Family::v6 ? AF_INET6 : AF_INET;
}

dataplane::Selector to_selector(const xfrm_selector& selector) {
  const unsigned bits = selector.family == AF_INET6 ? 128 : 32;
  if (selector.family != AF_INET && selector.family != AF_INET6)
    throw Refused(EINVAL, "Invalid selector family");
  if (selector.prefixlen_s > bits || selector.prefixlen_d > bits)
    throw Refused(EINVAL, bits == 32
                              ? "Invalid prefix length in selector (must be <= 32 for IPv4)"
                              : "Invalid prefix length in selector (must be <= 128 for IPv6)");
  dataplane::Selector out;
  out.source = {to_address(selector.saddr, selector.family), selector.prefixlen_s};
  out.destination = {to_address(selector.daddr, selector.family), selector.prefixlen_d};
  out.source = out.source.network();
  out.destination = out.destination.network();
  out.protocol = selector.proto;
  const Ports source = to_ports(selector.sport, selector.sport_mask);
  const Ports destination = to_ports(selector.dport, selector.dport_mask);
  out.source_port_first = source.first;
  out.source_port_last = source.last;
  out.destination_port_first = destination.first;
  out.destination_port_last = destination.last;
  return out;
}

xfrm_selector from_selector(const dataplane::Selector& selector) noexcept {
  auto out = zeroed<xfrm_selector>();
  out.family = family_of(selector.source.address);
  out.saddr = from_address(selector.source.address);
  out.daddr = from_address(selector.destination.address);
  out.prefixlen_s = selector.source.length;
  out.prefixlen_d = selector.destination.length;
  out.proto = selector.protocol;
  if (selector.source_port_first != 0 || selector.source_port_last != 65535) {
    out.sport = htons(selector.source_port_first);
    out.sport_mask = 0xffff;
  }
  if (selector.destination_port_first != 0 || selector.destination_port_last != 65535) {
    out.dport = htons(selector.destination_port_first);
    out.dport_mask = 0xffff;
  }
  return out;
}

dataplane::Lifetime to_lifetime(const xfrm_lifetime_cfg& lifetime) noexcept {
  return {to_limit(lifetime.soft_byte_limit, lifetime.hard_byte_limit),
          to_limit(lifetime.soft_packet_limit, lifetime.hard_packet_limit),
          to_limit(lifetime.soft_add_expires_seconds, lifetime.hard_add_expires_seconds)};
}

xfrm_lifetime_cfg from_lifetime(const dataplane::Lifetime& lifetime) noexcept {
  auto out = zeroed<xfrm_lifetime_cfg>();
  out.soft_byte_limit = or_infinite(lifetime.bytes.soft);
  out.hard_byte_limit = or_infinite(lifetime.bytes.hard);
  out.soft_packet_limit = or_infinite(lifetime.packets.soft);
  out.hard_packet_limit = or_infinite(lifetime.packets.hard);
  out.soft_add_expires_seconds = lifetime.seconds.soft;
  out.hard_add_expires_seconds = lifetime.seconds.hard;
  return out;
}

std::uint32_t host_order(std::uint32_t be32) noexcept {
  return ntohl(be32);
}
std::uint16_t host_order16(std::uint16_t be16) noexcept {
  return ntohs(be16);
}

}  // namespace espalier::tools::xfrm
