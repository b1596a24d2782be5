// V1, V2: every backend gives the published answers: Wycheproof, NIST CAVP,
// draft-mcgrew-gcm-test-01 and the RFCs of CBC and HMAC.
#include <gmock/gmock.h>

#include <algorithm>

#include "tests/unit/crypto/backend_case.h"
#include "tests/unit/crypto/vectors.h"

namespace espalier::crypto::testing {
namespace {

using ::testing::Each;
using ::testing::Eq;

class PublishedVectors : public OnEveryBackend {
 protected:
  // The vectors of this suite, of all sources. With a short ICV: those that have it, and the
  // beginnings of the whole ones (NIST SP 800-38D §7.1).
  [[nodiscard]] static std::vector<Vector> all() {
    if (suite() == Suite::chacha20_poly1305) return wycheproof_chacha20();
    const SuiteInfo& wanted = info(suite());
    std::vector<Vector> vectors;
    for (auto&& source : {wycheproof(), cavp(), mcgrew()})
      for (const Vector& v : source) {
        if (info(v.suite).key != wanted.key) continue;
        const bool cut = wanted.icv != 16;
        if (cut && (v.icv.size() < wanted.icv || !v.valid)) continue;
        vectors.push_back(v);
        vectors.back().suite = suite();
        if (cut) vectors.back().icv.resize(wanted.icv);
      }
    return vectors;
  }

