// Packets by description, built the slow and obvious way: what segmentation and coalescing are
// checked against.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <utility>
#include <vector>

#include "dataplane/coalesce.h"
#include "dataplane/segment.h"
#include "ifaces/vnet_hdr.h"

namespace espalier::dataplane::test {

using Bytes = std::vector<std::uint8_t>;

inline constexpr std::uint8_t kFin = 1, kSyn = 2, kRst = 4, kPsh = 8, kAck = 16, kUrg = 32,
                              kEce = 64, kCwr = 128;

struct PacketSpec {
  bool ipv6 = false;
  bool tcp = true;
  std::uint8_t tos = 0;
  std::uint8_t ttl = 64;
  std::uint32_t flow_label = 0;     // 20 bits
  std::uint16_t id = 0;             // IPv4
  std::uint16_t fragment = 0x4000;  // IPv4: flags and offset; DF
  Bytes ip_options;                 // a multiple of 4
  // IPv6: type and the bytes behind the next-header field (8n - 1 of them)
  std::vector<std::pair<std::uint8_t, Bytes>> extensions;
  std::uint8_t source = 1, destination = 2;  // the last byte of the address
  std::uint16_t source_port = 1000, destination_port = 2000;
  std::uint32_t seq = 1;
  std::uint32_t ack = 1;
  std::uint8_t flags = kAck;
  std::uint8_t reserved = 0;  // the low half of the byte with the header length
  std::uint16_t window = 512;
  std::uint16_t urgent = 0;
  Bytes tcp_options;  // a multiple of 4
  Bytes payload;
  bool no_udp_checksum = false;
};

inline void put16(Bytes& to, std::size_t v) {
  to.push_back(static_cast<std::uint8_t>(v >> 8));
  to.push_back(static_cast<std::uint8_t>(v));
}
inline void put32(Bytes& to, std::uint32_t v) {
  put16(to, v >> 16);
  put16(to, v & 0xffff);
}
inline void append(Bytes& to, std::span<const std::uint8_t> more) {
  to.insert(to.end(), more.begin(), more.end());
}
inline void set16(Bytes& in, std::size_t at, std::size_t v) {
  in[at] = static_cast<std::uint8_t>(v >> 8);
  in[at + 1] = static_cast<std::uint8_t>(v);
}
inline std::uint16_t get16(std::span<const std::uint8_t> in, std::size_t at) {
  return static_cast<std::uint16_t>(in[at] << 8 | in[at + 1]);
}
inline std::uint32_t get32(std::span<const std::uint8_t> in, std::size_t at) {
  return std::uint32_t{get16(in, at)} << 16 | get16(in, at + 2);
}

// RFC 1071 §1, not complemented.
inline std::uint16_t slow_sum(std::span<const std::uint8_t> bytes, std::uint32_t sum = 0) {
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    sum += i % 2 == 0 ? std::uint32_t{bytes[i]} << 8 : bytes[i];
    sum = (sum & 0xffff) + (sum >> 16);
  }
  return static_cast<std::uint16_t>(sum);
}

inline std::size_t l4_of(const PacketSpec& spec) {
  std::size_t at = spec.ipv6 ? 40 : 20 + spec.ip_options.size();
  for (const auto& [type, rest] : spec.extensions) at += 1 + rest.size();
  return at;
}
inline std::size_t headers_of(const PacketSpec& spec) {
  return l4_of(spec) + (spec.tcp ? 20 + spec.tcp_options.size() : 8);
}
inline std::size_t checksum_at(const PacketSpec& spec) {
  return l4_of(spec) + (spec.tcp ? 16 : 6);
}

inline Bytes address(bool ipv6, std::uint8_t last) {
  if (!ipv6) return {10, 0, last, last};
  return {0xfd, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, 0, 0, 0, 0, last};
}

inline std::uint16_t pseudo_sum(const PacketSpec& spec, std::size_t l4_length) {
  Bytes pseudo = address(spec.ipv6, spec.source);
  append(pseudo, address(spec.ipv6, spec.destination));
  put32(pseudo, static_cast<std::uint32_t>(l4_length));
  put32(pseudo, spec.tcp ? 6 : 17);
  return slow_sum(pseudo);
}

inline Bytes transport(const PacketSpec& spec) {
  Bytes out;
  put16(out, spec.source_port);
  put16(out, spec.destination_port);
  if (spec.tcp) {
    put32(out, spec.seq);
    put32(out, spec.ack);
    out.push_back(
        static_cast<std::uint8_t>((5 + spec.tcp_options.size() / 4) << 4 | spec.reserved));
    out.push_back(spec.flags);
    put16(out, spec.window);
    put16(out, 0);
    put16(out, spec.urgent);
    append(out, spec.tcp_options);
  } else {
    put16(out, 8 + spec.payload.size());
    put16(out, 0);
  }
  append(out, spec.payload);
  std::uint16_t sum = static_cast<std::uint16_t>(~slow_sum(out, pseudo_sum(spec, out.size())));
  if (!spec.tcp && sum == 0) sum = 0xffff;
  if (!spec.tcp && spec.no_udp_checksum) sum = 0;
  set16(out, spec.tcp ? 16 : 6, sum);
  return out;
}

