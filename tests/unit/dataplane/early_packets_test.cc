// What comes under an SPI that has no keys yet.
#include "dataplane/early_packets.h"

#include <gtest/gtest.h>

#include <deque>

#include "dataplane/inbound.h"
#include "tests/fuzz/recording_engine.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace espalier::dataplane {
namespace {

constexpr std::int64_t kNow = 1'000'000'000;

// ------------------------------------------------------------------------------------ the queue

class Queue : public testing::Test {
 protected:
  bool hold(std::uint32_t spi, std::uint32_t number) {
    Bytes packet(16);
    store_be(packet.data(), spi);
    store_be(packet.data() + 4, number);
    return early.hold({spi, {}}, packet, Encapsulation::udp, 0, {}, kNow);
  }
  EarlyPackets::Line& line(std::uint32_t spi) {
    for (EarlyPackets::Line& l : early.lines())
      if (l.count > 0 && l.key.spi == spi) return l;
    ADD_FAILURE() << "no line of " << spi;
    return early.lines().front();
  }
  std::uint32_t take(std::uint32_t spi) {
    const EarlyPackets::Held& held = early.take(line(spi));
    const std::uint8_t* bytes = early.bytes(held);
    EXPECT_EQ(load_be<std::uint32_t>(bytes), spi);
    return load_be<std::uint32_t>(bytes + 4);
  }

  EarlyPackets early;
};

TEST_F(Queue, GivesBackInOrder) {
  EXPECT_TRUE(early.empty());
  for (std::uint32_t n = 0; n < 3; ++n) {
    EXPECT_TRUE(hold(7, n));
    EXPECT_TRUE(hold(8, n + 10));
  }
  for (std::uint32_t n = 0; n < 3; ++n) {
    EXPECT_EQ(take(7), n);
    EXPECT_EQ(take(8), n + 10);
  }
  EXPECT_FALSE(early.empty()) << "their bytes are in use";
  early.retire();
  EXPECT_TRUE(early.empty());
}

TEST_F(Queue, AnSpiHasItsShare) {
  for (std::uint32_t n = 0; n < EarlyPackets::kOfOne; ++n) EXPECT_TRUE(hold(7, n));
  EXPECT_FALSE(hold(7, EarlyPackets::kOfOne));
  EXPECT_EQ(line(7).count, EarlyPackets::kOfOne);
  EXPECT_EQ(take(7), 1U) << "the oldest made room";
}

TEST_F(Queue, WhoHasTheMostMakesRoom) {
  EXPECT_TRUE(hold(9, 42));
  for (std::uint32_t n = 0; n < EarlyPackets::kOfOne; ++n) EXPECT_TRUE(hold(7, n));
  for (std::uint32_t n = 0; n < EarlyPackets::kOfOne - 1; ++n) EXPECT_TRUE(hold(8, n));
  for (std::uint32_t n = 0; n < 3; ++n) EXPECT_FALSE(hold(10, n));
  EXPECT_EQ(line(10).count, 3U);
  EXPECT_EQ(line(7).count + line(8).count, EarlyPackets::kPackets - 4);
  EXPECT_EQ(take(9), 42U);
  EXPECT_EQ(early.forget(line(7)) + early.forget(line(8)), EarlyPackets::kPackets - 4);
}

TEST_F(Queue, NoneIsTakenFromThoseThatLeave) {
  for (std::uint32_t n = 0; n < EarlyPackets::kOfOne; ++n) EXPECT_TRUE(hold(7, n) && hold(8, n));
  for (std::uint32_t n = 0; n < EarlyPackets::kOfOne; ++n) EXPECT_EQ(take(7) + take(8), 2 * n);
  EXPECT_FALSE(hold(9, 1));
  early.retire();
  EXPECT_TRUE(hold(9, 1));
  EXPECT_EQ(take(9), 1U);
}

TEST_F(Queue, BoundsOfSpisAndLengths) {
  for (std::uint32_t spi = 0; spi < EarlyPackets::kSpis; ++spi) EXPECT_TRUE(hold(300 + spi, 1));
  EXPECT_FALSE(hold(299, 1));
  EXPECT_TRUE(hold(300, 2));
  EXPECT_EQ(early.forget(line(300)), 2U);
  EXPECT_TRUE(hold(299, 1));
  for (const std::size_t longer : {0, 1})
    EXPECT_EQ(early.hold({299, {}}, Bytes(EarlyPackets::kBytes + longer), Encapsulation::udp, 0, {},
                         kNow),
              longer == 0);
}

TEST_F(Queue, SlotsAreUsedAgain) {
  for (std::uint32_t n = 0; n < 5 * EarlyPackets::kPackets; ++n) {
    EXPECT_TRUE(hold(7, n));
    EXPECT_EQ(take(7), n);
    if (n % 3 == 0) early.retire();
  }
}

// ------------------------------------------------------------------------------------ the way in

class EarlyWayIn : public testing::Test {
 protected:
  EarlyWayIn() {
    socket.local = {*ifaces::IpAddress::parse("192.0.2.1"), 4500};
    socket.local_words = words(socket.local.address);
    socket.encapsulation = Encapsulation::udp;
    pair.in.socket = &socket;
    pair.in.set_local(socket.local.address);
    pair.device.counters = std::make_unique<DeviceCounters[]>(1);
    pair.device.ports = {0};
    key = SadTraits::key(pair.in);
    sad.larval.insert(&key);
  }

