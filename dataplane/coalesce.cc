#include "dataplane/coalesce.h"

#include <array>
#include <bit>
#include <cstring>

#include "dataplane/bytes.h"
#include "dataplane/checksum.h"

namespace espalier::dataplane {
namespace {

constexpr std::uint8_t kTcp = 6, kUdp = 17;
constexpr std::uint16_t kTcpChecksum = 16, kUdpChecksum = 6;
constexpr std::uint32_t kIpv4Header = 20, kIpv6Header = 40, kTcpHeader = 20, kUdpHeader = 8;
constexpr std::uint32_t kMaxTotal = 65535;  // of a super-packet: IPv4's length field
constexpr std::uint8_t kPsh = 0x08, kAck = 0x10, kEce = 0x40, kCwr = 0x80;

template <class T>
T load(const std::uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

constexpr std::uint16_t to_be(std::uint16_t v) {
  return std::endian::native == std::endian::little ? __builtin_bswap16(v) : v;
}

using Mask = std::array<std::uint8_t, 8>;
constexpr std::uint64_t mask_of(Mask bytes) {
  return std::bit_cast<std::uint64_t>(bytes);
}

struct Packet {
  std::uint8_t* ip;
  std::uint32_t length;
  std::uint32_t l4;
  std::uint32_t headers;
  std::uint32_t payload;
  std::uint8_t flags;  // TCP
  bool ipv6;
  bool tcp;
  bool joinable;  // by what its own header says

  [[nodiscard]] const std::uint8_t* l4_header() const { return ip + l4; }
};

// TCP and UDP in plain headers. False: anything else.
bool parse(std::uint8_t* ip, std::uint32_t length, Packet& packet) {
  if (length < kIpv4Header) return false;
  std::uint8_t protocol = 0;
  if (ip[0] == 0x45) {
    protocol = ip[9];
    packet.ipv6 = false;
    packet.l4 = kIpv4Header;
    if ((load_be<std::uint16_t>(ip + 6) & 0x3fff) != 0) return false;  // a fragment
    if (load_be<std::uint16_t>(ip + 2) != length) return false;
  } else if (ip[0] >> 4 == 6 && length >= kIpv6Header) {
    protocol = ip[6];
    packet.ipv6 = true;
    packet.l4 = kIpv6Header;
    if (load_be<std::uint16_t>(ip + 4) + kIpv6Header != length) return false;
  } else {
    return false;
  }
  packet.ip = ip;
  packet.length = length;
  const std::uint8_t* l4 = ip + packet.l4;
  if (protocol == kTcp) {
    if (length < packet.l4 + kTcpHeader) return false;
    packet.tcp = true;
    packet.headers = packet.l4 + (l4[12] >> 4) * 4U;
    if (packet.headers < packet.l4 + kTcpHeader || packet.headers > length) return false;
    packet.flags = l4[13];
    packet.joinable = (packet.flags & ~(kPsh | kEce | kCwr)) == kAck;
  } else if (protocol == kUdp) {
    if (length < packet.l4 + kUdpHeader) return false;
    packet.tcp = false;
    packet.headers = packet.l4 + kUdpHeader;
    packet.flags = 0;
    packet.joinable = load<std::uint16_t>(l4 + kUdpChecksum) != 0 &&
                      load_be<std::uint16_t>(l4 + 4) == length - packet.l4;
  } else {
    return false;
  }
  packet.payload = length - packet.headers;
  packet.joinable = packet.joinable && packet.payload != 0;
  return true;
}

// Addresses and ports, one after the other in both versions.
bool same_flow(const Packet& a, const Packet& b) {
  // Not `ipv6`: GCC would join it with its neighbour `tcp` in one load, which waits for the single
  // stores of parse().
  if (a.l4 != b.l4 || a.tcp != b.tcp) return false;
  if (!a.ipv6)
    return ((load<std::uint64_t>(a.ip + 12) ^ load<std::uint64_t>(b.ip + 12)) |
            (load<std::uint64_t>(a.ip + 16) ^ load<std::uint64_t>(b.ip + 16))) == 0;
  std::uint64_t differs = load<std::uint32_t>(a.ip + 40) ^ load<std::uint32_t>(b.ip + 40);
  for (std::size_t i = 8; i < 40; i += 8)
    differs |= load<std::uint64_t>(a.ip + i) ^ load<std::uint64_t>(b.ip + i);
  return differs == 0;
}

// Any function of what same_flow looks at will do; a collision costs one more comparison.
std::uint32_t flow_tag(const Packet& p) {
  std::uint64_t h = load<std::uint32_t>(p.ip + p.l4) + (p.tcp ? 1U : 0U);
  const std::size_t end = p.l4;
  for (std::size_t i = p.ipv6 ? 8 : 12; i < end; i += 8)
    h = (h ^ load<std::uint64_t>(p.ip + i)) * 0x9e37'79b9'7f4a'7c15;
  return static_cast<std::uint32_t>(h >> 32);
}

// What must be equal in all packets of a super-packet, besides addresses and ports.
bool same_headers(const Packet& a, const Packet& b) {
  constexpr std::uint64_t v4_start = mask_of({255, 255, 0, 0, 0, 0, 255, 255});  // TOS, DF
  constexpr std::uint64_t v6_start = mask_of({255, 255, 255, 255, 0, 0, 255, 255});
  constexpr std::uint64_t tcp_middle =  // ACK, header length, reserved bits, ECE, window
      mask_of({255, 255, 255, 255, 255, kEce, 255, 255});
  std::uint64_t differs =
      (load<std::uint64_t>(a.ip) ^ load<std::uint64_t>(b.ip)) & (a.ipv6 ? v6_start : v4_start);
  if (!a.ipv6) differs |= std::uint64_t{a.ip[8]} ^ b.ip[8];  // TTL
  if (!a.tcp) return differs == 0;
  const std::uint8_t* s = a.l4_header();
  const std::uint8_t* t = b.l4_header();
  differs |= (load<std::uint64_t>(s + 8) ^ load<std::uint64_t>(t + 8)) & tcp_middle;
  differs |= std::uint64_t{load<std::uint16_t>(s + 18)} ^ load<std::uint16_t>(t + 18);  // urgent
  if (differs != 0) return false;
  std::uint32_t options_differ = 0;
  for (std::uint32_t i = kTcpHeader; i < a.headers - a.l4; i += 4)
    options_differ |= load<std::uint32_t>(s + i) ^ load<std::uint32_t>(t + i);
  return options_differ == 0;
}

std::uint64_t sum_ipv4_header(const std::uint8_t* ip) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < kIpv4Header; i += 4) sum += load<std::uint32_t>(ip + i);
  return sum;
}

std::uint64_t sum_protocol_and_length(const Packet& p) {
  return std::uint64_t{to_be(p.tcp ? kTcp : kUdp)} +
         to_be(static_cast<std::uint16_t>(p.length - p.l4));
}

// The addresses of the pseudo-header stand right before the TCP or UDP header.
bool checksums_correct(const Packet& p) {
  if (!p.ipv6 && fold(sum_ipv4_header(p.ip)) != 0xffff) return false;
  const std::uint32_t addresses = p.ipv6 ? 8 : 12;
  return fold(sum_protocol_and_length(p) + sum_bytes(p.ip + addresses, p.length - addresses)) ==
         0xffff;
}

struct Flow {
  Packet first;  // length grows with what is appended
  std::uint32_t count;
  std::uint32_t segment;  // payload bytes of each packet but the last
  std::uint32_t next_seq;
  std::uint16_t next_id;
  std::uint16_t id_step;  // known from the second packet on
  std::uint8_t last_flags;
  bool verified;  // the first packet's checksums; the others' always are
  std::array<iovec, kMaxCoalesced> parts;
};

bool id_fits(const Flow& flow, const Packet& p) {
  if (p.ipv6) return true;
  const auto id = load_be<std::uint16_t>(p.ip + 4);
  if (id == flow.next_id) return true;
  const bool dont_fragment = (p.ip[6] & 0x40) != 0;
  return flow.count == 1 && dont_fragment && id == load_be<std::uint16_t>(flow.first.ip + 4);
}

bool can_append(const Flow& flow, const Packet& p) {
  if (!p.joinable || (p.flags & kCwr) != 0) return false;
  if (p.payload > flow.segment || flow.first.length + p.payload > kMaxTotal) return false;
  if (p.tcp && load_be<std::uint32_t>(p.l4_header() + 4) != flow.next_seq) return false;
  return same_headers(flow.first, p) && id_fits(flow, p) && checksums_correct(p);
}

void append(Flow& flow, const Packet& p) {
  if (!p.ipv6) {
    const auto id = load_be<std::uint16_t>(p.ip + 4);
    if (flow.count == 1) flow.id_step = id == flow.next_id ? 1 : 0;
    flow.next_id = static_cast<std::uint16_t>(id + flow.id_step);
  }
  flow.parts[flow.count++] = {p.ip + p.headers, p.payload};
  flow.first.length += p.payload;
  flow.next_seq += p.payload;
  flow.last_flags = p.flags;
}

void start(Flow& flow, const Packet& p, bool verified) {
  flow.first = p;
  flow.count = 1;
  flow.segment = p.payload;
  flow.next_seq = load_be<std::uint32_t>(p.l4_header() + 4) + p.payload;  // UDP: never looked at
  flow.next_id = static_cast<std::uint16_t>(load_be<std::uint16_t>(p.ip + 4) + 1);
  flow.last_flags = p.flags;
  flow.verified = verified;
  flow.parts[0] = {p.ip - kCoalesceHeadroom, kCoalesceHeadroom + p.length};
}

// Nothing can follow: the end of a burst, or no room.
bool is_complete(const Flow& flow, const Packet& last) {
  return (last.flags & kPsh) != 0 || last.payload < flow.segment || flow.count == kMaxCoalesced;
}

// Makes the first packet's header that of the whole (VIRTIO 1.2 §5.1.6.2: with NEEDS_CSUM the field
// has the sum of the pseudo-header).
ifaces::VnetHdr finish_headers(const Flow& flow) {
  const Packet& p = flow.first;
  std::uint8_t* l4 = p.ip + p.l4;
  const auto l4_length = static_cast<std::uint16_t>(p.length - p.l4);
  std::uint64_t sum = sum_protocol_and_length(p);
  if (p.ipv6) {
    store_be(p.ip + 4, l4_length);
    sum += sum_bytes(p.ip + 8, 32);
  } else {
    store_be(p.ip + 2, static_cast<std::uint16_t>(p.length));
    std::memset(p.ip + 10, 0, 2);
    const auto checksum = static_cast<std::uint16_t>(~fold(sum_ipv4_header(p.ip)));
    std::memcpy(p.ip + 10, &checksum, sizeof checksum);
    sum += sum_bytes(p.ip + 12, 8);
  }
  ifaces::VnetHdr hdr{.flags = ifaces::kVnetNeedsCsum,
                      .gso_type = ifaces::kVnetGsoUdpL4,
                      .hdr_len = static_cast<std::uint16_t>(p.headers),
                      .gso_size = static_cast<std::uint16_t>(flow.segment),
                      .csum_start = static_cast<std::uint16_t>(p.l4),
                      .csum_offset = kUdpChecksum};
  if (p.tcp) {
    l4[13] |= flow.last_flags & kPsh;
    hdr.gso_type = p.ipv6 ? ifaces::kVnetGsoTcp6 : ifaces::kVnetGsoTcp4;
    if ((p.flags & kCwr) != 0) hdr.gso_type |= ifaces::kVnetGsoEcn;
    hdr.csum_offset = kTcpChecksum;
  } else {
    store_be(l4 + 4, l4_length);
  }
  const std::uint16_t pseudo = fold(sum);
  std::memcpy(l4 + hdr.csum_offset, &pseudo, sizeof pseudo);
  return hdr;
}

void write_alone(std::uint8_t* ip, std::uint32_t length, TunSink& sink) {
  std::memset(ip - kCoalesceHeadroom, 0, kCoalesceHeadroom);
  const iovec part{ip - kCoalesceHeadroom, kCoalesceHeadroom + length};
  sink.write({&part, 1}, 1);
}

}  // namespace