// A complete packet with correct checksums.
inline Bytes build(const PacketSpec& spec) {
  const Bytes l4 = transport(spec);
  const std::uint8_t protocol = spec.tcp ? 6 : 17;
  Bytes out;
  if (spec.ipv6) {
    put32(out, 6U << 28 | std::uint32_t{spec.tos} << 20 | spec.flow_label);
    put16(out, l4_of(spec) - 40 + l4.size());
    out.push_back(spec.extensions.empty() ? protocol : spec.extensions[0].first);
    out.push_back(spec.ttl);
    append(out, address(true, spec.source));
    append(out, address(true, spec.destination));
    for (std::size_t i = 0; i < spec.extensions.size(); ++i) {
      const bool last = i + 1 == spec.extensions.size();
      out.push_back(last ? protocol : spec.extensions[i + 1].first);
      append(out, spec.extensions[i].second);
    }
  } else {
    out.push_back(static_cast<std::uint8_t>(0x45 + spec.ip_options.size() / 4));
    out.push_back(spec.tos);
    put16(out, l4_of(spec) + l4.size());
    put16(out, spec.id);
    put16(out, spec.fragment);
    out.push_back(spec.ttl);
    out.push_back(protocol);
    put16(out, 0);
    append(out, address(false, spec.source));
    append(out, address(false, spec.destination));
    append(out, spec.ip_options);
    set16(out, 10, static_cast<std::uint16_t>(~slow_sum(out)));
  }
  append(out, l4);
  return out;
}

// As a sender with checksum offload leaves it: the field holds the pseudo-header's sum.
inline Bytes build_partial(const PacketSpec& spec) {
  Bytes out = build(spec);
  set16(out, checksum_at(spec), pseudo_sum(spec, out.size() - l4_of(spec)));
  return out;
}

inline ifaces::VnetHdr csum_header(const PacketSpec& spec) {
  return {.flags = ifaces::kVnetNeedsCsum,
          .gso_type = ifaces::kVnetGsoNone,
          .hdr_len = 0,
          .gso_size = 0,
          .csum_start = static_cast<std::uint16_t>(l4_of(spec)),
          .csum_offset = static_cast<std::uint16_t>(checksum_at(spec) - l4_of(spec))};
}

inline ifaces::VnetHdr gso_header(const PacketSpec& spec, std::size_t gso_size) {
  ifaces::VnetHdr hdr = csum_header(spec);
  hdr.gso_type = !spec.tcp   ? ifaces::kVnetGsoUdpL4
                 : spec.ipv6 ? ifaces::kVnetGsoTcp6
                             : ifaces::kVnetGsoTcp4;
  if (spec.tcp && (spec.flags & kCwr) != 0) hdr.gso_type |= ifaces::kVnetGsoEcn;
  hdr.hdr_len = static_cast<std::uint16_t>(headers_of(spec));
  hdr.gso_size = static_cast<std::uint16_t>(gso_size);
  return hdr;
}

// What a sender without offloads would have sent.
inline std::vector<Bytes> reference_segments(const PacketSpec& whole, std::size_t gso_size) {
  std::vector<Bytes> out;
  const Bytes& payload = whole.payload;
  for (std::size_t at = 0; at < payload.size(); at += gso_size) {
    PacketSpec part = whole;
    const std::size_t end = std::min(at + gso_size, payload.size());
    part.payload.assign(payload.begin() + static_cast<std::ptrdiff_t>(at),
                        payload.begin() + static_cast<std::ptrdiff_t>(end));
    part.seq = whole.seq + static_cast<std::uint32_t>(at);
    part.id = static_cast<std::uint16_t>(whole.id + out.size());
    if (end != payload.size()) part.flags &= static_cast<std::uint8_t>(~(kFin | kPsh));
    if (at != 0) part.flags &= static_cast<std::uint8_t>(~kCwr);
    out.push_back(build(part));
  }
  return out;
}

// Through the code under test; each segment in a block of its own size, for ASan. False: refused.
inline bool segments_of(const ifaces::VnetHdr& hdr, std::span<const std::uint8_t> packet,
                        std::vector<Bytes>& out) {
  SegmentPlan plan;
  if (!plan_segments(hdr, packet, plan)) return false;
  out.clear();
  for (std::size_t i = 0; i < plan.count; ++i) {
    Bytes segment(segment_length(plan, i));
    write_segment(plan, packet, i, segment.data());
    out.push_back(std::move(segment));
  }
  return true;
}

inline Bytes random_bytes(std::mt19937& random, std::size_t n) {
  Bytes bytes(n);
  for (auto& b : bytes) b = static_cast<std::uint8_t>(random());
  return bytes;
}

// What the coalescer wrote, copied out of the buffers.
struct Write {
  ifaces::VnetHdr hdr{};
  Bytes packet;
  std::size_t packets = 0;
  std::size_t parts = 0;
};

class Collector final : public TunSink {
 public:
  void write(std::span<const iovec> parts, std::uint16_t packets) noexcept override {
    Bytes all;
    for (const iovec& part : parts)
      append(all, {static_cast<const std::uint8_t*>(part.iov_base), part.iov_len});
    Write w{.hdr = {}, .packet = {}, .packets = packets, .parts = parts.size()};
    std::memcpy(&w.hdr, all.data(), sizeof w.hdr);
    w.packet.assign(all.begin() + sizeof w.hdr, all.end());
    writes.push_back(std::move(w));
  }
  std::vector<Write> writes;
};

// Receive buffers: each packet in a block of its own size, for ASan, alive until the end.
class Receiver {
 public:
  explicit Receiver(ifaces::TunOffloads offloads = {true, true, true}) : coalescer_(offloads) {}
  void add(const Bytes& packet) {
    Bytes block(kCoalesceHeadroom, 0xee);
    append(block, packet);
    blocks_.push_back(std::move(block));
    coalescer_.add(blocks_.back().data() + kCoalesceHeadroom,
                   static_cast<std::uint32_t>(packet.size()), sink);
  }
  void flush() { coalescer_.flush(sink); }
  Collector sink;

 private:
  Coalescer coalescer_;
  std::vector<Bytes> blocks_;
};

}  // namespace espalier::dataplane::test
