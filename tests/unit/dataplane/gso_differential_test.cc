// Random traffic through segmentation and coalescing, compared with the same traffic sent without
// offloads.
//
//   description ─► super-packet ─► plan_segments, write_segment ─► = the packets of the reference
//   packets ─► Coalescer ─► writes ─► plan_segments, write_segment ─► = the packets, per flow
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "gso_packets.h"

namespace espalier::dataplane {
namespace {

using namespace test;

class Random {
 public:
  explicit Random(std::uint32_t seed) : engine_(seed) {}
  std::size_t below(std::size_t n) { return engine_() % n; }
  bool one_in(std::size_t n) { return below(n) == 0; }
  template <class T>
  T any() {
    return static_cast<T>(engine_());
  }
  Bytes bytes(std::size_t n) { return random_bytes(engine_, n); }

 private:
  std::mt19937 engine_;
};

// A hop-by-hop or destination options header of 8n bytes, all PadN.
std::pair<std::uint8_t, Bytes> options_header(Random& random, bool first) {
  const std::size_t length = 8 * (1 + random.below(4));
  Bytes rest(length - 1, 0);
  rest[0] = static_cast<std::uint8_t>(length / 8 - 1);
  rest[1] = 1;
  rest[2] = static_cast<std::uint8_t>(length - 4);
  return {first && random.one_in(2) ? std::uint8_t{0} : std::uint8_t{60}, rest};
}

PacketSpec random_flow(Random& random) {
  PacketSpec spec;
  spec.ipv6 = random.one_in(2);
  spec.tcp = !random.one_in(3);
  spec.tos = random.any<std::uint8_t>();
  spec.ttl = static_cast<std::uint8_t>(1 + random.below(255));
  spec.flow_label = random.any<std::uint32_t>() & 0xfffff;
  spec.id = random.any<std::uint16_t>();
  spec.fragment = random.one_in(2) ? 0x4000 : 0;
  spec.source_port = random.any<std::uint16_t>();
  spec.destination_port = random.any<std::uint16_t>();
  spec.seq = random.any<std::uint32_t>();
  spec.ack = random.any<std::uint32_t>();
  spec.window = random.any<std::uint16_t>();
  if (random.one_in(2)) spec.tcp_options = random.bytes(4 * random.below(11));
  return spec;
}

TEST(GsoDifferential, SuperPacketsAsWithoutOffloads) {
  Random random(20240101);
  for (int round = 0; round < 600; ++round) {
    SCOPED_TRACE(round);
    PacketSpec spec = random_flow(random);
    spec.flags = random.any<std::uint8_t>();
    spec.urgent = random.any<std::uint16_t>();
    spec.reserved = static_cast<std::uint8_t>(random.below(16));
    if (!spec.ipv6 && random.one_in(4)) spec.ip_options = Bytes(4 * random.below(11), 1);
    if (spec.ipv6 && random.one_in(3))
      for (std::size_t n = 1 + random.below(3), i = 0; i < n; ++i)
        spec.extensions.push_back(options_header(random, i == 0));
    const std::size_t most = 65535 - headers_of(spec);
    spec.payload = random.bytes(1 + random.below(random.one_in(4) ? most : 4000));
    const std::size_t gso_size = 1 + random.below(random.one_in(4) ? 60 : 1500);
    std::vector<Bytes> segments;
    ASSERT_TRUE(segments_of(gso_header(spec, gso_size), build_partial(spec), segments));
    ASSERT_TRUE(segments == reference_segments(spec, gso_size));
    ASSERT_TRUE(segments_of(csum_header(spec), build_partial(spec), segments));
    ASSERT_TRUE(segments == std::vector<Bytes>{build(spec)});
  }
}

// One packet of the random traffic and what must hold for it.
struct Sent {
  Bytes bytes;
  std::size_t flow;
  std::size_t pair;
  bool opaque;  // its flow cannot be seen: in order with everything of its pair
};

// A stream with the mishaps of real ones.
class Stream {
 public:
  Stream(Random& random, std::size_t flow)
      : random_(random), flow_(flow), spec_(random_flow(random)) {
    spec_.source = static_cast<std::uint8_t>(1 + flow % 5);
    spec_.source_port = static_cast<std::uint16_t>(10000 + flow);
    spec_.ttl = 64;
    fixed_id_ = spec_.fragment != 0 && random.one_in(3);
    size_ = 1 + random.below(random.one_in(2) ? 64 : 1400);
    spec_.no_udp_checksum = !spec_.tcp && random.one_in(8);
  }