// The open flows, by slot. `order` has the slots from the oldest to the youngest.
struct Coalescer::State {
  explicit State(ifaces::TunOffloads o) : offloads(o) {}

  ifaces::TunOffloads offloads;
  std::uint32_t open = 0;  // a bit per slot
  std::uint32_t last = 0;  // the slot used last, open or not
  std::size_t count = 0;
  std::array<std::uint8_t, kCoalesceFlows> order{};
  std::array<std::uint32_t, kCoalesceFlows> tags{};
  std::array<Flow, kCoalesceFlows> flows;

  static constexpr std::uint32_t kNone = kCoalesceFlows;
  static_assert(kCoalesceFlows < 32);

  [[nodiscard]] bool is_open(std::uint32_t slot) const { return (open >> slot & 1U) != 0; }

  [[nodiscard]] bool wanted(const Packet& p) const {
    if (!p.tcp) return offloads.uso;
    return p.ipv6 ? offloads.tso6 : offloads.tso4;
  }

  [[nodiscard]] std::uint32_t find(const Packet& p) const {
    if (is_open(last) && same_flow(flows[last].first, p)) return last;
    if (count == 0) return kNone;
    const std::uint32_t tag = flow_tag(p);
    std::uint32_t candidates = 0;
    for (std::uint32_t slot = 0; slot < kCoalesceFlows; ++slot)
      candidates |= (tags[slot] == tag ? 1U : 0U) << slot;
    for (candidates &= open; candidates != 0; candidates &= candidates - 1) {
      const auto slot = static_cast<std::uint32_t>(std::countr_zero(candidates));
      if (same_flow(flows[slot].first, p)) return slot;
    }
    return kNone;
  }

