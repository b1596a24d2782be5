// What AeadKey promises, on every backend: batches, alignment, bounds, threads, agreement.
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
    return backend().expand(suite(), pseudo_random(info(suite()).key, seed));
  }
};

Packet plain_packet(std::size_t length, std::uint32_t seed) {
  return {pseudo_random(length, seed), Bytes(16), pseudo_random(12, seed + 1),
          pseudo_random(seed % 2 == 0 ? 8 : 12, seed + 2)};
}

// Packets of all sorts of lengths, empty and short ones among them.
std::vector<Packet> plain_batch(std::size_t size) {
  std::vector<Packet> batch;
  for (std::size_t i = 0; i < size; ++i)
    batch.push_back(plain_packet(i * i * 7 % 1501, static_cast<std::uint32_t>(i)));
  return batch;
}

void damage(Packet& packet, std::size_t how) {
  switch (packet.text.empty() ? how % 3 : how % 4) {
    case 0:
      packet.icv[how % 16] ^= 0x10;
      break;
    case 1:
      packet.aad.back() ^= 0x01;
      break;
    case 2:
      packet.nonce[how % 12] ^= 0x80;
      break;
    case 3:
      packet.text[how % packet.text.size()] ^= 0x04;
      break;
  }
}

TEST_P(Aead, RefusesTheOneBadPacketOfABatchWhereverItIs) {
  const auto k = key();
  for (const std::size_t size : {1U, 2U, 7U, 8U, 63U, 64U}) {
    const std::vector<Packet> plain = plain_batch(size);
    std::vector<Packet> whole = plain;
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
          ASSERT_EQ(batch[i].text, plain[i].text) << "packet " << i;
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
  Packet packet = plain_packet(100, 3);
  AeadOp op = packet.op();
  op.good = false;
  k->seal({&op, 1});
  EXPECT_TRUE(op.good);
  op.good = false;
  k->open({&op, 1});
  EXPECT_TRUE(op.good);
  k->open({&op, 1});  // it is plaintext by now
  EXPECT_FALSE(op.good);
}

// One key, directions in turn, as a key of OpenSSL that has only one context must bear.
TEST_P(Aead, BearsDirectionsInTurn) {
  const auto k = key();
  std::vector<bool> good;
  for (std::uint32_t i = 0; i < 50; ++i) {
    const Packet plain = plain_packet(std::size_t{i} * 31, i);
    Packet packet = plain;
    seal(*k, {&packet, 1}, good);
    Packet forged = packet;
    damage(forged, i);
    open(*k, {&forged, 1}, good);
    ASSERT_FALSE(good[0]);
    open(*k, {&packet, 1}, good);
    ASSERT_TRUE(good[0]);
    ASSERT_EQ(packet.text, plain.text);
  }
}

TEST_P(Aead, WritesOnlyTextAndIcvAtAnyAlignmentAndLength) {
  constexpr std::size_t kRoom = 64;  // canaries before and behind
  constexpr std::size_t kLongest = 1500;
  constexpr std::uint8_t kCanary = 0xC5;
  const auto k = key();
  alignas(64) std::array<std::uint8_t, kRoom + 64 + kLongest + 16 + kRoom> memory{};
  const auto canaries_hold = [&memory](std::size_t begin, std::size_t end) {
    const auto is_canary = [](std::uint8_t b) { return b == kCanary; };
    return std::all_of(memory.begin(), memory.begin() + static_cast<std::ptrdiff_t>(begin),
                       is_canary) &&
           std::all_of(memory.begin() + static_cast<std::ptrdiff_t>(end), memory.end(), is_canary);
  };

  for (std::size_t length = 0; length <= kLongest; ++length) {
    const Packet plain = plain_packet(length, static_cast<std::uint32_t>(length));
    Packet expected = plain;
    std::vector<bool> good;
    seal(*k, {&expected, 1}, good);
    for (std::size_t shift = 0; shift < 64; ++shift) {
      const std::size_t begin = kRoom + shift;
      const std::size_t end = begin + length + 16;
      memory.fill(kCanary);
      std::copy(plain.text.begin(), plain.text.end(), &memory[begin]);
      Packet packet = plain;
      AeadOp op = packet.op();
      op.text = &memory[begin];
      op.icv = &memory[begin + length];
      k->seal({&op, 1});
      ASSERT_TRUE(std::equal(expected.text.begin(), expected.text.end(), op.text) &&
                  std::equal(expected.icv.begin(), expected.icv.end(), op.icv))
          << "seal of " << length << " bytes, shifted by " << shift;
      ASSERT_TRUE(canaries_hold(begin, end)) << "seal, " << length << " bytes at " << shift;
      k->open({&op, 1});
      ASSERT_TRUE(op.good && std::equal(plain.text.begin(), plain.text.end(), op.text))
          << "open of " << length << " bytes, shifted by " << shift;
      ASSERT_TRUE(std::equal(expected.icv.begin(), expected.icv.end(), op.icv));
      ASSERT_TRUE(canaries_hold(begin, end)) << "open, " << length << " bytes at " << shift;
    }
  }
}

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

TEST_P(Aead, ReadsNothingBeyondItsOperands) {
  const auto k = key();
  const Fenced text;
  const Fenced icv;
  const Fenced ops;
  auto* op = new (ops.end() - sizeof(AeadOp)) AeadOp{};
  std::vector<std::size_t> lengths(600);
  std::iota(lengths.begin(), lengths.end(), 0U);
  lengths.insert(lengths.end(), {1420, 1500, 4095, 4096, 9000, 12288});
  for (const std::size_t length : lengths) {
    for (const bool at_end : {false, true}) {
      SCOPED_TRACE(::testing::Message() << length << " bytes");
      Packet packet = plain_packet(length, static_cast<std::uint32_t>(length));
      *op = packet.op();
      op->text = at_end ? text.end() - length : text.begin();
      op->icv = at_end ? icv.end() - 16 : icv.begin();
      std::copy(packet.text.begin(), packet.text.end(), op->text);
      k->seal({op, 1});
      k->open({op, 1});
      ASSERT_TRUE(op->good);
      ASSERT_TRUE(std::equal(packet.text.begin(), packet.text.end(), op->text));
    }
  }
}

TEST_P(Aead, KeyOutlivesItsBackend) {
  auto own = make_backend(GetParam().backend);
  const auto k = own->expand(suite(), pseudo_random(info(suite()).key, 1));
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
    for (int round = 0; round < 50; ++round) {
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
  const Bytes key_bytes = pseudo_random(info(suite()).key, 9);
  const auto ours = backend().expand(suite(), key_bytes);
  std::vector<Packet> plain = plain_batch(64);
  for (std::uint32_t length = 0; length <= 320; ++length)
    plain.push_back(plain_packet(length, length));
  // Around 48 blocks, where ipsec-mb's widest code begins, and up to the largest datagram.
  for (const std::uint32_t length : {767, 768, 769, 1420, 1535, 1536, 1537, 9000, 65507})
    plain.push_back(plain_packet(length, length));
  std::vector<Packet> whole = plain;
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
    for (std::size_t i = 0; i < batch.size(); ++i) ASSERT_EQ(batch[i].text, plain[i].text);
    ++others;
  }
  if (others == 0) GTEST_SKIP() << "no second backend has this suite here";
}

TEST_P(Aead, RefusesKeysOfTheWrongLength) {
  for (std::size_t length = 0; length <= kMaxKeyBytes + 4; ++length) {
    if (length == info(suite()).key) continue;
    EXPECT_THROW(static_cast<void>(backend().expand(suite(), Bytes(length))), std::invalid_argument)
        << length;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Aead, ::testing::ValuesIn(kBackendCases), case_name);

TEST(SodiumBackend, RefusesSuitesThatItLacks) {
  const auto sodium = make_backend("sodium");
  if (!sodium) GTEST_SKIP() << why_missing("sodium");
  EXPECT_FALSE(sodium->supports(Suite::aes_gcm128));
  EXPECT_THROW(static_cast<void>(sodium->expand(Suite::aes_gcm128, Bytes(16))),
               std::invalid_argument);
}

}  // namespace
}  // namespace espalier::crypto::testing
