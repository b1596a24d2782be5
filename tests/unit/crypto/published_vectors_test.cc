// Every backend gives the published answers: Wycheproof, NIST CAVP and draft-mcgrew-gcm-test-01.
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
  // The vectors of this suite, of all sources.
  [[nodiscard]] static std::vector<Vector> all() {
    std::vector<Vector> vectors;
    for (auto&& source : {wycheproof(), cavp(), mcgrew()})
      std::copy_if(source.begin(), source.end(), std::back_inserter(vectors),
                   [](const Vector& v) { return v.suite == suite(); });
    return vectors;
  }
};

bool full_icv(const Vector& v) {
  return v.icv.size() == 16;
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
  EXPECT_GE(count, suite() == Suite::aes_gcm192 ? 24 : 250);
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
  EXPECT_GE(opened, suite() == Suite::aes_gcm192 ? 24 : 100);
  EXPECT_GE(refused, 27);
}

TEST_P(PublishedVectors, AreRefusedWithAnyBitOfTheIcvFlipped) {
  for (const Vector& v : all()) {
    if (!full_icv(v) || !v.valid) continue;
    SCOPED_TRACE(v.id);
    const auto key = backend().expand(v.suite, v.key);
    std::vector<Packet> packets(128, sealed(v));
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
  int count = 0;
  for (const auto& [v, packet] : mcgrew_packets()) {
    if (v.suite != suite()) continue;
    SCOPED_TRACE(v.id);
    // In place: header, IV, then the text and the ICV right behind it, as on the wire.
    Bytes wire(packet.begin(), packet.begin() + 8);
    wire.insert(wire.end(), v.nonce.begin() + 4, v.nonce.end());
    wire.insert(wire.end(), v.plaintext.begin(), v.plaintext.end());
    wire.resize(wire.size() + 16);
    AeadOp op = unsealed(v).op();
    op.text = wire.data() + 16;
    op.icv = wire.data() + wire.size() - 16;
    backend().expand(v.suite, v.key)->seal({&op, 1});
    EXPECT_TRUE(op.good);
    EXPECT_EQ(to_hex(wire), to_hex(packet));
    ++count;
  }
  EXPECT_GE(count, suite() == Suite::aes_gcm192 ? 1 : 2);
}

INSTANTIATE_TEST_SUITE_P(Backends, PublishedVectors, ::testing::ValuesIn(kBackendCases), case_name);

TEST(VectorFiles, HoldWhatTheReadmeSays) {
  const auto w = wycheproof();
  EXPECT_EQ(w.size(), 154U);
  EXPECT_EQ(std::count_if(w.begin(), w.end(), [](const Vector& v) { return !v.valid; }), 81);
  EXPECT_EQ(cavp().size(), 450U);
  EXPECT_EQ(mcgrew().size(), 9U);
}

}  // namespace
}  // namespace espalier::crypto::testing