  void close(std::uint32_t slot, TunSink& sink) noexcept {
    Flow& flow = flows[slot];
    ifaces::VnetHdr hdr{};
    if (flow.count > 1) {
      hdr = finish_headers(flow);
      flow.parts[0].iov_len = kCoalesceHeadroom + flow.first.headers + flow.segment;
    }
    std::memcpy(flow.parts[0].iov_base, &hdr, sizeof hdr);
    open &= ~(1U << slot);
    std::size_t at = 0;
    while (order[at] != slot) ++at;
    for (--count; at < count; ++at) order[at] = order[at + 1];
    sink.write({flow.parts.data(), flow.count}, static_cast<std::uint16_t>(flow.count));
  }

  void start_flow(const Packet& p, bool verified, TunSink& sink) noexcept {
    if (count == kCoalesceFlows) close(order[0], sink);
    const auto slot = static_cast<std::uint32_t>(std::countr_one(open));
    start(flows[slot], p, verified);
    tags[slot] = flow_tag(p);
    open |= 1U << slot;
    order[count++] = static_cast<std::uint8_t>(slot);
    last = slot;
  }

  // Everything between the addresses of a packet whose ports cannot be seen.
  void close_pair(const std::uint8_t* ip, std::uint32_t length, TunSink& sink) noexcept {
    const bool ipv6 = length >= kIpv6Header && ip[0] >> 4 == 6;
    if (!ipv6 && (length < kIpv4Header || ip[0] >> 4 != 4)) return;
    const std::size_t addresses = ipv6 ? 8 : 12;
    const std::size_t size = ipv6 ? 32 : 8;
    for (std::size_t i = 0; i < count;) {
      const Packet& first = flows[order[i]].first;
      if (first.ipv6 == ipv6 && std::memcmp(first.ip + addresses, ip + addresses, size) == 0) {
        close(order[i], sink);
      } else {
        ++i;
      }
    }
  }
};