  Sent next() {
    PacketSpec spec = spec_;
    mishap(spec);
    spec.payload = random_.bytes(spec.payload.empty() ? size_ : spec.payload.size() - 1);
    Sent sent{.bytes = build(spec),
              .flow = flow_,
              .pair = spec.source + (spec.ipv6 ? 1000U : 0U),
              .opaque = !spec.extensions.empty() || !spec.ip_options.empty() ||
                        (spec.fragment & 0x3fff) != 0};
    if (random_.one_in(40)) {
      const std::size_t l4 = l4_of(spec);
      const bool in_ip = !spec.ipv6 && random_.one_in(3);
      sent.bytes[in_ip ? 11 : l4 + (spec.tcp ? 17 : 7)] ^= 0x40;
    } else if (random_.one_in(40) && !spec.payload.empty()) {
      sent.bytes.back() ^= 1;
    }
    // Else the next one repeats or overlaps.
    if (!random_.one_in(30)) spec_.seq += static_cast<std::uint32_t>(spec.payload.size());
    if (!fixed_id_) ++spec_.id;
    return sent;
  }

  [[nodiscard]] bool fixed_id() const { return fixed_id_; }

 private:
  // Mishaps that stay go into spec_. A payload that is not empty stands for its size + 1.
  void mishap(PacketSpec& spec) {
    switch (random_.below(60)) {
      case 0:
        spec.flags |= static_cast<std::uint8_t>(1U << random_.below(8));
        break;
      case 1:
      case 2:
        spec.flags |= kPsh;
        break;
      case 3:
        spec.flags |= kUrg;
        spec.urgent = random_.any<std::uint16_t>();
        break;
      case 4:
        spec.flags = random_.any<std::uint8_t>();
        break;
      case 5:
        spec.payload.resize(1 + random_.below(2 * size_));
        break;
      case 6:
        spec.payload.resize(1 + random_.below(size_));
        break;
      case 7:
        spec.seq += random_.any<std::uint16_t>();
        break;
      case 8:
        spec_.ack += 100;
        break;
      case 9:
        spec_.window = random_.any<std::uint16_t>();
        break;
      case 10:
        if (!spec.tcp_options.empty()) spec_.tcp_options = random_.bytes(spec.tcp_options.size());
        break;
      case 11:
        spec.tos ^= 3;
        break;
      case 12:
        spec.ttl = 63;
        break;
      case 13:
        if (spec.ipv6) spec.extensions = {options_header(random_, true)};
        break;
      case 14:
        if (!spec.ipv6) spec.fragment = random_.one_in(2) ? 0x2000 : 0x0007;
        break;
      case 15:
        if (!spec.ipv6) spec.ip_options = {1, 1, 1, 0};
        break;
      case 16:
        spec_.id = random_.any<std::uint16_t>();
        break;
      case 17:
        if (spec.ipv6) spec.extensions = {{44, {0, 0, 1, 0, 0, 0, 7}}};
        break;
      case 18:
        spec_.flags ^= kEce;
        break;
      default:
        break;
    }
  }

