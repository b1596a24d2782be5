// Path MTU, outer fields, fragments, MSS: pure functions.
#include <gtest/gtest.h>

#include "dataplane/checksum.h"
#include "dataplane/fragment.h"
#include "dataplane/mss.h"
#include "dataplane/outer_header.h"
#include "dataplane/path_mtu.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace espalier::dataplane {
namespace {

constexpr std::int64_t kNow = 1'000'000'000'000;

TEST(PathMtu, M4FloorsAndNothingHigher) {
  PathMtu path;
  EXPECT_EQ(path.get(kNow), 0U);
  EXPECT_FALSE(path.learn(1500, 1500, false, kNow));  // it was not too big, then
  EXPECT_FALSE(path.learn(65535, 1500, false, kNow));
  EXPECT_TRUE(path.learn(1400, 1500, false, kNow));
  EXPECT_FALSE(path.learn(1450, 1500, false, kNow));  // never up
  EXPECT_EQ(path.get(kNow), 1400U);
  EXPECT_TRUE(path.learn(0, 1400, false, kNow));  // RFC 1191 §7.1: the next plateau
  EXPECT_EQ(path.get(kNow), 1006U);
  EXPECT_TRUE(path.learn(1, 1000, false, kNow));
  EXPECT_EQ(path.get(kNow), 576U);
  EXPECT_FALSE(path.learn(68, 576, false, kNow));
  EXPECT_EQ(path.get(kNow), 576U);
}

TEST(PathMtu, M4Ipv6BelowItsLeastIsIgnored) {
  PathMtu path;
  EXPECT_FALSE(path.learn(0, 0, true, kNow));
  EXPECT_FALSE(path.learn(1279, 0, true, kNow));
  EXPECT_EQ(path.get(kNow), 0U);
  EXPECT_TRUE(path.learn(1280, 0, true, kNow));
  EXPECT_EQ(path.get(kNow), 1280U);
}

TEST(PathMtu, AgesAndForgets) {
  PathMtu path;
  path.set_link(1500);
  ASSERT_TRUE(path.learn(1400, 1500, false, kNow));
  EXPECT_EQ(path.get(kNow + PathMtu::kLifeNs - 1), 1400U);
  EXPECT_EQ(path.get(kNow + PathMtu::kLifeNs), 1500U);
  EXPECT_FALSE(path.learn(1400, 1500, false, kNow + 5));  // no news, but younger
  EXPECT_EQ(path.get(kNow + PathMtu::kLifeNs), 1400U);
  path.set_link(1300);
  EXPECT_EQ(path.get(kNow), 1300U);
  Peer peer({*ifaces::IpAddress::parse("192.0.2.1"), 4500});
  ASSERT_TRUE(peer.path().learn(1400, 1500, false, kNow));
  peer.set({*ifaces::IpAddress::parse("192.0.2.2"), 4500});
  EXPECT_EQ(peer.path().get(kNow), 0U);
}

// RFC 6040 §4.1: all four in both modes; RFC 4301 §5.1.2: DSCP by rule.
TEST(OuterRule, X4DscpAndEcn) {
  const Bytes inner = inner_v4(40);
  for (unsigned tos = 0; tos < 256; ++tos) {
    const auto t = static_cast<std::uint8_t>(tos);
    OuterHeader spec;
    EXPECT_EQ(OuterRule(spec).fields(inner.data(), false, t).tos(), tos);
    spec.ecn = false;
    EXPECT_EQ(OuterRule(spec).fields(inner.data(), false, t).tos(), tos & 0xfc);
    spec.dscp = OuterHeader::Dscp::no;
    EXPECT_EQ(OuterRule(spec).fields(inner.data(), false, t).tos(), 0);
    spec.ecn = true;
    spec.dscp = OuterHeader::Dscp::set;
    spec.dscp_value = 46;
    EXPECT_EQ(OuterRule(spec).fields(inner.data(), false, t).tos(), (46U << 2) | (tos & 3));
  }
}

TEST(OuterRule, X4DfHopLimitFlowLabel) {
  Bytes v4 = inner_v4(40);
  Bytes v6 = inner_v6(60);
  store_be(v6.data(), std::uint32_t{0x600abcde});
  OuterHeader spec;
  const auto df = [&spec](const Bytes& packet, bool ipv6) {
    return !OuterRule(spec).fields(packet.data(), ipv6, 0).fragmentable();
  };
  EXPECT_FALSE(df(v4, false));
  EXPECT_TRUE(df(v6, true));
  v4[6] = 0x40;
  EXPECT_TRUE(df(v4, false));
  spec.df = OuterHeader::Df::clear;
  EXPECT_FALSE(df(v4, false));
  EXPECT_FALSE(df(v6, true));
  spec.df = OuterHeader::Df::set;
  v4[6] = 0;
  EXPECT_TRUE(df(v4, false));
  EXPECT_EQ(OuterRule(spec).fields(v6.data(), true, 0).flow_label(), 0U);
  spec.copy_flow_label = true;
  spec.hop_limit = 33;
  EXPECT_EQ(OuterRule(spec).fields(v6.data(), true, 0).flow_label(), 0xabcdeU);
  EXPECT_EQ(OuterRule(spec).fields(v4.data(), false, 0).flow_label(), 0U);
  EXPECT_EQ(OuterRule(spec).fields(v4.data(), false, 0).hop_limit(), 33);
}

// The DSCP comes in only where the SA says so; the header checksum stays right.
TEST(OuterRule, X4DscpInwards) {
  SaPair pair;
  EXPECT_EQ(pair.open({pair.seal(1, inner_v4(40, 0x28))}, 0xb8).inner,
            std::vector<Bytes>{inner_v4(40, 0x28)});
  pair.in.dscp_inwards = true;
  EXPECT_EQ(pair.open({pair.seal(2, inner_v4(40, 0x2a))}, 0xbb).inner,
            std::vector<Bytes>{inner_v4(40, 0xbb)});
}

Bytes reassembled(const Bytes& packet, std::size_t mtu, std::size_t& pieces) {
  const std::size_t header = std::size_t{packet[0] & 0xfU} * 4;
  const unsigned base = load_be<std::uint16_t>(&packet[6]) & 0x1fffU;
  Bytes payload(packet.size() - header);
  std::size_t covered = 0;
  Fragmenter fragments(packet, mtu);
  pieces = fragments.count();
  for (std::size_t i = 0; i < pieces; ++i) {
    Bytes piece(fragments.next_length());
    fragments.write_next(piece.data());
    EXPECT_LE(piece.size(), mtu);
    EXPECT_EQ(load_be<std::uint16_t>(&piece[2]), piece.size());
    EXPECT_EQ(fold(sum_bytes(piece.data(), header)), 0xffff);
    const unsigned field = load_be<std::uint16_t>(&piece[6]);
    const std::size_t at = ((field & 0x1fffU) - base) * 8;
    const bool last = i + 1 == pieces;
    EXPECT_EQ((field & 0x2000) == 0, last && (packet[6] & 0x20) == 0);
    std::copy(piece.begin() + static_cast<long>(header), piece.end(),
              payload.begin() + static_cast<long>(at));
    covered += piece.size() - header;
  }
  EXPECT_EQ(covered, payload.size());
  return payload;
}

TEST(Fragmenter, X2EverySizeComesTogetherAgain) {
  for (const std::size_t mtu : {68U, 576U, 1300U, 1399U})
    for (std::size_t length : {1400U, 1401U, 1438U, 4000U, 65535U}) {
      Bytes packet = inner_v4(length);
      for (std::size_t i = 20; i < packet.size(); ++i)
        packet[i] = static_cast<std::uint8_t>(i * 7 + i / 251);
      std::size_t pieces = 0;
      EXPECT_EQ(reassembled(packet, mtu, pieces), Bytes(packet.begin() + 20, packet.end()));
      EXPECT_EQ(pieces, (length - 20 + (mtu - 20) / 8 * 8 - 1) / ((mtu - 20) / 8 * 8));
    }
}

// A fragment is cut further; its place and its "more" stay.
TEST(Fragmenter, X2FragmentsOfFragments) {
  Bytes packet = inner_v4(1428);  // 1408 bytes, a multiple of 8
  store_be(&packet[6], std::uint16_t{0x2000 | 176});
  std::size_t pieces = 0;
  EXPECT_EQ(reassembled(packet, 1300, pieces), Bytes(packet.begin() + 20, packet.end()));
  EXPECT_EQ(pieces, 2U);
}

// RFC 791 §3.1: record route stays in the first fragment, the router alert is copied.
TEST(Fragmenter, X2Options) {
  Bytes packet = inner_v4(1028);
  packet[0] = 0x47;
  const Bytes options = {0x07, 4, 4, 0, 0x94, 4, 0, 0};
  std::copy(options.begin(), options.end(), packet.begin() + 20);
  Fragmenter fragments(packet, 576);
  Bytes piece(fragments.next_length());
  fragments.write_next(piece.data());
  EXPECT_EQ(Bytes(piece.begin() + 20, piece.begin() + 28), options);
  piece.resize(fragments.next_length());
  fragments.write_next(piece.data());
  EXPECT_EQ(Bytes(piece.begin() + 20, piece.begin() + 28), (Bytes{1, 1, 1, 1, 0x94, 4, 0, 0}));
}

// A SYN with `options` behind its header, its checksum right.
Bytes syn(bool ipv6, const Bytes& options) {
  const std::size_t at = ipv6 ? 40 : 20;
  Bytes p = ipv6 ? inner_v6(60) : inner_v4(40 + options.size());
  if (ipv6) {
    p.resize(60 + options.size());
    store_be(&p[4], static_cast<std::uint16_t>(20 + options.size()));
  }
  p[ipv6 ? 6 : 9] = 6;
  std::fill(p.begin() + static_cast<long>(at), p.end(), std::uint8_t{0});
  p[at + 12] = static_cast<std::uint8_t>((20 + options.size()) / 4 << 4);
  p[at + 13] = 2;
  std::copy(options.begin(), options.end(), p.begin() + static_cast<long>(at) + 20);
  const auto sum = static_cast<std::uint16_t>(~fold(sum_bytes(&p[at], p.size() - at)));
  std::memcpy(&p[at + 16], &sum, sizeof sum);
  return p;
}

bool sums_up(const Bytes& p, std::size_t at) {
  return fold(sum_bytes(&p[at], p.size() - at)) == 0xffff;
}

TEST(Mss, ClampsASynAndKeepsItsChecksum) {
  const MssLimit limit(kMssToPath, 1300);
  EXPECT_EQ(limit.v4, 1260);
  EXPECT_EQ(limit.v6, 1240);
  for (const bool ipv6 : {false, true})
    for (const Bytes& options : {Bytes{2, 4, 0x05, 0xb4}, Bytes{1, 2, 4, 0x05, 0xb4, 1, 1, 0},
                                 Bytes{8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 2, 4, 0x05, 0xb4, 0, 0}}) {
      const std::size_t at = ipv6 ? 40 : 20;
      Bytes p = syn(ipv6, options);
      ASSERT_TRUE(sums_up(p, at));
      const Bytes before = p;
      clamp_mss(p, limit);
      EXPECT_NE(p, before);
      EXPECT_TRUE(sums_up(p, at));
      const Bytes needle = {2, 4, 0x04, static_cast<std::uint8_t>(ipv6 ? 0xd8 : 0xec)};
      EXPECT_NE(std::search(p.begin(), p.end(), needle.begin(), needle.end()), p.end());
    }
}

TEST(Mss, LeavesTheRestAlone) {
  const MssLimit limit(1200, 0);
  const auto untouched = [&limit](Bytes p) {
    const Bytes before = p;
    clamp_mss(p, limit);
    return p == before;
  };
  EXPECT_TRUE(untouched(syn(false, {2, 4, 0x04, 0xb0})));  // 1200 already
  EXPECT_TRUE(untouched(syn(false, {2, 4, 0x02, 0x00})));
  EXPECT_TRUE(untouched(syn(false, {2, 3, 0x05, 0xb4})));  // malformed
  EXPECT_TRUE(untouched(syn(false, {0, 2, 4, 0x05})));
  EXPECT_TRUE(untouched(syn(false, {8, 40, 2, 4})));
  Bytes p = syn(false, {2, 4, 0x05, 0xb4});
  p[20 + 13] = 0x10;  // ACK alone
  EXPECT_TRUE(untouched(p));
  p = syn(false, {2, 4, 0x05, 0xb4});
  p[7] = 1;  // a later fragment
  EXPECT_TRUE(untouched(p));
  p = syn(false, {2, 4, 0x05, 0xb4});
  p[20 + 12] = 0xf0;  // longer than the packet
  EXPECT_TRUE(untouched(p));
  p[20 + 12] = 0x10;
  EXPECT_TRUE(untouched(p));
  for (std::size_t n = 20; n < 44; ++n)
    EXPECT_TRUE(untouched(Bytes(p.begin(), p.begin() + static_cast<long>(n))));
}

}  // namespace
}  // namespace espalier::dataplane