Coalescer::Coalescer(ifaces::TunOffloads offloads) noexcept
    : state_(std::make_unique<State>(offloads)) {}
Coalescer::~Coalescer() = default;

void Coalescer::add(std::uint8_t* packet, std::uint32_t len, TunSink& sink) noexcept {
  State& s = *state_;
  Packet p{};
  if (!parse(packet, len, p)) {
    if (s.count != 0) s.close_pair(packet, len, sink);
    return write_alone(packet, len, sink);
  }
  if (!s.wanted(p)) return write_alone(packet, len, sink);

  bool verified = false;
  if (const std::uint32_t slot = s.find(p); slot != State::kNone) {
    Flow& flow = s.flows[slot];
    if (can_append(flow, p)) {
      verified = true;
      if (!flow.verified) flow.verified = checksums_correct(flow.first);
      if (flow.verified) {
        append(flow, p);
        s.last = slot;
        if (is_complete(flow, p)) s.close(slot, sink);
        return;
      }
    }
    s.close(slot, sink);
  }
  // What ends a burst by itself has nothing to wait for.
  if (!p.joinable || (p.flags & kPsh) != 0) return write_alone(packet, len, sink);
  s.start_flow(p, verified, sink);
}

void Coalescer::flush(TunSink& sink) noexcept {
  State& s = *state_;
  while (s.count != 0) s.close(s.order[0], sink);
}

}  // namespace espalier::dataplane