  Random& random_;
  std::size_t flow_;
  PacketSpec spec_;
  bool fixed_id_ = false;
  std::size_t size_;
};

struct Offloads {
  bool tso4, tso6, uso;
};

class Combinations : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(GsoDifferential, Combinations, testing::Range(0, 8), [](const auto& bits) {
  return std::string((bits.param & 1) != 0 ? "Tso4" : "") + ((bits.param & 2) != 0 ? "Tso6" : "") +
         ((bits.param & 4) != 0 ? "Uso" : "") + (bits.param == 0 ? "None" : "");
});

// With DF all IDs of a run may be one (RFC 6864 §4.1: they mean nothing); cut again, they count up.
Bytes without_id(Bytes packet) {
  for (const std::size_t at : {4U, 5U, 10U, 11U}) packet[at] = 0;
  return packet;
}

// Everything that came out, packet by packet.
std::vector<Bytes> receive(const std::vector<Sent>& sent, ifaces::TunOffloads offloads,
                           std::size_t turn, std::size_t& writes, std::size_t& merged) {
  Receiver receiver(offloads);
  for (std::size_t i = 0; i < sent.size(); ++i) {
    receiver.add(sent[i].bytes);
    if (i % turn == turn - 1) receiver.flush();
  }
  receiver.flush();
  std::vector<Bytes> out;
  writes += receiver.sink.writes.size();
  for (const Write& write : receiver.sink.writes) {
    std::vector<Bytes> segments;
    EXPECT_TRUE(segments_of(write.hdr, write.packet, segments));
    EXPECT_EQ(segments.size(), write.packets);
    EXPECT_EQ(write.parts, write.packets);
    EXPECT_LE(write.packet.size(), 65535U);
    if (write.packets > 1) merged += write.packets;
    const std::uint8_t type = write.hdr.gso_type & ~ifaces::kVnetGsoEcn;
    EXPECT_TRUE(type != ifaces::kVnetGsoTcp4 || offloads.tso4);
    EXPECT_TRUE(type != ifaces::kVnetGsoTcp6 || offloads.tso6);
    EXPECT_TRUE(type != ifaces::kVnetGsoUdpL4 || offloads.uso);
    out.insert(out.end(), segments.begin(), segments.end());
  }
  return out;
}

// Finds each packet of `sent` in `out`, the first that is left of its flow: every flow in order,
// and nothing else in `out`. Returns where each one came out.
std::vector<std::size_t> match(const std::vector<Sent>& sent, const std::vector<bool>& fixed_id,
                               const std::vector<Bytes>& out) {
  std::vector<std::size_t> place(sent.size());
  std::vector<bool> taken(out.size(), false);
  for (std::size_t i = 0; i < sent.size(); ++i) {
    const bool loose = fixed_id[sent[i].flow] && sent[i].bytes[0] >> 4 == 4;
    const Bytes wanted = loose ? without_id(sent[i].bytes) : sent[i].bytes;
    std::size_t at = 0;
    while (at < out.size() && (taken[at] || out[at].size() != wanted.size() ||
                               (loose ? without_id(out[at]) : out[at]) != wanted))
      ++at;
    if (at == out.size()) {
      ADD_FAILURE() << "packet " << i << " of flow " << sent[i].flow << " did not come out";
      return place;
    }
    taken[at] = true;
    place[i] = at;
  }
  return place;
}

TEST_P(Combinations, CoalescedAsWithoutOffloads) {
  const ifaces::TunOffloads offloads{(GetParam() & 1) != 0, (GetParam() & 2) != 0,
                                     (GetParam() & 4) != 0};
  Random random(777);
  std::size_t writes = 0;
  std::size_t merged = 0;
  std::size_t total = 0;
  for (int round = 0; round < 25; ++round) {
    SCOPED_TRACE(round);
    std::vector<Stream> streams;
    std::vector<bool> fixed_id;
    for (std::size_t flows = 1 + random.below(24), i = 0; i < flows; ++i) {
      streams.emplace_back(random, i);
      fixed_id.push_back(streams.back().fixed_id());
    }
    std::vector<Sent> sent;
    while (sent.size() < 400)
      for (std::size_t flow = random.below(streams.size()), n = 1 + random.below(80); n > 0; --n) {
        sent.push_back(streams[flow].next());
        if (random.one_in(8)) flow = random.below(streams.size());
      }
    total += sent.size();
    const std::vector<Bytes> out = receive(sent, offloads, 1 + random.below(300), writes, merged);
    ASSERT_EQ(out.size(), sent.size());
    const std::vector<std::size_t> place = match(sent, fixed_id, out);
    for (std::size_t a = 0; a < sent.size(); ++a) {
      for (std::size_t b = a + 1; b < sent.size(); ++b) {
        const bool ordered = sent[a].flow == sent[b].flow ||
                             (sent[a].pair == sent[b].pair && (sent[a].opaque || sent[b].opaque));
        ASSERT_TRUE(!ordered || place[a] < place[b]) << a << " and " << b;
      }
    }
  }
  if (GetParam() == 0) {
    EXPECT_EQ(writes, total);
  } else {
    EXPECT_GT(merged, total / 12) << "nothing was tried";
  }
}

}  // namespace
}  // namespace espalier::dataplane