  // A turn that receives these.
  void turn(const std::vector<Bytes>& packets, std::int64_t now_ns = kNow) {
    std::vector<Bytes> copies = packets;
    inbound.begin_turn(now_ns);
    for (Bytes& bytes : copies) add(bytes);
    inbound.end_turn();
  }
  void add(Bytes& bytes) {
    ifaces::Received& received = receives.emplace_back();
    received.kind = ifaces::PortKind::udp;
    received.len = static_cast<std::uint32_t>(bytes.size());
    received.data = bytes.data();
    received.peer = pair.sender;
    inbound.add(socket, received);
  }
  // Its keys come, as UPDSA has them: the SA first.
  void key_it() {
    sad.insert(&pair.in);
    sad.larval.erase(key);
  }
  std::size_t written() const {
    std::size_t packets = 0;
    for (const auto& w : engine.written) packets += w.packets;
    return packets;
  }
  std::uint64_t drops(Drop reason) const {
    return counters.drops[static_cast<std::size_t>(reason)].load();
  }
  std::uint64_t all_drops() const {
    std::uint64_t sum = 0;
    for (const auto& n : counters.drops) sum += n.load();
    return sum;
  }

  SaPair pair;
  OuterSocket socket;
  SadKey key;
  std::deque<ifaces::Received> receives;
  Sad sad;
  WorkerCounters counters;
  EventQueue events{-1};
  fuzz::RecordingEngine engine;
  Inbound inbound{0, engine, sad, counters, events, {false, false, false}};
};

TEST_F(EarlyWayIn, ComesInWhenTheKeysDo) {
  std::vector<Bytes> packets;
  for (std::uint64_t seq = 1; seq <= 100; ++seq) packets.push_back(pair.seal(seq, inner_v4(60)));
  turn(packets);
  EXPECT_EQ(written(), 0U);
  key_it();
  turn({pair.seal(101, inner_v4(61))});
  EXPECT_EQ(written(), 101U);
  EXPECT_EQ(engine.written.back().bytes.size(), sizeof(ifaces::VnetHdr) + 61)
      << "before what comes now";
  EXPECT_EQ(pair.in.counters.packets.load(), 101U);
  EXPECT_EQ(all_drops(), 0U);
}

// The window of strongSwan's default is smaller than what waits.
TEST_F(EarlyWayIn, KeysInTheMiddleOfATurn) {
  const auto small = std::make_unique<SaPair>(true, crypto::Suite::aes_gcm128, 32);
  small->in.socket = &socket;
  small->in.set_local(socket.local.address);
  small->device.counters = std::make_unique<DeviceCounters[]>(1);
  small->device.ports = {0};
  const auto sealed = [&](std::uint64_t seq) { return small->seal(seq, inner_v4(20 + seq)); };
  std::vector<Bytes> packets;
  for (std::uint64_t seq = 1; seq <= 100; ++seq) packets.push_back(sealed(seq));
  turn(packets);
  packets = {sealed(101), sealed(102), sealed(103)};
  inbound.begin_turn(kNow);
  add(packets[0]);  // waits as well
  sad.insert(&small->in);
  sad.larval.erase(key);
  add(packets[1]);
  add(packets[2]);
  inbound.end_turn();
  ASSERT_EQ(written(), 103U);
  for (std::size_t i = 0; i < 103; ++i)
    EXPECT_EQ(engine.written[i].bytes.size(), sizeof(ifaces::VnetHdr) + 21 + i) << "in order";
  EXPECT_EQ(all_drops(), 0U);
  sad.erase(key);  // before the SA goes
}

// A whole number of batches waits: the packet behind them starts another.
TEST_F(EarlyWayIn, BatchesAreFull) {
  std::vector<Bytes> packets;
  for (std::uint64_t seq = 1; seq <= 2 * kDecapBatch; ++seq)
    packets.push_back(pair.seal(seq, inner_v4(60)));
  turn(packets);
  packets = {pair.seal(2 * kDecapBatch + 1, inner_v4(60))};
  inbound.begin_turn(kNow);
  key_it();
  add(packets[0]);
  inbound.end_turn();
  EXPECT_EQ(written(), 2 * kDecapBatch + 1);
  EXPECT_EQ(all_drops(), 0U);
}

// Nothing is believed because it has waited.
TEST_F(EarlyWayIn, HeldToTheSameChecks) {
  Bytes forged = pair.seal(2, inner_v4(60));
  forged.back() ^= 1;
  const Bytes good = pair.seal(1, inner_v4(60));
  Bytes foreign = inner_v4(60);
  foreign[12] = 11;  // the source
  turn({good, good, forged, pair.seal(3, foreign)});
  key_it();
  turn({});
  EXPECT_EQ(written(), 1U);
  EXPECT_EQ(drops(Drop::duplicate), 1U);
  EXPECT_EQ(drops(Drop::integrity), 1U);
  EXPECT_EQ(drops(Drop::selector_mismatch), 1U);
  EXPECT_EQ(all_drops(), 3U);
}

TEST_F(EarlyWayIn, OfAnotherEncapsulation) {
  turn({pair.seal(1, inner_v4(60))});
  pair.in.encapsulation = Encapsulation::esp;
  key_it();
  turn({});
  EXPECT_EQ(drops(Drop::wrong_encapsulation), 1U);
}

TEST_F(EarlyWayIn, GoneWithItsSpi) {
  turn({pair.seal(1, inner_v4(60)), pair.seal(2, inner_v4(60))});
  sad.larval.erase(key);
  turn({});
  EXPECT_EQ(drops(Drop::not_keyed), 2U);
  sad.insert(&pair.in);
  turn({});
  EXPECT_EQ(written(), 0U);
}

// Each as long as the others, not as long as the first that has waited.
TEST_F(EarlyWayIn, NotForLong) {
  turn({pair.seal(1, inner_v4(60))});
  turn({pair.seal(2, inner_v4(60))}, kNow + EarlyPackets::kPatienceNs);
  EXPECT_EQ(drops(Drop::not_keyed), 0U);
  turn({}, kNow + EarlyPackets::kPatienceNs + 1);
  EXPECT_EQ(drops(Drop::not_keyed), 1U);
  turn({}, kNow + 2 * EarlyPackets::kPatienceNs);
  EXPECT_EQ(drops(Drop::not_keyed), 1U);
  turn({}, kNow + 2 * EarlyPackets::kPatienceNs + 1);
  EXPECT_EQ(drops(Drop::not_keyed), 2U);
  EXPECT_EQ(written(), 0U);
}

// A worker that had nothing to do meanwhile has not seen that its keys came in time.
TEST_F(EarlyWayIn, KeysBeforeExpiry) {
  turn({pair.seal(1, inner_v4(60))});
  key_it();
  turn({}, kNow + EarlyPackets::kPatienceNs + 1);
  EXPECT_EQ(written(), 1U);
  EXPECT_EQ(all_drops(), 0U);
}

TEST_F(EarlyWayIn, TooMany) {
  const Bytes packet = pair.seal(1, inner_v4(60));
  turn(std::vector<Bytes>(EarlyPackets::kOfOne + 5, packet));
  EXPECT_EQ(drops(Drop::not_keyed), 5U);
}

TEST_F(EarlyWayIn, AnSpiThatNobodyGaveOutDoesNotWait) {
  sad.larval.erase(key);
  turn({pair.seal(1, inner_v4(60))});
  EXPECT_EQ(drops(Drop::no_spi), 1U);
}

}  // namespace
}  // namespace espalier::dataplane
