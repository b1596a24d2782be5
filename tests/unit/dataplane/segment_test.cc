#include "dataplane/segment.h"

#include <gtest/gtest.h>

#include "gso_packets.h"

namespace espalier::dataplane {
namespace {

using namespace test;
using ifaces::VnetHdr;

PacketSpec tcp4(std::size_t payload) {
  std::mt19937 random(7);
  PacketSpec spec;
  spec.payload = random_bytes(random, payload);
  return spec;
}

PacketSpec with(PacketSpec spec, auto change) {
  change(spec);
  return spec;
}

void expect_as_reference(const PacketSpec& spec, std::size_t gso_size) {
  std::vector<Bytes> segments;
  ASSERT_TRUE(segments_of(gso_header(spec, gso_size), build_partial(spec), segments));
  EXPECT_EQ(segments, reference_segments(spec, gso_size));
}

bool refused(const VnetHdr& hdr, const Bytes& packet) {
  SegmentPlan plan;
  return !plan_segments(hdr, packet, plan);
}

TEST(Segment, WholePacketIsCopied) {
  for (const bool ipv6 : {false, true}) {
    const Bytes packet = build(with(tcp4(100), [&](auto& s) { s.ipv6 = ipv6; }));
    std::vector<Bytes> segments;
    ASSERT_TRUE(segments_of({}, packet, segments));
    EXPECT_EQ(segments, std::vector<Bytes>{packet});
  }
}

TEST(Segment, HdrLenIsNotTrusted) {
  const PacketSpec spec = tcp4(3000);
  for (const int hint : {0, 1, 39, 41, 65535}) {
    VnetHdr hdr = gso_header(spec, 1000);
    hdr.hdr_len = static_cast<std::uint16_t>(hint);
    std::vector<Bytes> segments;
    ASSERT_TRUE(segments_of(hdr, build_partial(spec), segments));
    EXPECT_EQ(segments, reference_segments(spec, 1000));
  }
}

TEST(Segment, PacketOfAnotherLengthThanItSaysIsRefused) {
  for (const bool ipv6 : {false, true}) {
    const Bytes packet = build(with(tcp4(30), [&](auto& s) { s.ipv6 = ipv6; }));
    for (std::size_t n = 0; n < packet.size(); ++n)
      EXPECT_TRUE(refused({}, Bytes(packet.begin(), packet.begin() + static_cast<int>(n)))) << n;
    Bytes longer = packet;
    longer.push_back(0);
    EXPECT_TRUE(refused({}, longer));
    EXPECT_FALSE(refused({}, packet));
  }
}

TEST(Segment, OnlyVersions4And6) {
  Bytes packet = build(tcp4(30));
  for (unsigned version = 0; version < 16; ++version) {
    packet[0] = static_cast<std::uint8_t>(version << 4 | 5);
    EXPECT_EQ(refused({}, packet), version != 4) << version;
  }
}

TEST(Segment, HeaderLengthOfIpv4IsChecked) {
  Bytes packet = build(tcp4(4));  // 44 bytes
  for (unsigned words = 0; words < 16; ++words) {
    packet[0] = static_cast<std::uint8_t>(0x40 | words);
    EXPECT_EQ(refused({}, packet), words < 5 || words > 11) << words;
  }
}

TEST(Segment, ChecksumIsCompleted) {
  for (const bool ipv6 : {false, true}) {
    for (const bool tcp : {false, true}) {
      const PacketSpec spec = with(tcp4(101), [&](auto& s) { s.ipv6 = ipv6, s.tcp = tcp; });
      std::vector<Bytes> segments;
      ASSERT_TRUE(segments_of(csum_header(spec), build_partial(spec), segments));
      EXPECT_EQ(segments, std::vector<Bytes>{build(spec)});
    }
  }
}

// RFC 768: zero would mean "no checksum". TCP has no such rule.
TEST(Segment, ZeroChecksumIsAllOnesInUdpOnly) {
  for (const bool tcp : {false, true}) {
    PacketSpec spec = with(tcp4(2), [&](auto& s) { s.tcp = tcp; });
    spec.payload = {0, 0};
    const Bytes packet = build(spec);
    const std::uint16_t rest = get16(packet, checksum_at(spec));
    spec.payload = {static_cast<std::uint8_t>(rest >> 8), static_cast<std::uint8_t>(rest)};
    std::vector<Bytes> segments;
    ASSERT_TRUE(segments_of(csum_header(spec), build_partial(spec), segments));
    EXPECT_EQ(get16(segments[0], checksum_at(spec)), tcp ? 0 : 0xffff);
    ASSERT_TRUE(segments_of(gso_header(spec, 2), build_partial(spec), segments));
    EXPECT_EQ(get16(segments[0], checksum_at(spec)), tcp ? 0 : 0xffff);
  }
}

TEST(Segment, ChecksumOutsideThePacketIsRefused) {
  const PacketSpec spec = tcp4(10);
  const Bytes packet = build_partial(spec);
  const auto size = static_cast<std::uint16_t>(packet.size());
  const auto at = [&](unsigned start, unsigned offset) {
    VnetHdr hdr = csum_header(spec);
    hdr.csum_start = static_cast<std::uint16_t>(start);
    hdr.csum_offset = static_cast<std::uint16_t>(offset);
    return refused(hdr, packet);
  };
  EXPECT_TRUE(at(0, 10)) << "in the IP header";
  EXPECT_TRUE(at(19, 16));
  EXPECT_FALSE(at(20, 16));
  EXPECT_FALSE(at(20, size - 22U));
  EXPECT_TRUE(at(20, size - 21U));
  EXPECT_FALSE(at(size - 2U, 0));
  EXPECT_TRUE(at(size - 1U, 0));
  EXPECT_TRUE(at(size, 0));
  EXPECT_TRUE(at(65535, 65535));
  EXPECT_TRUE(at(20, 65535));
}

TEST(Segment, ChecksumOfAFragmentIsRefused) {
  for (const unsigned bits : {0x2000U, 0x0001U, 0x3fffU}) {
    const PacketSpec spec =
        with(tcp4(40), [&](auto& s) { s.fragment = static_cast<std::uint16_t>(bits); });
    EXPECT_TRUE(refused(csum_header(spec), build_partial(spec)));
    EXPECT_FALSE(refused({}, build(spec)));
  }
}

class Sizes : public testing::TestWithParam<std::size_t> {};
INSTANTIATE_TEST_SUITE_P(Segment, Sizes, testing::Values(1, 2, 7, 8, 99, 536, 1400, 3000, 65535));

TEST_P(Sizes, AsReference) {
  for (const std::size_t payload : {1U, 2U, 99U, 100U, 2800U, 2999U, 3001U}) {
    for (const bool ipv6 : {false, true}) {
      for (const bool tcp : {false, true}) {
        SCOPED_TRACE(payload);
        expect_as_reference(
            with(tcp4(payload), [&](auto& s) { s.ipv6 = ipv6, s.tcp = tcp, s.id = 65530; }),
            GetParam());
      }
    }
  }
}

TEST(Segment, LargestSuperPackets) {
  expect_as_reference(tcp4(65495), 1400);
  expect_as_reference(tcp4(65495), 1);
  expect_as_reference(with(tcp4(65515), [](auto& s) { s.ipv6 = true; }), 1400);
  expect_as_reference(with(tcp4(65507), [](auto& s) { s.tcp = false; }), 1472);
  expect_as_reference(with(tcp4(65527), [](auto& s) { s.tcp = false, s.ipv6 = true; }), 65527);
}

TEST(Segment, FlagsOfTheLastAndOfTheFirst) {
  for (unsigned flags = 0; flags < 256; ++flags) {
    PacketSpec spec = tcp4(350);
    spec.flags = static_cast<std::uint8_t>(flags);
    spec.urgent = 77;
    expect_as_reference(spec, 100);
    VnetHdr hdr = gso_header(spec, 100);
    hdr.gso_type = ifaces::kVnetGsoTcp4;  // CWR without the ECN flag
    std::vector<Bytes> segments;
    ASSERT_TRUE(segments_of(hdr, build_partial(spec), segments));
    EXPECT_EQ(segments, reference_segments(spec, 100));
  }
}

TEST(Segment, NumbersWrap) {
  expect_as_reference(with(tcp4(5000), [](auto& s) { s.id = 65534, s.seq = 0xfffffff0; }), 1000);
}

TEST(Segment, OptionsAreRepeated) {
  expect_as_reference(with(tcp4(2500),
                           [](auto& s) {
                             s.ip_options = {7, 7, 4, 1, 2, 3, 4, 0};
                             s.tcp_options = Bytes(40, 1);
                           }),
                      700);
  expect_as_reference(with(tcp4(2500),
                           [](auto& s) {
                             s.tcp = false;
                             s.ip_options = Bytes(40, 1);
                           }),
                      700);
}

TEST(Segment, ExtensionHeadersAreRepeated) {
  for (const bool tcp : {false, true}) {
    PacketSpec spec = tcp4(2500);
    spec.ipv6 = true;
    spec.tcp = tcp;
    spec.extensions = {{0, Bytes{0, 1, 4, 0, 0, 0, 0}},
                       {60, Bytes{1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}};
    expect_as_reference(spec, 700);
  }
}

// RFC 8200 §8.1: the pseudo-header has the final destination, which the seed in the field knows.
TEST(Segment, RoutingHeaderKeepsTheSendersPseudoHeader) {
  PacketSpec spec = tcp4(2500);
  spec.ipv6 = true;
  Bytes routing{2, 4, 1, 0, 0, 0, 0};  // one segment left
  append(routing, address(true, 2));
  spec.extensions = {{43, routing}};
  Bytes packet = build_partial(spec);
  std::vector<Bytes> expected = reference_segments(spec, 700);
  for (auto* p : {&packet, &expected[0], &expected[1], &expected[2], &expected[3]})
    (*p)[24 + 7] = 99;  // the next hop
  std::vector<Bytes> segments;
  ASSERT_TRUE(segments_of(gso_header(spec, 700), packet, segments));
  EXPECT_EQ(segments, expected);
}

TEST(Segment, FragmentIsNoSuperPacket) {
  PacketSpec v6 = with(tcp4(2500), [](auto& s) { s.ipv6 = true; });
  v6.extensions = {{44, Bytes{0, 0, 1, 0, 0, 0, 9}}};
  EXPECT_TRUE(refused(gso_header(v6, 700), build_partial(v6)));
  for (const unsigned bits : {0x2000U, 0x0001U, 0x6000U}) {
    const PacketSpec v4 =
        with(tcp4(2500), [&](auto& s) { s.fragment = static_cast<std::uint16_t>(bits); });
    EXPECT_TRUE(refused(gso_header(v4, 700), build_partial(v4)));
  }
}

TEST(Segment, ChainOfExtensionHeadersBeyondThePacketIsRefused) {
  PacketSpec spec = with(tcp4(100), [](auto& s) { s.ipv6 = true; });
  spec.extensions = {{0, Bytes{0, 1, 4, 0, 0, 0, 0}}};
  Bytes packet = build_partial(spec);
  for (unsigned length = 1; length < 256; ++length) {
    packet[41] = static_cast<std::uint8_t>(length);
    packet[40] = 6;
    std::vector<Bytes> segments;
    const bool good = segments_of(gso_header(spec, 10), packet, segments);
    EXPECT_FALSE(good) << length;  // csum_start no longer fits, or the packet is too short
  }
}

TEST(Segment, EndlessChainOfExtensionHeadersIsRefused) {
  Bytes packet(65575, 0);
  packet[0] = 0x60;
  set16(packet, 4, 65535);  // next header 0, eight bytes long, again and again
  VnetHdr hdr{ifaces::kVnetNeedsCsum, ifaces::kVnetGsoTcp6, 0, 1000, 40, 16};
  EXPECT_TRUE(refused(hdr, packet));
  for (const std::size_t at : {65528U, 65536U - 16U, 8192U + 8U}) {
    Bytes chain = packet;
    chain[at] = 6;  // TCP behind it
    if (at + 20 < chain.size()) chain[at + 8 + 12] = 0x50;
    hdr.csum_start = static_cast<std::uint16_t>(at + 8);
    EXPECT_TRUE(refused(hdr, chain)) << at;
    hdr.gso_type = 0;
    EXPECT_FALSE(refused({}, chain)) << "as it stands it may pass";
    hdr.gso_type = ifaces::kVnetGsoTcp6;
  }
}

TEST(Segment, ContradictionsAreRefused) {
  const PacketSpec spec = tcp4(2500);
  const PacketSpec six = with(spec, [](auto& s) { s.ipv6 = true; });
  const PacketSpec udp = with(spec, [](auto& s) { s.tcp = false; });
  const auto changed = [](const PacketSpec& s, auto change) {
    VnetHdr hdr = gso_header(s, 700);
    Bytes packet = build_partial(s);
    change(hdr, packet);
    return refused(hdr, packet);
  };
  EXPECT_FALSE(changed(spec, [](auto&, auto&) {}));
  EXPECT_FALSE(changed(six, [](auto&, auto&) {}));
  EXPECT_FALSE(changed(udp, [](auto&, auto&) {}));
  EXPECT_TRUE(changed(spec, [](auto& h, auto&) { h.gso_size = 0; }));
  EXPECT_TRUE(changed(spec, [](auto& h, auto&) { h.gso_type = ifaces::kVnetGsoTcp6; }));
  EXPECT_TRUE(changed(six, [](auto& h, auto&) { h.gso_type = ifaces::kVnetGsoTcp4; }));
  EXPECT_TRUE(changed(spec, [](auto& h, auto&) { h.gso_type = ifaces::kVnetGsoUdpL4; }));
  EXPECT_TRUE(changed(udp, [](auto& h, auto&) { h.gso_type = ifaces::kVnetGsoTcp4; }));
  EXPECT_TRUE(changed(udp, [](auto& h, auto&) { h.gso_type |= ifaces::kVnetGsoEcn; }));
  EXPECT_TRUE(changed(spec, [](auto& h, auto&) { h.flags = 0; })) << "a checksum of nobody";
  EXPECT_TRUE(changed(spec, [](auto& h, auto&) { h.csum_start += 1; }));
  EXPECT_TRUE(changed(spec, [](auto& h, auto&) { h.csum_start = 0; }));
  EXPECT_TRUE(changed(spec, [](auto& h, auto&) { h.csum_offset = 6; }));
  EXPECT_TRUE(changed(udp, [](auto& h, auto&) { h.csum_offset = 16; }));
  EXPECT_TRUE(changed(spec, [](auto&, auto& p) { p[32] = 0x40; })) << "TCP header of 16 bytes";
  EXPECT_TRUE(changed(tcp4(10), [](auto&, auto& p) { p[32] = 0xf0; }))
      << "TCP header behind the end";
  EXPECT_TRUE(changed(tcp4(0), [](auto&, auto&) {})) << "nothing to cut";
  EXPECT_TRUE(changed(udp, [](auto&, auto& p) { p[25] ^= 1; })) << "UDP length";
  for (unsigned type = 0; type < 256; ++type) {
    const bool known = type == ifaces::kVnetGsoTcp4 ||
                       type == (ifaces::kVnetGsoTcp4 | ifaces::kVnetGsoEcn) || type == 0;
    EXPECT_EQ(changed(spec, [&](auto& h, auto&) { h.gso_type = static_cast<std::uint8_t>(type); }),
              !known)
        << type;
  }
}

// A super-packet that the kernel put together and verified: complete sums, of the first packet.
TEST(Segment, VerifiedSuperPacket) {
  for (const bool ipv6 : {false, true}) {
    for (const bool tcp : {false, true}) {
      PacketSpec spec = with(tcp4(2500), [&](auto& s) { s.ipv6 = ipv6, s.tcp = tcp; });
      VnetHdr hdr = gso_header(spec, 700);
      hdr.flags = ifaces::kVnetDataValid;
      std::vector<Bytes> segments;
      ASSERT_TRUE(segments_of(hdr, build(spec), segments));
      EXPECT_EQ(segments, reference_segments(spec, 700));
      spec.no_udp_checksum = true;
      EXPECT_EQ(refused(hdr, build(spec)), !tcp) << "no checksum, nothing verified";
    }
  }
}

TEST(Segment, EveryTruncationIsRefused) {
  for (const bool ipv6 : {false, true}) {
    for (const bool tcp : {false, true}) {
      const PacketSpec spec = with(tcp4(60), [&](auto& s) { s.ipv6 = ipv6, s.tcp = tcp; });
      const Bytes packet = build_partial(spec);
      for (std::size_t n = 0; n < packet.size(); ++n) {
        Bytes cut(packet.begin(), packet.begin() + static_cast<int>(n));
        EXPECT_TRUE(refused(gso_header(spec, 20), cut));
        // The same with an IP length that agrees: never more than the packet is read or written.
        if (n > 6) set16(cut, ipv6 ? 4 : 2, ipv6 ? n - std::min<std::size_t>(n, 40) : n);
        std::vector<Bytes> segments;
        if (!segments_of(gso_header(spec, 20), cut, segments)) continue;
        EXPECT_TRUE(tcp && n > headers_of(spec)) << n;
      }
    }
  }
}

// Random damage to header and packet: whatever is accepted stays inside its buffers (ASan) and adds
// up to the packet.
TEST(Segment, HostileHeaders) {
  std::mt19937 random(11);
  std::size_t accepted = 0;
  for (int round = 0; round < 60000; ++round) {
    PacketSpec spec = tcp4(random() % 400);
    spec.ipv6 = random() % 2 == 0;
    spec.tcp = random() % 2 == 0;
    if (random() % 4 == 0) spec.tcp_options = Bytes(random() % 11 * 4, 1);
    if (!spec.ipv6 && random() % 4 == 0) spec.ip_options = Bytes(random() % 11 * 4, 1);
    if (spec.ipv6 && random() % 4 == 0) spec.extensions = {{60, Bytes{0, 1, 4, 0, 0, 0, 0}}};
    Bytes packet = build_partial(spec);
    VnetHdr hdr = gso_header(spec, 1 + random() % 200);
    if (random() % 4 == 0) hdr = csum_header(spec);
    for (auto i = random() % 3; i > 0; --i)
      reinterpret_cast<std::uint8_t*>(&hdr)[random() % sizeof hdr] =
          static_cast<std::uint8_t>(random() >> random() % 8);
    for (auto i = random() % 3; i > 0; --i)
      packet[random() % std::min<std::size_t>(packet.size(), 70)] =
          static_cast<std::uint8_t>(random());
    SegmentPlan plan;
    if (!plan_segments(hdr, packet, plan)) continue;
    ++accepted;
    std::size_t payload = 0;
    Bytes segment;
    for (std::size_t i = 0; i < plan.count; ++i) {
      segment.assign(segment_length(plan, i), 0);
      write_segment(plan, packet, i, segment.data());
      payload += segment.size() - plan.headers;
    }
    ASSERT_EQ(payload, packet.size() - plan.headers);
    if (plan.headers != 0) continue;
    complete(plan, packet);
    ASSERT_EQ(packet, segment);
  }
  EXPECT_GT(accepted, 10000U);
}

}  // namespace
}  // namespace espalier::dataplane
