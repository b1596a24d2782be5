// What AeadKey promises, of every suite on every backend: batches, alignment, bounds, threads,
// agreement.
#include "crypto/aead.h"

#include <gmock/gmock.h>
#include <sys/mman.h>

#include <algorithm>
#include <numeric>
#include <thread>

#include "tests/unit/crypto/backend_case.h"
#include "tests/unit/crypto/vectors.h"

namespace espalier::crypto::testing {
namespace {

using ::testing::Each;
using ::testing::Eq;

class Aead : public OnEveryBackend {
 protected:
  [[nodiscard]] std::unique_ptr<AeadKey> key(std::uint32_t seed = 1) const {
    return backend().expand(suite(), pseudo_random(info(suite()).keys(), seed));
  }
  [[nodiscard]] static Packet plain(std::size_t length, std::uint32_t seed) {
    return plain_packet(suite(), length, seed);
  }
  // Packets of all sorts of lengths, empty and short ones among them.
  [[nodiscard]] static std::vector<Packet> plain_batch(std::size_t size) {
    std::vector<Packet> batch;
    for (std::size_t i = 0; i < size; ++i)
      batch.push_back(plain(i * i * 7 % 1501, static_cast<std::uint32_t>(i)));
    return batch;
  }
};

void damage(Packet& packet, std::size_t how) {
  if (packet.nonce.empty() && how % 4 == 2) ++how;
  if (packet.text.empty() && how % 4 == 3) ++how;
  switch (how % 4) {
    case 0:
      packet.icv[how % packet.icv.size()] ^= 0x10;
      break;
    case 1:
      packet.aad[how % packet.aad.size()] ^= 0x01;
      break;
    case 2:
      packet.nonce[how % packet.nonce.size()] ^= 0x80;
      break;
    case 3:
      packet.text[how % packet.text.size()] ^= 0x04;
      break;
  }
}

TEST_P(Aead, V3RefusesTheOneBadPacketOfABatchWhereverItIs) {
  const auto k = key();
  for (const std::size_t size : {1U, 2U, 7U, 8U, 63U, 64U}) {
    const std::vector<Packet> plain_ones = plain_batch(size);
    std::vector<Packet> whole = plain_ones;
    std::vector<bool> good;
    seal(*k, whole, good);
    ASSERT_THAT(good, Each(true));

    for (std::size_t bad = 0; bad < size; ++bad) {
      SCOPED_TRACE(::testing::Message() << "batch of " << size << ", bad one at " << bad);
      std::vector<Packet> batch = whole;
      damage(batch[bad], bad + size);
      open(*k, batch, good);
      for (std::size_t i = 0; i < size; ++i) {
        ASSERT_EQ(good[i], i != bad) << "packet " << i;
        if (i != bad) {
          ASSERT_EQ(batch[i].text, plain_ones[i].text) << "packet " << i;
        }
      }
      ASSERT_THAT(batch[bad].text, Each(Eq(0)));
    }
  }
}

TEST_P(Aead, RefusesAllOfABatchUnderAnotherKey) {
  std::vector<Packet> batch = plain_batch(64);
  std::vector<bool> good;
  seal(*key(1), batch, good);
  open(*key(2), batch, good);
  EXPECT_THAT(good, Each(false));
  for (const Packet& p : batch) EXPECT_THAT(p.text, Each(Eq(0)));
}

TEST_P(Aead, TakesAnEmptyBatch) {
  const auto k = key();
  k->seal({});
  k->open({});
}

// `good` is a result: what it was before must not show through.
TEST_P(Aead, SetsGoodBothWays) {
  const auto k = key();
  const Packet packet = plain(100, 3);
  Bytes wire(packet.wire_length());
  AeadOp op = packet.lay_out(wire.data());
  op.good = false;
  k->seal({&op, 1});
  EXPECT_TRUE(op.good);
  op.good = false;
  k->open({&op, 1});
  EXPECT_TRUE(op.good);
  if (info(suite()).mode == Mode::gmac || info(suite()).mode == Mode::hmac) return;
  k->open({&op, 1});  // it is plaintext by now
  EXPECT_FALSE(op.good);
}

// One key, directions in turn, as a key of OpenSSL that has only one context must bear.
TEST_P(Aead, BearsDirectionsInTurn) {
  const auto k = key();
  std::vector<bool> good;
  for (std::uint32_t i = 0; i < 50; ++i) {
    const Packet before = plain(std::size_t{i} * 31, i);
    Packet packet = before;
    seal(*k, {&packet, 1}, good);
    Packet forged = packet;
    damage(forged, i);
    open(*k, {&forged, 1}, good);
    ASSERT_FALSE(good[0]);
    open(*k, {&packet, 1}, good);
    ASSERT_TRUE(good[0]);
    ASSERT_EQ(packet.text, before.text);
  }
}

// T13: an ICV is compared to its last bit.
TEST_P(Aead, T13RefusesEveryFlippedBitOfTheIcv) {
  const auto k = key();
  std::vector<bool> good;
  for (const std::uint32_t seed : {6U, 7U}) {  // without and with ESN
    Packet whole = plain(200, seed);
    seal(*k, {&whole, 1}, good);
    std::vector<Packet> packets(whole.icv.size() * 8, whole);
    for (std::size_t bit = 0; bit < packets.size(); ++bit)
      packets[bit].icv[bit / 8] = static_cast<std::uint8_t>(whole.icv[bit / 8] ^ 1U << bit % 8);
    open(*k, packets, good);
    ASSERT_THAT(good, Each(false));
    for (const Packet& p : packets) ASSERT_THAT(p.text, Each(Eq(0)));
    open(*k, {&whole, 1}, good);
    ASSERT_TRUE(good[0]);
  }
}

class AeadOfCbc : public Aead {};

// The cipher is not asked for what is no whole number of blocks (RFC 3602 §2.4).
TEST_P(AeadOfCbc, RefusesPartOfABlock) {
  const auto k = key();
  for (const std::size_t length : {0U, 1U, 15U, 17U, 31U, 33U, 47U}) {
    SCOPED_TRACE(length);
    std::vector<Packet> packets(3, plain(64, 5));
    packets[1].text.resize(length);
    std::vector<bool> good;
    seal(*k, packets, good);
    EXPECT_THAT(good, ::testing::ElementsAre(true, false, true));
    open(*k, packets, good);
    EXPECT_THAT(good, ::testing::ElementsAre(true, false, true));
    EXPECT_THAT(packets[1].text, Each(Eq(0)));
    EXPECT_EQ(packets[0].text, plain(64, 5).text);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AeadOfCbc,
                         ::testing::ValuesIn(backend_cases([](const SuiteInfo& s) {
                           return s.mode == Mode::cbc_hmac;
                         })),
                         case_name);

class AeadBounds : public Aead {
 protected:
  static constexpr std::uint8_t kCanary = 0xC5;
  static constexpr std::size_t kStride = 2048;
  static constexpr std::size_t kRoom = 64;  // canaries before and behind, at least
  static constexpr std::size_t kOffsets = 64;

  // A batch of one packet at every offset, each in a field of its own.
  AeadBounds() : memory_(kOffsets * kStride + 64) {}

  [[nodiscard]] std::uint8_t* field(std::size_t i) {
    auto* base = memory_.data();
    base += (std::uintptr_t{0} - reinterpret_cast<std::uintptr_t>(base)) % 64;
    return base + i * kStride;
  }

  // As expected: canaries, header, IV, text, ICV, canaries.
  void check(const Packet& expected, const char* what) {
    Bytes field_expected(kStride, kCanary);
    for (std::size_t i = 0; i < kOffsets; ++i) {
      static_cast<void>(expected.lay_out(&field_expected[kRoom + i]));
      ASSERT_TRUE(std::equal(field_expected.begin(), field_expected.end(), field(i)))
          << what << " of " << expected.text.size() << " bytes, offset " << i;
      std::fill(field_expected.begin(), field_expected.end(), kCanary);
    }
  }

 private:
  Bytes memory_;
};

TEST_P(AeadBounds, V4WritesOnlyTextAndIcvAtAnyOffsetAndLength) {
  constexpr std::size_t kLongest = 1500;
  const auto k = key();
  std::vector<AeadOp> ops(kOffsets);
  for (std::size_t length = 0; length <= kLongest; ++length) {
    if (text_length(info(suite()), length) != length) continue;
    const Packet before = plain(length, static_cast<std::uint32_t>(length));
    Packet expected = before;
    std::vector<bool> good;
    seal(*k, {&expected, 1}, good);
    for (std::size_t i = 0; i < kOffsets; ++i) {
      std::fill_n(field(i), kStride, kCanary);
      ops[i] = before.lay_out(field(i) + kRoom + i);
    }
    k->seal(ops);
    check(expected, "seal");
    if (HasFatalFailure()) return;
    k->open(ops);
    ASSERT_TRUE(std::all_of(ops.begin(), ops.end(), [](const AeadOp& op) { return op.good; }));
    expected.text = before.text;
    check(expected, "open");
    if (HasFatalFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AeadBounds, ::testing::ValuesIn(representative_cases()),
                         case_name);

// Readable pages between two that no one may touch: vector code that reads too far dies here, in
// assembly that no sanitizer sees.
class Fenced {
 public:
  static constexpr std::size_t kPages = 3;

  Fenced()
      : base_(static_cast<std::uint8_t*>(
            mmap(nullptr, (kPages + 2) * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    EXPECT_EQ(mprotect(begin(), kPages * kPage, PROT_READ | PROT_WRITE), 0);
  }
  Fenced(const Fenced&) = delete;
  Fenced& operator=(const Fenced&) = delete;
  ~Fenced() { munmap(base_, (kPages + 2) * kPage); }

  [[nodiscard]] std::uint8_t* begin() const { return base_ + kPage; }
  [[nodiscard]] std::uint8_t* end() const { return begin() + kPages * kPage; }

 private:
  static constexpr std::size_t kPage = 4096;
  std::uint8_t* base_;
};

class AeadOfGcm : public Aead {};

TEST_P(AeadOfGcm, SealsWhatStandsElsewhere) {
  const auto k = key();
  const Fenced source;
  std::vector<std::size_t> lengths(600);
  std::iota(lengths.begin(), lengths.end(), 0U);
  lengths.insert(lengths.end(), {1404, 1420, 9000});
  for (const std::size_t length : lengths) {
    SCOPED_TRACE(::testing::Message() << length << " bytes");
    const Packet packet = plain(length, static_cast<std::uint32_t>(length));
    Packet expected = packet;
    std::vector<bool> good;
    seal(*k, {&expected, 1}, good);
    Bytes wire(packet.wire_length());
    AeadOp op = packet.lay_out(wire.data());
    std::fill_n(op.text, length, std::uint8_t{0xC5});
    op.from = std::copy(packet.text.begin(), packet.text.end(), source.end() - length) - length;
    k->seal({&op, 1});
    ASSERT_TRUE(op.good);
    ASSERT_TRUE(std::equal(expected.text.begin(), expected.text.end(), op.text));
    ASSERT_TRUE(std::equal(expected.icv.begin(), expected.icv.end(), op.icv));
    ASSERT_TRUE(std::equal(packet.text.begin(), packet.text.end(), op.from));
    k->open({&op, 1});  // in place, whatever it was sealed from
    ASSERT_TRUE(op.good);
    ASSERT_TRUE(std::equal(packet.text.begin(), packet.text.end(), op.text));
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, AeadOfGcm,
                         ::testing::ValuesIn(backend_cases([](const SuiteInfo& s) {
                           return s.mode == Mode::gcm;
                         })),
                         case_name);

TEST_P(AeadBounds, ReadsNothingBeyondItsOperands) {
  const auto k = key();
  const Fenced wire;
  const Fenced ops;
  auto* op = new (ops.end() - sizeof(AeadOp)) AeadOp{};
  std::vector<std::size_t> lengths(600);
  std::iota(lengths.begin(), lengths.end(), 0U);
  lengths.insert(lengths.end(), {1420, 1500, 4095, 4096, 9000, 12000});
  for (const std::size_t length : lengths) {
    for (const bool at_end : {false, true}) {
      SCOPED_TRACE(::testing::Message() << length << " bytes");
      const Packet packet = plain(length, static_cast<std::uint32_t>(length));
      *op = packet.lay_out(at_end ? wire.end() - packet.wire_length() : wire.begin());
      k->seal({op, 1});
      k->open({op, 1});
      ASSERT_TRUE(op->good);
      ASSERT_TRUE(std::equal(packet.text.begin(), packet.text.end(), op->text));
    }
  }
}

// An AEAD proper takes all it needs from the op: text and ICV may lie apart.
TEST_P(AeadBounds, TextAndIcvMayBeApart) {
  const SuiteInfo& s = info(suite());
  if (s.hash != Hash::none || s.mode == Mode::gmac) GTEST_SKIP() << "reads the packet as it lies";
  const auto k = key();
  const Fenced text;
  const Fenced icv;
  for (std::size_t length = 0; length <= 300; ++length) {
    for (const bool at_end : {false, true}) {
      const Packet packet = plain(length, static_cast<std::uint32_t>(length));
      Bytes wire(packet.wire_length());
      AeadOp op = packet.lay_out(wire.data());
      op.text = at_end ? text.end() - length : text.begin();
      op.icv = at_end ? icv.end() - s.icv : icv.begin();
      std::copy(packet.text.begin(), packet.text.end(), op.text);
      k->seal({&op, 1});
      k->open({&op, 1});
      ASSERT_TRUE(op.good);
      ASSERT_TRUE(std::equal(packet.text.begin(), packet.text.end(), op.text));
    }
  }
}

TEST_P(Aead, KeyOutlivesItsBackend) {
  auto own = make_backend(GetParam().backend);
  const auto k = own->expand(suite(), pseudo_random(info(suite()).keys(), 1));
  own.reset();
  std::vector<Packet> a = plain_batch(8);
  std::vector<Packet> b = a;
  std::vector<bool> good;
  seal(*k, a, good);
  seal(*key(1), b, good);
  for (std::size_t i = 0; i < a.size(); ++i) EXPECT_EQ(a[i].icv, b[i].icv);
}

TEST_P(Aead, KeyServesSeveralThreadsIfItSaysSo) {
  const auto k = key();
  if (!k->shareable()) {
    EXPECT_EQ(GetParam().backend, "openssl");
  }
  std::vector<Packet> expected = plain_batch(64);
  std::vector<bool> ignored;
  seal(*k, expected, ignored);

  const auto work = [&expected, this, &k] {
    const auto own = k->shareable() ? nullptr : key();
    const AeadKey& mine = k->shareable() ? *k : *own;
    int wrong = 0;
    for (int round = 0; round < 10; ++round) {
      std::vector<Packet> batch = plain_batch(64);
      std::vector<bool> good;
      seal(mine, batch, good);
      for (std::size_t i = 0; i < batch.size(); ++i)
        wrong += batch[i].icv != expected[i].icv || batch[i].text != expected[i].text;
      open(mine, batch, good);
      wrong += static_cast<int>(std::count(good.begin(), good.end(), false));
    }
    return wrong;
  };
  std::array<int, 3> wrong{};
  std::vector<std::thread> threads;
  threads.reserve(wrong.size());
  for (int& w : wrong) threads.emplace_back([&w, &work] { w = work(); });
  for (std::thread& t : threads) t.join();
  EXPECT_THAT(wrong, Each(0));
}

// Every other backend opens what this one seals.
TEST_P(Aead, AgreesWithTheOthers) {
  const Bytes key_bytes = pseudo_random(info(suite()).keys(), 9);
  const auto ours = backend().expand(suite(), key_bytes);
  std::vector<Packet> plain_ones = plain_batch(64);
  for (std::uint32_t length = 0; length <= 320; ++length)
    plain_ones.push_back(plain(length, length));
  // Around 48 blocks, where ipsec-mb's widest code begins, and up to the largest datagram.
  for (const std::uint32_t length : {767, 768, 769, 1420, 1535, 1536, 1537, 9000, 65000})
    plain_ones.push_back(plain(length, length));
  std::vector<Packet> whole = plain_ones;
  std::vector<bool> good;
  seal(*ours, whole, good);
  ASSERT_THAT(good, Each(true));

  int others = 0;
  for (const char* name : {"ipsec-mb", "openssl", "sodium"}) {
    const auto other = make_backend(name);
    if (name == GetParam().backend || !other || !other->supports(suite())) continue;
    SCOPED_TRACE(name);
    std::vector<Packet> batch = whole;
    open(*other->expand(suite(), key_bytes), batch, good);
    EXPECT_THAT(good, Each(true));
    for (std::size_t i = 0; i < batch.size(); ++i) ASSERT_EQ(batch[i].text, plain_ones[i].text);
    ++others;
  }
  if (others == 0) GTEST_SKIP() << "no second backend has this suite here";
}

TEST_P(Aead, RefusesKeysOfTheWrongLength) {
  for (std::size_t length = 0; length <= kMaxKeysBytes + 4; ++length) {
    if (length == info(suite()).keys()) continue;
    EXPECT_THROW(static_cast<void>(backend().expand(suite(), Bytes(length))), std::invalid_argument)
        << length;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Aead, ::testing::ValuesIn(all_backend_cases()), case_name);

TEST(SodiumBackend, RefusesSuitesThatItLacks) {
  const auto sodium = make_backend("sodium");
  if (!sodium) GTEST_SKIP() << why_missing("sodium");
  EXPECT_FALSE(sodium->supports(Suite::aes_gcm128));
  EXPECT_FALSE(sodium->supports(Suite::aes256_sha256));
  EXPECT_THROW(static_cast<void>(sodium->expand(Suite::aes_gcm128, Bytes(16))),
               std::invalid_argument);
}

}  // namespace
}  // namespace espalier::crypto::testing
