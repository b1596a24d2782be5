#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "dataplane/ecn.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace espalier::dataplane {
namespace {

TEST(Esp, RoundTripOfEveryLength) {
  for (const crypto::SuiteInfo& suite : crypto::suites()) {
    SaPair pair(true, suite.suite);
    std::uint64_t seq = 1;
    for (std::size_t length = 20; length <= 1500; ++length, ++seq) {
      const Bytes inner = length >= 40 && length % 2 == 0 ? inner_v6(length) : inner_v4(length);
      const Bytes packet = pair.seal(seq, inner, inner[0] >> 4 == 6 ? kNextIpv6 : kNextIpv4);
      ASSERT_EQ((packet.size() - kEspHeader - suite.iv - suite.icv) % suite.align, 0U);
      const auto opened = pair.open({packet});
      ASSERT_EQ(opened.inner, std::vector<Bytes>{inner}) << length;
    }
  }
}

// With GCM the inner packet may stand elsewhere, with room for no more than the trailer behind it.
TEST(Esp, SealedOutOfAnotherBuffer) {
  for (const auto suite : {crypto::Suite::aes_gcm256, crypto::Suite::aes_gcm_8_128}) {
    SaPair pair(true, suite);
    for (std::size_t length = 20; length <= 100; ++length) {
      Bytes inner = inner_v4(length);
      const Bytes expected = pair.seal(length, inner);
      inner.resize(length + ifaces::kTunTailroom);
      Bytes packet(expected.size());
      crypto::AeadOp op{};
      esp_frame(pair.out, pair.suite, length, packet.data(), length, kNextIpv4, op, inner.data());
      pair.out.key(0).seal({&op, 1});
      ASSERT_EQ(packet, expected) << length;
    }
  }
}

// RFC 4106 §5: 4-byte alignment and no more; a 1,500-byte result stays 1,500.
TEST(Esp, PaddingIsMinimal) {
  const auto& suite = crypto::info(crypto::Suite::aes_gcm128);
  for (std::size_t n = 0; n < 64; ++n) {
    EXPECT_LT(esp_padding(suite, n), 4U);
    EXPECT_EQ((n + esp_padding(suite, n) + kEspTrailer) % 4, 0U);
  }
  EXPECT_EQ(esp_length(suite, inner_mtu(suite, 1500, false, true)), 1500U - 20 - 8);
  EXPECT_EQ(inner_mtu(suite, 1500, false, true), 1438U);
  EXPECT_EQ(inner_mtu(suite, 1500, false, false), 1446U);
  EXPECT_EQ(inner_mtu(suite, 1500, true, true), 1418U);
  EXPECT_EQ(inner_mtu(suite, 40, true, true), 0U);
}

// What fits is found by trying: the longest inner packet whose ESP packet is no longer than asked.
TEST(Esp, InnerMtuIsTheLongestThatFits) {
  for (const crypto::SuiteInfo& s : crypto::suites())
    for (std::size_t outer = 200; outer < 240; ++outer) {
      std::size_t longest = 0;
      for (std::size_t n = 0; n < outer; ++n)
        if (20 + esp_length(s, n) <= outer) longest = n;
      ASSERT_EQ(inner_mtu(s, outer, false, false), longest) << s.name << " " << outer;
    }
  // 1500 − 20 − 8 (UDP) − 8 − 16 − 12 = 1436; 89 blocks of 16 are 1424, less the trailer.
  EXPECT_EQ(inner_mtu(crypto::info(crypto::Suite::aes256_sha1), 1500, false, true), 1422U);
}

// T9: every length from 0 to beyond the minimum is refused and leaves the window alone.
TEST(Esp, T9TruncatedPacketsOfEverySuite) {
  for (const crypto::SuiteInfo& s : crypto::suites()) {
    SCOPED_TRACE(s.name);
    SaPair pair(true, s.suite);
    const Bytes whole = pair.seal(5, inner_v4(100));
    for (std::size_t length = 0; length < whole.size(); ++length) {
      const auto reason =
          pair.lost(Bytes(whole.begin(), whole.begin() + static_cast<long>(length)));
      const bool shorter = length < esp_minimum(pair.suite);
      ASSERT_EQ(reason, shorter ? Drop::too_short : Drop::integrity) << length;
    }
    EXPECT_EQ(pair.in.window.top(), 0U);
    EXPECT_EQ(pair.open({whole}).inner.size(), 1U);
  }
}

TEST(Esp, EveryFlippedBitIsRefused) {
  for (const crypto::SuiteInfo& s : crypto::suites()) {
    SCOPED_TRACE(s.name);
    SaPair pair(false, s.suite);
    const Bytes whole = pair.seal(5, inner_v4(60));
    for (std::size_t bit = 32; bit < whole.size() * 8; ++bit) {  // the SPI chose the SA
      Bytes bad = whole;
      bad[bit / 8] = static_cast<std::uint8_t>(bad[bit / 8] ^ 1U << bit % 8);
      const auto reason = pair.lost(bad);
      ASSERT_EQ(reason, Drop::integrity) << bit;
    }
    EXPECT_EQ(pair.in.window.top(), 0U);
  }
}

TEST(Esp, A4ForgedNumbersDoNotMoveTheWindow) {
  SaPair pair(false, crypto::Suite::aes_gcm128, 64);
  EXPECT_EQ(pair.open({pair.seal(79, inner_v4(40))}).inner.size(), 1U);
  for (std::uint64_t seq = 200; seq < 217; ++seq) {
    Bytes forged = pair.seal(seq, inner_v4(40));
    forged.back() ^= 1;
    EXPECT_EQ(pair.lost(forged), Drop::integrity);
  }
  EXPECT_EQ(pair.open({pair.seal(70, inner_v4(40))}).inner.size(), 1U);
}

TEST(Esp, A5CopiesInOneBatch) {
  SaPair pair;
  const auto opened = pair.open(std::vector<Bytes>(8, pair.seal(3, inner_v4(40))));
  EXPECT_EQ(opened.inner.size(), 1U);
  EXPECT_EQ(opened.lost, std::vector<Drop>(7, Drop::duplicate));
}

TEST(Esp, A7ReplayedLateAndGoodInOneBatch) {
  for (const bool esn : {false, true}) {
    SaPair pair(esn, crypto::Suite::aes_gcm128, 64);
    (void)pair.open({pair.seal(200, inner_v4(40))});
    const auto opened = pair.open({pair.seal(200, inner_v4(41)), pair.seal(100, inner_v4(42)),
                                   pair.seal(201, inner_v4(43)), pair.seal(199, inner_v4(44))});
    ASSERT_EQ(opened.inner.size(), 2U);
    EXPECT_EQ(opened.inner[0].size(), 43U);
    EXPECT_EQ(opened.inner[1].size(), 44U);
    // RFC 4303 A2.2: with ESN what is too late would be 2^32 ahead, and its ICV is not.
    EXPECT_EQ(std::multiset<Drop>(opened.lost.begin(), opened.lost.end()),
              (std::multiset<Drop>{Drop::duplicate, esn ? Drop::integrity : Drop::late}));
  }
}

TEST(Esp, ZeroIsNoNumber) {
  SaPair pair(false);
  EXPECT_EQ(pair.lost(pair.seal(0, inner_v4(40))), Drop::late);
}

// A9, A10: ESN across 2^32, and a late one from before.
TEST(Esp, A9A10EsnWraps) {
  SaPair pair(true, crypto::Suite::aes_gcm256, 64);
  for (const std::uint64_t seq :
       {0xfffffffcULL, 0x100000006ULL, 0x100000005ULL, 0x100000000ULL, 0xfffffffdULL})
    EXPECT_EQ(pair.open({pair.seal(seq, inner_v4(40))}).inner.size(), 1U) << seq;
  EXPECT_EQ(pair.in.window.top(), 0x100000006ULL);
}

// A13, T6: a jump is believed when its ICV is right, and only then.
TEST(Esp, A13ForgedJumpLeavesTheState) {
  constexpr std::uint32_t kWindow = 4096;
  for (const std::uint64_t jump : {1ULL << 31, (1ULL << 32) - 2ULL * kWindow}) {
    SaPair pair(true, crypto::Suite::aes_gcm256, kWindow, 0xfffff000ULL);
    const std::uint64_t top = pair.in.window.top();
    Bytes forged = pair.seal(top + jump, inner_v4(40));
    forged[forged.size() - 5] ^= 0x80;
    EXPECT_EQ(pair.lost(forged), Drop::integrity);
    EXPECT_EQ(pair.in.window.top(), top);
    EXPECT_EQ(pair.open({pair.seal(top + 2, inner_v4(40))}).inner.size(), 1U);
    EXPECT_EQ(pair.open({pair.seal(top + 1, inner_v4(40))}).inner.size(), 1U);
    EXPECT_EQ(pair.open({pair.seal(top + jump, inner_v4(40))}).inner.size(), 1U);
    EXPECT_EQ(pair.in.window.top(), top + jump);
    EXPECT_EQ(pair.lost(pair.seal(top + 2, inner_v4(40))), Drop::integrity);  // too old to be told
  }
}

// A14: no resynchronisation (RFC 4303 A3 is a MAY): after 2^32 lost packets nothing is taken, at
// the price of one failed open each, and the SA is to be replaced.
TEST(Esp, A14NoResynchronisation) {
  SaPair pair(true, crypto::Suite::aes_gcm256, 64, 1000);
  EXPECT_EQ(pair.lost(pair.seal((1ULL << 32) + 1001, inner_v4(40))), Drop::integrity);
  EXPECT_EQ(pair.in.window.top(), 1000U);
  EXPECT_EQ(pair.open({pair.seal(1001, inner_v4(40))}).inner.size(), 1U);
}

// 4303-4: without a window a packet may come again and again, if its ICV is right.
TEST(Esp, NoWindow) {
  SaPair pair(false, crypto::Suite::aes_gcm256, 0);
  const Bytes packet = pair.seal(7, inner_v4(40));
  EXPECT_EQ(pair.open({packet, packet, pair.seal(0xffffffff, inner_v4(40)), packet}).inner.size(),
            4U);
  Bytes forged = packet;
  forged.back() ^= 1;
  EXPECT_EQ(pair.lost(forged), Drop::integrity);
}

// The high half is authenticated: the same low half under another high half is a forgery.
TEST(Esp, EsnHighHalfIsAuthenticated) {
  for (const crypto::SuiteInfo& s : crypto::suites()) {
    SCOPED_TRACE(s.name);
    SaPair pair(true, s.suite, 64, 0x500000000ULL);
    EXPECT_EQ(pair.lost(pair.seal(0x300000007ULL, inner_v4(40))), Drop::integrity);
    EXPECT_EQ(pair.open({pair.seal(0x500000007ULL, inner_v4(40))}).inner.size(), 1U);
  }
}

TEST(Esp, PaddingMustCount) {
  SaPair pair;
  Bytes text = inner_v4(22);
  text.insert(text.end(), {1, 2, 3, 5, 4, kNextIpv4});  // 1 2 3 5
  EXPECT_EQ(pair.lost(pair.seal_text(1, text)), Drop::bad_padding);
  text = inner_v4(22);
  text.insert(text.end(), {200, kNextIpv4});  // longer than the packet
  EXPECT_EQ(pair.lost(pair.seal_text(2, text)), Drop::bad_padding);
  text = inner_v4(22);
  for (std::uint8_t i = 1; i <= 200; ++i) text.push_back(i);  // long, and right
  text.insert(text.end(), {200, kNextIpv4});
  EXPECT_EQ(pair.open({pair.seal_text(3, text)}).inner, std::vector<Bytes>{inner_v4(22)});
}

TEST(Esp, NextHeaders) {
  SaPair pair;
  const auto dummy = pair.open({pair.seal(1, Bytes(50, 9), kNextNone)});
  EXPECT_EQ(dummy.inner, std::vector<Bytes>{Bytes{}});  // no error, nothing to deliver
  EXPECT_EQ(pair.open({pair.seal(2, Bytes{}, kNextNone)}).lost.size(), 0U);
  EXPECT_EQ(pair.lost(pair.seal(3, inner_v4(40), kNextIpv6)), Drop::bad_next_header);
  EXPECT_EQ(pair.lost(pair.seal(4, inner_v6(60), kNextIpv4)), Drop::bad_next_header);
  EXPECT_EQ(pair.lost(pair.seal(5, inner_v4(40), 6)), Drop::bad_next_header);
  EXPECT_EQ(pair.lost(pair.seal(6, Bytes{}, kNextIpv4)), Drop::bad_next_header);
}

TEST(Esp, InnerLength) {
  SaPair pair;
  Bytes inner = inner_v4(60);
  inner.resize(200, 0);  // TFC padding: delivered at the inner length
  EXPECT_EQ(pair.open({pair.seal(1, inner)}).inner, std::vector<Bytes>{inner_v4(60)});
  inner = inner_v4(60);
  store_be(inner.data() + 2, std::uint16_t{61});
  EXPECT_EQ(pair.lost(pair.seal(2, inner)), Drop::bad_inner_length);
  EXPECT_EQ(pair.lost(pair.seal(3, Bytes(inner.begin(), inner.begin() + 19))),
            Drop::bad_inner_length);
  inner = inner_v6(60);
  store_be(inner.data() + 4, std::uint16_t{21});
  EXPECT_EQ(pair.lost(pair.seal(4, inner, kNextIpv6)), Drop::bad_inner_length);
}

TEST(Esp, X8InnerAddressesOutsideTheSelectors) {
  SaPair pair;
  Bytes inner = inner_v4(40);
  inner[14] = 9;  // 10.1.9.2
  EXPECT_EQ(pair.lost(pair.seal(1, inner)), Drop::selector_mismatch);
  pair.binding.device = nullptr;
  EXPECT_EQ(pair.lost(pair.seal(2, inner_v4(40))), Drop::no_device);
  pair.in.binding = nullptr;
  EXPECT_EQ(pair.lost(pair.seal(3, inner_v4(40))), Drop::no_device);
}

TEST(Esp, X7PinnedPeer) {
  SaPair pair;
  pair.in.follow_peer = false;
  EXPECT_EQ(pair.open({pair.seal(1, inner_v4(40))}).inner.size(), 1U);
  pair.sender.port = 4501;
  EXPECT_EQ(pair.lost(pair.seal(2, inner_v4(40))), Drop::wrong_peer);
  pair.sender = {*ifaces::IpAddress::parse("192.0.2.99"), pair.in.peer->get().port};
  EXPECT_EQ(pair.lost(pair.seal(3, inner_v4(40))), Drop::wrong_peer);
  pair.sender = pair.in.peer->get();
  EXPECT_EQ(pair.open({pair.seal(4, inner_v4(40))}).inner.size(), 1U);
}

TEST(Esp, T19OnlyTheNewestShowsWhereThePeerIs) {
  SaPair pair;
  EXPECT_NE(pair.open({pair.seal(10, inner_v4(40))}).newest, nullptr);
  EXPECT_EQ(pair.open({pair.seal(9, inner_v4(40))}).newest, nullptr);   // older
  EXPECT_EQ(pair.open({pair.seal(10, inner_v4(40))}).newest, nullptr);  // replayed
  Bytes forged = pair.seal(11, inner_v4(40));
  forged.back() ^= 1;
  EXPECT_EQ(pair.open({forged}).newest, nullptr);
}

// RFC 6040 §4.2, all 16 combinations; the IPv4 header checksum stays right.
TEST(Esp, X4Ecn) {
  std::uint64_t seq = 1;
  SaPair pair;
  for (std::uint8_t outer = 0; outer < 4; ++outer) {
    for (std::uint8_t inner = 0; inner < 4; ++inner, ++seq) {
      const Bytes packet = pair.seal(seq, inner_v4(40, inner));
      if (outer == kCe && inner == kNotEct) {
        EXPECT_EQ(pair.lost(packet, outer), Drop::ecn_violation);
        continue;
      }
      const std::uint8_t expected = outer == kCe                       ? kCe
                                    : outer == kEct1 && inner == kEct0 ? kEct1
                                                                       : inner;
      EXPECT_EQ(pair.open({packet}, outer).inner, std::vector<Bytes>{inner_v4(40, expected)})
          << +outer << " " << +inner;
    }
  }
}

// Cases 1–9 of draft-mcgrew-gcm-test-01 carry next header 1: authentic, and not for a tunnel.
TEST(Esp, V2McGrewPackets) {
  std::ifstream file(ESPALIER_VECTORS "/mcgrew/cases-1-9.txt");
  ASSERT_TRUE(file);
  const auto unhex = [](const std::string& text) {
    Bytes b;
    for (std::size_t i = 0; i + 1 < text.size(); i += 2)
      b.push_back(static_cast<std::uint8_t>(std::stoul(text.substr(i, 2), nullptr, 16)));
    return b;
  };
  std::map<std::string, std::string> fields;
  std::string line;
  int cases = 0;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    std::string name;
    std::string equals;
    words >> name >> equals;
    if (equals != "=") continue;
    words >> fields[name];
    if (name != "packet") continue;
    const Bytes key = unhex(fields["key"]);
    const Bytes nonce = unhex(fields["nonce"]);
    const bool esn = fields["seq"].size() == 16;
    const std::uint64_t seq = std::stoull(fields["seq"], nullptr, 16);
    Bytes keymat = key;
    keymat.insert(keymat.end(), nonce.begin(), nonce.begin() + 4);
    const crypto::Suite suite = key.size() == 16   ? crypto::Suite::aes_gcm128
                                : key.size() == 24 ? crypto::Suite::aes_gcm192
                                                   : crypto::Suite::aes_gcm256;
    SaPair pair(esn, suite, 64, seq - 1, keymat);
    Bytes packet = unhex(fields["packet"]);
    packet.back() ^= 1;
    EXPECT_EQ(pair.lost(packet), Drop::integrity) << cases;
    packet.back() ^= 1;
    EXPECT_EQ(pair.lost(packet), Drop::bad_next_header) << cases;
    EXPECT_EQ(pair.in.window.top(), seq);
    ++cases;
  }
  EXPECT_EQ(cases, 9);
}

TEST(Esp, NumbersAreReservedOnce) {
  OutboundSa sa;
  sa.next_seq = 10;
  sa.seq_limit = 14;
  std::uint64_t first = 0;
  EXPECT_EQ(sa.reserve(3, first), 3U);
  EXPECT_EQ(first, 10U);
  EXPECT_EQ(sa.reserve(5, first), 2U);  // 13 and 14 are left
  EXPECT_EQ(first, 13U);
  EXPECT_EQ(sa.reserve(1, first), 0U);
  sa.seq_limit = 20;
  EXPECT_EQ(sa.reserve(1, first), 1U);  // what was reserved beyond the limit is not given out again
  EXPECT_EQ(first, 18U);
}

}  // namespace
}  // namespace espalier::dataplane