  // There are fewer for keys of 192 bits.
  [[nodiscard]] static bool few() { return info(suite()).key == 24; }
};

std::vector<BackendCase> published_cases() {
  return backend_cases(
      [](const SuiteInfo& s) { return s.mode == Mode::gcm || s.mode == Mode::chacha20; });
}

bool full_icv(const Vector& v) {
  return v.icv.size() == info(v.suite).icv;
}

TEST_P(PublishedVectors, AreWhatSealGives) {
  int count = 0;
  for (const Vector& v : all()) {
    if (!v.valid) continue;
    SCOPED_TRACE(v.id);
    const auto key = backend().expand(v.suite, v.key);
    Packet packet = unsealed(v);
    std::vector<bool> good;
    seal(*key, {&packet, 1}, good);
    EXPECT_TRUE(good[0]);
    EXPECT_EQ(to_hex(packet.text), to_hex(v.ciphertext));
    // A shorter ICV is the beginning of the whole one (NIST SP 800-38D §7.1).
    packet.icv.resize(v.icv.size());
    EXPECT_EQ(to_hex(packet.icv), to_hex(v.icv));
    ++count;
  }
  EXPECT_GE(count, few() ? 24 : 100);
}

TEST_P(PublishedVectors, AreOpenedOrRefused) {
  int opened = 0;
  int refused = 0;
  for (const Vector& v : all()) {
    if (!full_icv(v)) continue;
    SCOPED_TRACE(v.id);
    const auto key = backend().expand(v.suite, v.key);
    Packet packet = sealed(v);
    std::vector<bool> good;
    open(*key, {&packet, 1}, good);
    ASSERT_EQ(good[0], v.valid);
    if (v.valid) {
      EXPECT_EQ(to_hex(packet.text), to_hex(v.plaintext));
    }
    if (!v.valid) {
      EXPECT_THAT(packet.text, Each(Eq(0)));
    }
    ++(v.valid ? opened : refused);
  }
  EXPECT_GE(opened, few() ? 24 : 100);
  if (info(suite()).icv == 16) {
    EXPECT_GE(refused, 27);
  }
}

TEST_P(PublishedVectors, AreRefusedWithAnyBitOfTheIcvFlipped) {
  for (const Vector& v : all()) {
    if (!full_icv(v) || !v.valid) continue;
    SCOPED_TRACE(v.id);
    const auto key = backend().expand(v.suite, v.key);
    std::vector<Packet> packets(v.icv.size() * 8, sealed(v));
    for (std::size_t bit = 0; bit < packets.size(); ++bit)
      packets[bit].icv[bit / 8] = static_cast<std::uint8_t>(v.icv[bit / 8] ^ 1U << bit % 8);
    std::vector<bool> good;
    open(*key, packets, good);
    ASSERT_THAT(good, Each(false));
    for (const Packet& p : packets) ASSERT_THAT(p.text, Each(Eq(0)));
  }
}

TEST_P(PublishedVectors, HoldInBatches) {
  for (const Vector& v : all()) {
    if (!full_icv(v)) continue;
    SCOPED_TRACE(v.id);
    const auto key = backend().expand(v.suite, v.key);
    for (const std::size_t size : {2U, 7U, 8U, 63U, 64U}) {
      std::vector<Packet> packets(size, sealed(v));
      std::vector<bool> good;
      open(*key, packets, good);
      ASSERT_THAT(good, Each(v.valid));
      if (!v.valid) continue;
      for (const Packet& p : packets) ASSERT_EQ(p.text, v.plaintext);
      seal(*key, packets, good);
      ASSERT_THAT(good, Each(true));
      for (const Packet& p : packets) ASSERT_EQ(p.text, v.ciphertext);
      for (const Packet& p : packets) ASSERT_EQ(p.icv, v.icv);
    }
  }
}

TEST_P(PublishedVectors, OfMcgrewAreTheExactPackets) {
  if (suite() == Suite::chacha20_poly1305 || info(suite()).icv != 16)
    GTEST_SKIP() << "they are of AES-GCM with an ICV of 16 bytes";
  int count = 0;
  for (const auto& [v, packet] : mcgrew_packets()) {
    if (v.suite != suite()) continue;
    SCOPED_TRACE(v.id);
    // In place: header, IV, then the text and the ICV right behind it, as on the wire.
    Bytes wire(packet.begin(), packet.begin() + 8);
    wire.insert(wire.end(), v.nonce.begin() + 4, v.nonce.end());
    wire.insert(wire.end(), v.plaintext.begin(), v.plaintext.end());
    wire.resize(wire.size() + 16);
    AeadOp op = unsealed(v).lay_out(wire.data());
    backend().expand(v.suite, v.key)->seal({&op, 1});
    EXPECT_TRUE(op.good);
    EXPECT_EQ(to_hex(wire), to_hex(packet));
    ++count;
  }
  EXPECT_GE(count, suite() == Suite::aes_gcm192 ? 1 : 2);
}

INSTANTIATE_TEST_SUITE_P(Backends, PublishedVectors, ::testing::ValuesIn(published_cases()),
                         case_name);

class PublishedHmac : public OnEveryBackend {
 protected:
  [[nodiscard]] static std::vector<HmacCase> all() {
    std::vector<HmacCase> cases;
    for (auto&& source : {wycheproof_hmac(), rfc_hmac()})
      std::copy_if(source.begin(), source.end(), std::back_inserter(cases),
                   [](const HmacCase& c) { return c.suite == suite(); });
    return cases;
  }
  // The first eight bytes are the header's, the rest the text.
  [[nodiscard]] static Packet packet(const HmacCase& c) {
    return {Bytes(c.data.begin() + 8, c.data.end()),
            c.icv,
            {},
            Bytes(c.data.begin(), c.data.begin() + 8),
            0};
  }
};

TEST_P(PublishedHmac, IsWhatSealGivesAndOpenTakes) {
  int valid = 0;
  int invalid = 0;
  for (const HmacCase& c : all()) {
    SCOPED_TRACE(c.id);
    const auto key = backend().expand(c.suite, c.key);
    std::vector<bool> good;
    std::vector<Packet> packets(9, packet(c));
    open(*key, packets, good);
    ASSERT_THAT(good, Each(c.valid));
    for (Packet& p : packets) {
      if (c.valid) {
        EXPECT_EQ(p.text, packet(c).text);
      } else {
        EXPECT_THAT(p.text, Each(Eq(0)));
      }
    }
    ++(c.valid ? valid : invalid);
    if (!c.valid) continue;
    packets.assign(9, packet(c));
    for (Packet& p : packets) std::fill(p.icv.begin(), p.icv.end(), std::uint8_t{0xEE});
    seal(*key, packets, good);
    ASSERT_THAT(good, Each(true));
    for (const Packet& p : packets) EXPECT_EQ(to_hex(p.icv), to_hex(c.icv));
  }
  EXPECT_GE(valid, suite() == Suite::null_sha256 ? 10 : 1);
  EXPECT_GE(invalid, suite() == Suite::null_sha256 ? 27 : 0);
}

INSTANTIATE_TEST_SUITE_P(Backends, PublishedHmac,
                         ::testing::ValuesIn(backend_cases([](const SuiteInfo& s) {
                           return s.mode == Mode::hmac;
                         })),
                         case_name);

class PublishedCbc : public OnEveryBackend {};

// The RFC's packets carry no ICV; ours is behind them.
TEST_P(PublishedCbc, IsWhatSealGives) {
  const auto cases = rfc_cbc();
  ASSERT_EQ(cases.size(), 2U);
  for (const CbcCase& c : cases) {
    SCOPED_TRACE(c.id);
    Bytes keys = c.key;
    keys.resize(info(suite()).keys(), 0x5c);
    const auto key = backend().expand(suite(), keys);
    std::vector<Packet> packets(3, {c.plaintext, Bytes(info(suite()).icv), c.iv,
                                    from_hex("0000432100000001"), c.iv.size()});
    std::vector<bool> good;
    seal(*key, packets, good);
    ASSERT_THAT(good, Each(true));
    for (const Packet& p : packets) EXPECT_EQ(to_hex(p.text), to_hex(c.ciphertext));
    open(*key, packets, good);
    ASSERT_THAT(good, Each(true));
    for (const Packet& p : packets) EXPECT_EQ(to_hex(p.text), to_hex(c.plaintext));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, PublishedCbc,
                         ::testing::ValuesIn(backend_cases([](const SuiteInfo& s) {
                           return s.mode == Mode::cbc_hmac && s.key == 16;
                         })),
                         case_name);

TEST(VectorFiles, HoldWhatTheReadmeSays) {
  const auto w = wycheproof();
  EXPECT_EQ(w.size(), 154U);
  EXPECT_EQ(std::count_if(w.begin(), w.end(), [](const Vector& v) { return !v.valid; }), 81);
  EXPECT_EQ(cavp().size(), 450U);
  EXPECT_EQ(mcgrew().size(), 9U);
  EXPECT_EQ(wycheproof_chacha20().size(), 246U);
  EXPECT_EQ(rfc_cbc().size(), 2U);
  EXPECT_EQ(rfc_hmac().size(), 5U);
}

}  // namespace
}  // namespace espalier::crypto::testing
