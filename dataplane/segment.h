// Outbound: a super-packet from the TUN becomes packets that fit a tunnel (TSO, USO), and an
// incomplete checksum becomes a complete one. Copies, but for complete().
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "ifaces/vnet_hdr.h"

namespace espalier::dataplane {

// How one TUN read is cut. Made by plan_segments; every field has been checked against the packet.
struct SegmentPlan {
  enum class Kind : std::uint8_t { whole, whole_csum, tcp, udp };
  Kind kind;
  bool ipv6;
  bool cwr_first_only;
  bool udp;                  // a checksum of zero is sent as 0xffff (RFC 768)
  std::uint16_t count;       // segments, at least 1
  std::uint16_t l4;          // bytes before the TCP or UDP header (IPv6 extension headers included)
  std::uint16_t headers;     // bytes repeated in front of every segment; 0 for `whole*`
  std::uint16_t segment;     // payload bytes of each segment but the last
  std::uint16_t csum_start;  // whole_csum
  std::uint16_t csum_offset;
  std::uint16_t ip_id;       // IPv4: of the first segment
  std::uint8_t tcp_flags;    // of the whole
  std::uint32_t tcp_seq;     // of the first segment
  std::uint32_t length;      // of the whole packet, bytes
  std::uint64_t pseudo_sum;  // unfolded sum of the parts that are equal in all segments: TCP or UDP
  std::uint64_t ip_sum;      // the same of the IPv4 header
};

// False if the header contradicts the packet (too short, lengths outside it, not the protocol that
// gso_type names, more than 65,535 segments), or the packet itself (its length by the IP header is
// not its length): the packet is to be dropped. `packet` starts with the IP header.
// With kVnetNeedsCsum the checksum field holds the sum of the pseudo-header, as VIRTIO 1.2 §5.1.6.2
// has it: behind an IPv6 routing header only the sender knows the final destination.
[[nodiscard]] bool plan_segments(const ifaces::VnetHdr& hdr, std::span<const std::uint8_t> packet,
                                 SegmentPlan& plan) noexcept;

// The plan of a packet that is whole, its checksum complete, and whose length by its own header is
// `length`: what plan_segments makes of it.
inline void plan_whole(std::size_t length, SegmentPlan& plan) noexcept {
  plan = {};
  plan.count = 1;
  plan.length = static_cast<std::uint32_t>(length);
}

// Bytes of segment `i` (0 … count-1), headers included.
[[nodiscard]] inline std::size_t segment_length(const SegmentPlan& plan, std::size_t i) noexcept {
  if (plan.headers == 0) return plan.length;
  const std::size_t before = i * plan.segment;
  return plan.headers + std::min<std::size_t>(plan.segment, plan.length - plan.headers - before);
}

// Completes the checksum of a packet that is not cut (headers == 0) where it stands.
void complete(const SegmentPlan& plan, std::span<std::uint8_t> packet) noexcept;

// Writes segment `i` to `out` (segment_length bytes; must not overlap `packet`), its lengths, IP
// ID, sequence number, flags and checksums as a NIC's TSO would have them.
void write_segment(const SegmentPlan& plan, std::span<const std::uint8_t> packet, std::size_t i,
                   std::uint8_t* out) noexcept;

}  // namespace espalier::dataplane
