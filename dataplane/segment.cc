#include "dataplane/segment.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "dataplane/bytes.h"
#include "dataplane/checksum.h"

namespace espalier::dataplane {
namespace {

using Bytes = std::span<const std::uint8_t>;

constexpr std::uint8_t kTcp = 6, kUdp = 17;
constexpr std::uint16_t kTcpChecksum = 16, kUdpChecksum = 6;  // their offsets in the header
constexpr std::size_t kTcpHeader = 20, kUdpHeader = 8;
// Far beyond any extension headers in use, and small enough for 16-bit offsets behind it.
constexpr std::size_t kMaxChain = 8192;
constexpr std::uint8_t kFin = 0x01, kPsh = 0x08, kCwr = 0x80;

// Sums are in native order over network-order words (RFC 1071 §2 (B)).
constexpr std::uint64_t as_summed(std::uint16_t v) {
  return std::endian::native == std::endian::little ? __builtin_bswap16(v) : v;
}
constexpr std::uint64_t as_summed(std::uint32_t v) {
  return std::endian::native == std::endian::little ? __builtin_bswap32(v) : v;
}
// What takes `v` out of a sum again: -v modulo 0xffff.
constexpr std::uint64_t negated(std::uint64_t v) {
  return 0xffff'ffff - v;
}

std::uint16_t load16(const std::uint8_t* p) {
  return load_be<std::uint16_t>(p);
}

void store_sum(std::uint8_t* p, std::uint16_t native) {
  std::memcpy(p, &native, sizeof native);
}

struct Network {
  bool ipv6;
  bool fragment;
  std::uint8_t protocol;  // behind the extension headers
  std::size_t header;     // the IP header with IPv4 options, without IPv6 extension headers
  std::size_t l4;
};

bool parse_v4(Bytes packet, Network& net) {
  if (packet.size() < 20) return false;
  net.header = (packet[0] & 0xfU) * std::size_t{4};
  if (net.header < 20 || net.header > packet.size()) return false;
  if (load16(&packet[2]) != packet.size()) return false;
  net.ipv6 = false;
  net.fragment = (load16(&packet[6]) & 0x3fff) != 0;  // MF, or an offset
  net.protocol = packet[9];
  net.l4 = net.header;
  return true;
}

bool parse_v6(Bytes packet, Network& net) {
  if (packet.size() < 40 || load16(&packet[4]) + std::size_t{40} != packet.size()) return false;
  net.ipv6 = true;
  net.fragment = false;
  net.header = net.l4 = 40;
  net.protocol = packet[6];
  // RFC 8200 §4.1. What is none of these, or does not fit, ends the chain: it is not TCP or UDP.
  while (net.protocol == 0 || net.protocol == 43 || net.protocol == 60) {
    if (net.l4 + 8 > packet.size()) return true;
    const std::size_t next = net.l4 + (packet[net.l4 + 1] + std::size_t{1}) * 8;
    if (next > packet.size() || next > kMaxChain) return true;
    net.protocol = packet[net.l4];
    net.l4 = next;
  }
  net.fragment = net.protocol == 44;
  return true;
}

bool parse(Bytes packet, Network& net) {
  if (packet.empty()) return false;
  switch (packet[0] >> 4) {
    case 4:
      return parse_v4(packet, net);
    case 6:
      return parse_v6(packet, net);
    default:
      return false;
  }
}

bool plan_uncut(const ifaces::VnetHdr& hdr, Bytes packet, const Network& net, SegmentPlan& plan) {
  plan.kind = SegmentPlan::Kind::whole;
  plan.count = 1;
  if ((hdr.flags & ifaces::kVnetNeedsCsum) == 0) return true;
  plan.kind = SegmentPlan::Kind::whole_csum;
  plan.csum_start = hdr.csum_start;
  plan.csum_offset = hdr.csum_offset;
  // A checksum that covers a fragment only is nobody's.
  if (net.fragment || hdr.csum_start < net.header) return false;
  if (std::size_t{hdr.csum_start} + hdr.csum_offset + 2 > packet.size()) return false;
  // Inside a tunnel of the sender's making (VXLAN, IP in IP) only the offset tells.
  plan.udp = hdr.csum_start == net.l4 ? net.protocol == kUdp : hdr.csum_offset == kUdpChecksum;
  return true;
}

std::uint64_t sum_addresses(Bytes packet, bool ipv6) {
  return ipv6 ? sum_bytes(&packet[8], 32) : sum_bytes(&packet[12], 8);
}

// Common to TCP and UDP, when `plan.headers` is known.
bool plan_run(const ifaces::VnetHdr& hdr, Bytes packet, const Network& net, SegmentPlan& plan) {
  const std::uint16_t csum_offset = net.protocol == kTcp ? kTcpChecksum : kUdpChecksum;
  const std::uint8_t* l4 = &packet[net.l4];
  const auto l4_length = static_cast<std::uint32_t>(packet.size() - net.l4);
  plan.pseudo_sum = sum_bytes(l4, plan.headers - net.l4);
  if ((hdr.flags & ifaces::kVnetNeedsCsum) != 0) {
    if (hdr.csum_start != net.l4 || hdr.csum_offset != csum_offset) return false;
    plan.pseudo_sum += negated(as_summed(l4_length));  // the seed is in the header's sum
  } else {
    // Complete sums that the kernel has verified; without either flag they may be corrupt, and
    // would leave repaired.
    const std::uint16_t old = load16(l4 + csum_offset);
    if ((hdr.flags & ifaces::kVnetDataValid) == 0) return false;
    if (net.protocol == kUdp && old == 0) return false;  // none: nothing was verified
    plan.pseudo_sum += negated(as_summed(old)) + sum_addresses(packet, net.ipv6) +
                       as_summed(std::uint16_t{net.protocol});
  }
  const std::size_t payload = packet.size() - plan.headers;
  const std::size_t count = (payload + hdr.gso_size - 1) / hdr.gso_size;
  if (count == 0 || count > 65535) return false;
  plan.count = static_cast<std::uint16_t>(count);
  plan.segment = hdr.gso_size;
  if (net.ipv6) return true;
  plan.ip_id = load16(&packet[4]);
  plan.ip_sum = sum_bytes(packet.data(), net.header) + negated(as_summed(load16(&packet[2]))) +
                negated(as_summed(plan.ip_id)) + negated(as_summed(load16(&packet[10])));
  return true;
}

bool plan_tcp(const ifaces::VnetHdr& hdr, Bytes packet, const Network& net, SegmentPlan& plan) {
  if (net.protocol != kTcp || net.l4 + kTcpHeader > packet.size()) return false;
  const std::uint8_t* tcp = &packet[net.l4];
  const std::size_t header = (tcp[12] >> 4) * std::size_t{4};
  if (header < kTcpHeader || net.l4 + header > packet.size()) return false;
  plan.kind = SegmentPlan::Kind::tcp;
  plan.headers = static_cast<std::uint16_t>(net.l4 + header);
  plan.tcp_seq = load_be<std::uint32_t>(tcp + 4);
  plan.tcp_flags = tcp[13];
  // RFC 3168 §6.1.2: one CWR answers one reduction, also where the sender did not say kVnetGsoEcn.
  plan.cwr_first_only = (tcp[13] & kCwr) != 0;
  if (!plan_run(hdr, packet, net, plan)) return false;
  plan.pseudo_sum +=
      negated(as_summed(plan.tcp_seq)) + negated(as_summed(std::uint16_t{plan.tcp_flags}));
  return true;
}

bool plan_udp(const ifaces::VnetHdr& hdr, Bytes packet, const Network& net, SegmentPlan& plan) {
  if (net.protocol != kUdp || net.l4 + kUdpHeader > packet.size()) return false;
  const std::uint16_t length = load16(&packet[net.l4 + 4]);
  if (length != packet.size() - net.l4) return false;
  plan.kind = SegmentPlan::Kind::udp;
  plan.udp = true;
  plan.headers = static_cast<std::uint16_t>(net.l4 + kUdpHeader);
  if (!plan_run(hdr, packet, net, plan)) return false;
  plan.pseudo_sum += negated(as_summed(length));
  return true;
}

// `sum`: of everything from csum_start on.
void store_whole_csum(const SegmentPlan& plan, std::uint64_t sum, std::uint8_t* out) {
  auto checksum = static_cast<std::uint16_t>(~fold(sum));
  if (plan.udp && checksum == 0) checksum = 0xffff;
  store_sum(out + plan.csum_start + plan.csum_offset, checksum);
}

void write_whole_csum(const SegmentPlan& plan, Bytes packet, std::uint8_t* out) {
  std::memcpy(out, packet.data(), plan.csum_start);
  store_whole_csum(plan,
                   copy_and_sum(out + plan.csum_start, packet.data() + plan.csum_start,
                                plan.length - plan.csum_start),
                   out);
}

}  // namespace

bool plan_segments(const ifaces::VnetHdr& hdr, std::span<const std::uint8_t> packet,
                   SegmentPlan& plan) noexcept {
  Network net{};
  if (!parse(packet, net)) return false;
  plan = {};
  plan.ipv6 = net.ipv6;
  plan.l4 = static_cast<std::uint16_t>(net.l4);
  plan.length = static_cast<std::uint32_t>(packet.size());
  if (hdr.gso_type == ifaces::kVnetGsoNone) return plan_uncut(hdr, packet, net, plan);
  if (hdr.gso_size == 0 || net.fragment) return false;
  switch (hdr.gso_type) {
    case ifaces::kVnetGsoTcp4:
    case ifaces::kVnetGsoTcp4 | ifaces::kVnetGsoEcn:
      return !net.ipv6 && plan_tcp(hdr, packet, net, plan);
    case ifaces::kVnetGsoTcp6:
    case ifaces::kVnetGsoTcp6 | ifaces::kVnetGsoEcn:
      return net.ipv6 && plan_tcp(hdr, packet, net, plan);
    case ifaces::kVnetGsoUdpL4:
      return plan_udp(hdr, packet, net, plan);
    default:
      return false;
  }
}

void complete(const SegmentPlan& plan, std::span<std::uint8_t> packet) noexcept {
  if (plan.kind != SegmentPlan::Kind::whole_csum) return;
  store_whole_csum(plan, sum_bytes(&packet[plan.csum_start], plan.length - plan.csum_start),
                   packet.data());
}

void write_segment(const SegmentPlan& plan, std::span<const std::uint8_t> packet, std::size_t i,
                   std::uint8_t* out) noexcept {
  if (plan.kind == SegmentPlan::Kind::whole) {
    std::memcpy(out, packet.data(), plan.length);
    return;
  }
  if (plan.kind == SegmentPlan::Kind::whole_csum) return write_whole_csum(plan, packet, out);

  const std::size_t length = segment_length(plan, i);
  const std::size_t payload = length - plan.headers;
  const std::size_t before = i * plan.segment;
  const auto l4_length = static_cast<std::uint16_t>(length - plan.l4);
  std::uint8_t* l4 = out + plan.l4;
  std::memcpy(out, packet.data(), plan.headers);
  std::uint64_t sum =
      plan.pseudo_sum + as_summed(l4_length) +
      copy_and_sum(out + plan.headers, packet.data() + plan.headers + before, payload);

  if (plan.ipv6) {
    store_be(out + 4, static_cast<std::uint16_t>(length - 40));
  } else {
    const auto id = static_cast<std::uint16_t>(plan.ip_id + i);
    const auto total = static_cast<std::uint16_t>(length);
    store_be(out + 2, total);
    store_be(out + 4, id);
    store_sum(out + 10,
              static_cast<std::uint16_t>(~fold(plan.ip_sum + as_summed(total) + as_summed(id))));
  }

  if (plan.kind == SegmentPlan::Kind::tcp) {
    const auto seq = static_cast<std::uint32_t>(plan.tcp_seq + before);
    std::uint8_t flags = plan.tcp_flags;
    if (i + 1 != plan.count) flags &= static_cast<std::uint8_t>(~(kFin | kPsh));
    if (plan.cwr_first_only && i != 0) flags &= static_cast<std::uint8_t>(~kCwr);
    store_be(l4 + 4, seq);
    l4[13] = flags;
    sum += as_summed(seq) + as_summed(std::uint16_t{flags});
    store_sum(l4 + kTcpChecksum, static_cast<std::uint16_t>(~fold(sum)));
  } else {
    store_be(l4 + 4, l4_length);
    sum += as_summed(l4_length);
    const auto checksum = static_cast<std::uint16_t>(~fold(sum));
    store_sum(l4 + kUdpChecksum, checksum == 0 ? std::uint16_t{0xffff} : checksum);
  }
}

}  // namespace espalier::dataplane
