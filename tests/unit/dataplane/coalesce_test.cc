#include "dataplane/coalesce.h"

#include <gtest/gtest.h>

#include <functional>

#include "gso_packets.h"

namespace espalier::dataplane {
namespace {

using namespace test;

constexpr std::size_t kSize = 1000;

// The n-th packet of a flow as a sender without offloads would send it.
PacketSpec nth(std::size_t n, bool ipv6 = false, bool tcp = true) {
  std::mt19937 random(static_cast<std::uint32_t>(n));
  PacketSpec spec;
  spec.ipv6 = ipv6;
  spec.tcp = tcp;
  spec.id = static_cast<std::uint16_t>(100 + n);
  spec.seq = static_cast<std::uint32_t>(5000 + n * kSize);
  spec.tcp_options = {1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8};
  if (!tcp) spec.tcp_options.clear();
  spec.payload = random_bytes(random, kSize);
  return spec;
}

PacketSpec changed(PacketSpec spec, const std::function<void(PacketSpec&)>& change) {
  change(spec);
  return spec;
}

// How many packets each write took.
std::vector<std::size_t> counts(const Collector& sink) {
  std::vector<std::size_t> out;
  for (const Write& w : sink.writes) out.push_back(w.packets);
  return out;
}

using Counts = std::vector<std::size_t>;

Counts counts_of(const std::vector<PacketSpec>& packets,
                 ifaces::TunOffloads offloads = {true, true, true}) {
  Receiver receiver(offloads);
  for (const PacketSpec& spec : packets) receiver.add(build(spec));
  receiver.flush();
  return counts(receiver.sink);
}

class Kinds : public testing::TestWithParam<std::pair<bool, bool>> {
 protected:
  static PacketSpec nth(std::size_t n) {
    return dataplane::nth(n, GetParam().first, GetParam().second);
  }
};
INSTANTIATE_TEST_SUITE_P(Coalesce, Kinds,
                         testing::Values(std::pair{false, true}, std::pair{true, true},
                                         std::pair{false, false}, std::pair{true, false}),
                         [](const auto& kind) {
                           return std::string(kind.param.second ? "Tcp" : "Udp") +
                                  (kind.param.first ? "6" : "4");
                         });

TEST_P(Kinds, ARunBecomesOneSuperPacket) {
  Receiver receiver;
  for (std::size_t i = 0; i < 45; ++i) receiver.add(build(nth(i)));
  EXPECT_TRUE(receiver.sink.writes.empty());
  receiver.flush();
  ASSERT_EQ(counts(receiver.sink), Counts{45});
  const Write& write = receiver.sink.writes[0];
  EXPECT_EQ(write.parts, 45U);

  PacketSpec whole = nth(0);
  for (std::size_t i = 1; i < 45; ++i) append(whole.payload, nth(i).payload);
  EXPECT_EQ(write.packet, build_partial(whole));
  const ifaces::VnetHdr expected = gso_header(whole, kSize);
  EXPECT_EQ(write.hdr.flags, expected.flags);
  EXPECT_EQ(write.hdr.gso_type, expected.gso_type);
  EXPECT_EQ(write.hdr.hdr_len, expected.hdr_len);
  EXPECT_EQ(write.hdr.gso_size, expected.gso_size);
  EXPECT_EQ(write.hdr.csum_start, expected.csum_start);
  EXPECT_EQ(write.hdr.csum_offset, expected.csum_offset);
}

TEST_P(Kinds, ALonePacketIsUntouched) {
  Receiver receiver;
  receiver.add(build(nth(0)));
  receiver.flush();
  receiver.flush();
  ASSERT_EQ(counts(receiver.sink), Counts{1});
  EXPECT_EQ(receiver.sink.writes[0].packet, build(nth(0)));
  const ifaces::VnetHdr zero{};
  EXPECT_EQ(std::memcmp(&receiver.sink.writes[0].hdr, &zero, sizeof zero), 0);
}

TEST_P(Kinds, OnlyTheLastMayBeShorter) {
  const auto sized = [](std::size_t n, std::size_t size) {
    return changed(nth(n), [&](auto& s) { s.payload.resize(size); });
  };
  EXPECT_EQ(counts_of({nth(0), nth(1), sized(2, 999)}), Counts{3});
  EXPECT_EQ(counts_of({nth(0), nth(1), sized(2, 1)}), Counts{3});
  EXPECT_EQ(counts_of({nth(0), sized(1, 999), nth(2)}), (Counts{2, 1})) << "nothing behind a short";
  EXPECT_EQ(counts_of({sized(0, 999), nth(1)}), (Counts{1, 1}));
  EXPECT_EQ(counts_of({nth(0), sized(1, 1001)}), (Counts{1, 1})) << "longer";
  EXPECT_EQ(counts_of({nth(0), sized(1, 0), nth(1)}), (Counts{1, 1, 1})) << "no payload";
}

TEST_P(Kinds, ShortClosesAtOnce) {
  Receiver receiver;
  receiver.add(build(nth(0)));
  receiver.add(build(changed(nth(1), [](auto& s) { s.payload.resize(10); })));
  EXPECT_EQ(counts(receiver.sink), Counts{2});
}

TEST_P(Kinds, AtMost64PacketsAnd65535Bytes) {
  std::vector<PacketSpec> small;
  for (std::size_t i = 0; i < 130; ++i)
    small.push_back(changed(nth(0), [&](auto& s) {
      s.payload.resize(10);
      s.seq += static_cast<std::uint32_t>(10 * i);
      s.id = static_cast<std::uint16_t>(s.id + i);
    }));
  EXPECT_EQ(counts_of(small), (Counts{64, 64, 2}));

  std::vector<PacketSpec> large;
  for (std::size_t i = 0; i < 5; ++i)
    large.push_back(changed(nth(0), [&](auto& s) {
      s.payload.resize(16360);
      s.seq += static_cast<std::uint32_t>(16360 * i);
      s.id = static_cast<std::uint16_t>(s.id + i);
    }));
  EXPECT_EQ(counts_of(large), (Counts{4, 1}));
  for (auto& spec : large) spec.payload.resize(16384);
  for (std::size_t i = 0; i < 5; ++i) large[i].seq = static_cast<std::uint32_t>(5000 + 16384 * i);
  EXPECT_EQ(counts_of(large), (Counts{3, 2}));
}

TEST_P(Kinds, TheOffloadMustBeThere) {
  const bool ipv6 = GetParam().first;
  const bool tcp = GetParam().second;
  const ifaces::TunOffloads only{tcp && !ipv6, tcp && ipv6, !tcp};
  const ifaces::TunOffloads others{!only.tso4, !only.tso6, !only.uso};
  EXPECT_EQ(counts_of({nth(0), nth(1)}, only), Counts{2});
  EXPECT_EQ(counts_of({nth(0), nth(1)}, others), (Counts{1, 1}));
  EXPECT_EQ(counts_of({nth(0), nth(1)}, {false, false, false}), (Counts{1, 1}));
}

// A difference that a super-packet cannot carry. The second packet is the altered one; the order
// and every byte stay.
struct Difference {
  const char* name;
  char versions;   // '4', '6', or 'b' for both
  char protocols;  // 't', 'u', 'b'
  void (*change)(PacketSpec&);
};

const Difference kDifferences[] = {
    {"tos", 'b', 'b', [](PacketSpec& s) { s.tos = 4; }},
    {"ecn", 'b', 'b', [](PacketSpec& s) { s.tos = 3; }},
    {"ttl", 'b', 'b', [](PacketSpec& s) { s.ttl = 63; }},
    {"flow_label", '6', 'b', [](PacketSpec& s) { s.flow_label = 1; }},
    {"df", '4', 'b', [](PacketSpec& s) { s.fragment = 0; }},
    {"mf", '4', 'b', [](PacketSpec& s) { s.fragment = 0x2000; }},
    {"reserved_bit", '4', 'b', [](PacketSpec& s) { s.fragment |= 0x8000; }},
    {"fragment_offset", '4', 'b', [](PacketSpec& s) { s.fragment = 1; }},
    {"id_gap", '4', 'b', [](PacketSpec& s) { s.id += 5; }},
    {"id_back", '4', 'b', [](PacketSpec& s) { s.id -= 2; }},
    {"ip_options", '4', 'b',
     [](PacketSpec& s) {
       s.ip_options = {1, 1, 1, 0};
     }},
    {"extension", '6', 'b',
     [](PacketSpec& s) {
       s.extensions = {{60, {0, 1, 4, 0, 0, 0, 0}}};
     }},
    {"fragment_header", '6', 'b',
     [](PacketSpec& s) {
       s.extensions = {{44, {0, 0, 1, 0, 0, 0, 7}}};
     }},
    {"source", 'b', 'b', [](PacketSpec& s) { s.source = 9; }},
    {"destination", 'b', 'b', [](PacketSpec& s) { s.destination = 9; }},
    {"source_port", 'b', 'b', [](PacketSpec& s) { s.source_port += 1; }},
    {"destination_port", 'b', 'b', [](PacketSpec& s) { s.destination_port += 1; }},
    {"seq_gap", 'b', 't', [](PacketSpec& s) { s.seq += 1; }},
    {"seq_overlap", 'b', 't', [](PacketSpec& s) { s.seq -= 1; }},
    {"seq_repeated", 'b', 't', [](PacketSpec& s) { s.seq -= std::uint32_t{kSize}; }},
    {"ack", 'b', 't', [](PacketSpec& s) { s.ack += 1; }},
    {"window", 'b', 't', [](PacketSpec& s) { s.window += 1; }},
    {"urgent_pointer", 'b', 't', [](PacketSpec& s) { s.urgent = 1; }},
    {"options", 'b', 't', [](PacketSpec& s) { s.tcp_options[11] ^= 1; }},
    {"options_length", 'b', 't', [](PacketSpec& s) { s.tcp_options.resize(16, 1); }},
    {"no_options", 'b', 't', [](PacketSpec& s) { s.tcp_options.clear(); }},
    {"fin", 'b', 't', [](PacketSpec& s) { s.flags |= kFin; }},
    {"syn", 'b', 't', [](PacketSpec& s) { s.flags |= kSyn; }},
    {"rst", 'b', 't', [](PacketSpec& s) { s.flags |= kRst; }},
    {"urg", 'b', 't', [](PacketSpec& s) { s.flags |= kUrg; }},
    {"ece", 'b', 't', [](PacketSpec& s) { s.flags |= kEce; }},
    {"cwr", 'b', 't', [](PacketSpec& s) { s.flags |= kCwr; }},
    {"no_ack", 'b', 't', [](PacketSpec& s) { s.flags = 0; }},
    {"reserved", 'b', 't', [](PacketSpec& s) { s.reserved = 1; }},
    {"no_checksum", 'b', 'u', [](PacketSpec& s) { s.no_udp_checksum = true; }},
};

TEST_P(Kinds, NotToBeMerged) {
  const auto [ipv6, tcp] = GetParam();
  for (const Difference& difference : kDifferences) {
    SCOPED_TRACE(difference.name);
    if (difference.versions == (ipv6 ? '4' : '6')) continue;
    if (difference.protocols == (tcp ? 'u' : 't')) continue;
    Receiver pair;
    pair.add(build(nth(0)));
    pair.add(build(changed(nth(1), difference.change)));
    pair.flush();
    ASSERT_EQ(counts(pair.sink), (Counts{1, 1}));
    EXPECT_EQ(pair.sink.writes[0].packet, build(nth(0)));
    EXPECT_EQ(pair.sink.writes[1].packet, build(changed(nth(1), difference.change)));

    Receiver reversed;
    reversed.add(build(changed(nth(0), difference.change)));
    reversed.add(build(nth(1)));
    reversed.flush();
    if (difference.name == std::string("cwr")) {
      EXPECT_EQ(counts(reversed.sink), Counts{2}) << "it may be the first";
    } else {
      EXPECT_EQ(counts(reversed.sink), (Counts{1, 1}));
    }
  }
}

TEST_P(Kinds, TheDifferencesMergeAmongThemselves) {
  const auto [ipv6, tcp] = GetParam();
  for (const char* name : {"tos", "ttl", "flow_label", "ack", "window", "options", "ece",
                           "urgent_pointer", "reserved"}) {
    for (const Difference& difference : kDifferences) {
      if (difference.name != std::string(name)) continue;
      if (difference.versions == (ipv6 ? '4' : '6')) continue;
      if (difference.protocols == (tcp ? 'u' : 't')) continue;
      EXPECT_EQ(counts_of({changed(nth(0), difference.change), changed(nth(1), difference.change)}),
                Counts{2})
          << name;
    }
  }
}

// Each byte of each header flipped in the second of three packets, its checksums left as they were
// or, so, wrong: what comes out is what went in.
TEST_P(Kinds, DamageIsNeverRepaired) {
  for (std::size_t victim = 0; victim < 3; ++victim) {
    for (std::size_t at = 0; at < headers_of(nth(0)) + 3; ++at) {
      SCOPED_TRACE(at);
      std::vector<Bytes> packets = {build(nth(0)), build(nth(1)), build(nth(2))};
      packets[victim][at] ^= 0x10;
      Receiver receiver;
      for (const Bytes& packet : packets) receiver.add(packet);
      receiver.flush();
      std::size_t total = 0;
      bool seen = false;
      for (const Write& write : receiver.sink.writes) {
        total += write.packets;
        if (write.packet == packets[victim] && write.packets == 1) {
          const ifaces::VnetHdr zero{};
          EXPECT_EQ(std::memcmp(&write.hdr, &zero, sizeof zero), 0);
          seen = true;
        }
      }
      EXPECT_EQ(total, 3U);
      EXPECT_TRUE(seen);
    }
  }
}

TEST_P(Kinds, WrongChecksumInTheFirst) {
  Bytes first = build(nth(0));
  first.back() ^= 1;
  Receiver receiver;
  receiver.add(first);
  receiver.add(build(nth(1)));
  receiver.add(build(nth(2)));
  receiver.flush();
  ASSERT_EQ(counts(receiver.sink), (Counts{1, 2}));
  EXPECT_EQ(receiver.sink.writes[0].packet, first);
}

TEST_P(Kinds, FlowsAreKeptApart) {
  Receiver receiver;
  const auto of_flow = [](std::size_t flow, std::size_t n) {
    return build(changed(nth(n), [&](auto& s) {
      s.source_port = static_cast<std::uint16_t>(s.source_port + flow);
    }));
  };
  for (std::size_t n = 0; n < 20; ++n)
    for (std::size_t flow = 0; flow < kCoalesceFlows; ++flow) receiver.add(of_flow(flow, n));
  EXPECT_TRUE(receiver.sink.writes.empty());
  receiver.flush();
  ASSERT_EQ(counts(receiver.sink), Counts(kCoalesceFlows, 20));
  for (std::size_t flow = 0; flow < kCoalesceFlows; ++flow)
    EXPECT_EQ(get16(receiver.sink.writes[flow].packet, GetParam().first ? 40 : 20), 1000 + flow)
        << "oldest first";
}

TEST_P(Kinds, OneFlowMoreEndsTheOldest) {
  Receiver receiver;
  for (std::size_t flow = 0; flow <= kCoalesceFlows; ++flow)
    receiver.add(build(
        changed(nth(0), [&](auto& s) { s.destination = static_cast<std::uint8_t>(10 + flow); })));
  ASSERT_EQ(counts(receiver.sink), Counts{1});
  EXPECT_EQ(receiver.sink.writes[0].packet,
            build(changed(nth(0), [](auto& s) { s.destination = 10; })));
  receiver.flush();
  EXPECT_EQ(receiver.sink.writes.size(), kCoalesceFlows + 1);
}

TEST_P(Kinds, AFragmentDoesNotOvertake) {
  Receiver receiver;
  Bytes fragment;
  if (GetParam().first) {
    fragment = build(changed(nth(5), [](auto& s) {
      s.extensions = {{44, {0, 0, 8, 0, 0, 0, 7}}};
    }));
  } else {
    fragment = build(changed(nth(5), [](auto& s) { s.fragment = 9; }));
  }
  receiver.add(build(nth(0)));
  receiver.add(build(changed(nth(0), [](auto& s) { s.source = 77; })));
  receiver.add(build(nth(1)));
  receiver.add(fragment);
  ASSERT_EQ(counts(receiver.sink), (Counts{2, 1})) << "the other pair may wait";
  EXPECT_EQ(receiver.sink.writes[1].packet, fragment);
  receiver.flush();
  EXPECT_EQ(receiver.sink.writes.size(), 3U);
}

TEST(Coalesce, PshEndsASuperPacketAndIsKept) {
  for (const bool ipv6 : {false, true}) {
    const auto psh = [](PacketSpec& s) { s.flags |= kPsh; };
    Receiver receiver;
    receiver.add(build(nth(0, ipv6)));
    receiver.add(build(changed(nth(1, ipv6), psh)));
    ASSERT_EQ(counts(receiver.sink), Counts{2}) << "nothing to wait for";
    EXPECT_EQ(receiver.sink.writes[0].packet[ipv6 ? 53 : 33], kAck | kPsh);
    receiver.add(build(changed(nth(2, ipv6), psh)));
    ASSERT_EQ(counts(receiver.sink), (Counts{2, 1}));
    receiver.add(build(nth(3, ipv6)));
    receiver.flush();
    EXPECT_EQ(counts(receiver.sink), (Counts{2, 1, 1}));
  }
}

TEST(Coalesce, CwrOnTheFirstIsEcnOfTheSuperPacket) {
  for (const bool ipv6 : {false, true}) {
    Receiver receiver;
    receiver.add(build(changed(nth(0, ipv6), [](auto& s) { s.flags |= kCwr; })));
    receiver.add(build(nth(1, ipv6)));
    receiver.flush();
    ASSERT_EQ(counts(receiver.sink), Counts{2});
    EXPECT_EQ(receiver.sink.writes[0].hdr.gso_type,
              (ipv6 ? ifaces::kVnetGsoTcp6 : ifaces::kVnetGsoTcp4) | ifaces::kVnetGsoEcn);
  }
}

TEST(Coalesce, IdsMayStandStillWithDontFragment) {
  for (const bool tcp : {false, true}) {
    const auto still = [&](std::size_t n, std::uint16_t fragment) {
      return changed(nth(n, false, tcp), [&](auto& s) { s.id = 0, s.fragment = fragment; });
    };
    EXPECT_EQ(counts_of({still(0, 0x4000), still(1, 0x4000), still(2, 0x4000)}), Counts{3});
    EXPECT_EQ(counts_of({still(0, 0), still(1, 0)}), (Counts{1, 1}));
    const PacketSpec moves = changed(still(2, 0x4000), [](auto& s) { s.id = 1; });
    EXPECT_EQ(counts_of({still(0, 0x4000), still(1, 0x4000), moves}), (Counts{2, 1}));
    const auto at = [&](std::size_t n, std::uint16_t id) {
      return changed(still(n, 0x4000), [&](auto& s) { s.id = id; });
    };
    EXPECT_EQ(counts_of({at(0, 65534), at(1, 65535), at(2, 0)}), Counts{3}) << "wraps";
    EXPECT_EQ(counts_of({at(0, 7), at(1, 8), at(2, 8)}), (Counts{2, 1}));
  }
}

TEST(Coalesce, SequenceNumbersWrap) {
  const auto at = [](std::size_t n) { return changed(nth(n), [](auto& s) { s.seq -= 6500; }); };
  EXPECT_EQ(counts_of({at(0), at(1), at(2), at(3)}), Counts{4});
}

TEST(Coalesce, AcksPassAndKeepTheirPlace) {
  const PacketSpec ack = changed(nth(2), [](auto& s) { s.payload.clear(); });
  EXPECT_EQ(counts_of({nth(0), nth(1), ack, nth(2), nth(3)}), (Counts{2, 1, 2}));
}

// What is not TCP or UDP in plain headers, at every length.
TEST(Coalesce, AnythingElsePassesAlone) {
  std::mt19937 random(3);
  Receiver receiver;
  std::vector<Bytes> packets;
  for (std::size_t n = 0; n < 120; ++n) {
    for (const unsigned first : {0x00U, 0x44U, 0x45U, 0x46U, 0x4fU, 0x60U, 0x6fU, 0xffU}) {
      Bytes packet = random_bytes(random, n);
      if (n != 0) packet[0] = static_cast<std::uint8_t>(first);
      if (n > 9) packet[first >> 4 == 6 ? 6 : 9] = random() % 2 == 0 ? 6 : 17;
      packets.push_back(packet);
      receiver.add(packet);
    }
  }
  receiver.flush();
  ASSERT_EQ(receiver.sink.writes.size(), packets.size());
  for (std::size_t i = 0; i < packets.size(); ++i)
    EXPECT_EQ(receiver.sink.writes[i].packet, packets[i]);
}

TEST(Coalesce, TcpHeaderBehindTheEndPassesAlone) {
  for (unsigned length = 0; length < 16; ++length) {
    Bytes packet = build(changed(nth(0), [](auto& s) { s.payload.resize(4); }));
    packet[32] = static_cast<std::uint8_t>(length << 4);
    Receiver receiver;
    receiver.add(packet);
    receiver.add(packet);
    receiver.flush();
    EXPECT_EQ(counts(receiver.sink), (Counts{1, 1}));
  }
}

TEST(Coalesce, UdpLengthMustAgree) {
  for (const int delta : {-1, 1, -1008}) {
    Bytes packets[2] = {build(nth(0, false, false)), build(nth(1, false, false))};
    for (Bytes& packet : packets) {
      // The checksum follows, so that the length is all that is wrong.
      const int checksum = get16(packet, 26);
      const int length = 1008 + delta;
      set16(packet, 24, static_cast<std::size_t>(length));
      const int follows = (checksum - delta + 65535) % 65535;
      set16(packet, 26, static_cast<std::size_t>(follows));
    }
    Receiver receiver;
    for (const Bytes& packet : packets) receiver.add(packet);
    receiver.flush();
    EXPECT_EQ(counts(receiver.sink), (Counts{1, 1})) << delta;
  }
}

// Zero says that there is no checksum, also where the sum of the rest would fit.
TEST(Coalesce, NoUdpChecksumIsNotARightOne) {
  for (const bool none : {false, true}) {
    std::vector<PacketSpec> specs;
    for (const std::size_t n : {0U, 1U}) {
      PacketSpec spec = nth(n, false, false);
      spec.payload = {0, 0};
      const std::uint16_t rest = get16(build(spec), checksum_at(spec));
      spec.payload = {static_cast<std::uint8_t>(rest >> 8), static_cast<std::uint8_t>(rest)};
      spec.no_udp_checksum = none;
      ASSERT_EQ(get16(build(spec), checksum_at(spec)), none ? 0 : 0xffff);
      specs.push_back(spec);
    }
    EXPECT_EQ(counts_of(specs), none ? (Counts{1, 1}) : Counts{2});
  }
}

}  // namespace
}  // namespace espalier::dataplane
