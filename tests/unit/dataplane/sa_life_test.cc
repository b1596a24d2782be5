// The life of an SA, from add to expiry, with packets through real devices and sockets.
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <thread>

#include "tests/unit/dataplane/two_sites.h"

namespace espalier::test {
namespace {

SaUpdate limit(Limit Lifetime::*which, Limit value) {
  SaUpdate update;
  update.lifetime.emplace();
  (*update.lifetime).*which = value;
  return update;
}

SaUpdate window(std::uint32_t bits) {
  SaUpdate update;
  update.window_bits = bits;
  return update;
}

SaUpdate peer_at(const ifaces::Endpoint& peer) {
  SaUpdate update;
  update.peer = peer;
  return update;
}

class SaLife : public SandboxTest {
 protected:
  void SetUp() override {
    SandboxTest::SetUp();
    if (IsSkipped()) return;
    crypto::initialise();
    registry.emplace("auto");
    sites.emplace(*registry);
    sites->add_policies();
  }
  void TearDown() override {
    sites.reset();
    SandboxTest::TearDown();
  }
  // An SA from A to B; returns A's and B's.
  std::pair<SaId, SaId> add(
      std::uint32_t spi, std::uint8_t key,
      const std::function<void(SaSpec&)>& change = [](SaSpec&) {}) {
    SaSpec in = TwoSites::sa(Direction::in, spi, key);
    SaSpec out = TwoSites::sa(Direction::out, spi, key);
    change(in);
    change(out);
    const SaId b = sites->b.add_sa(std::move(in));
    return {sites->a.add_sa(std::move(out)), b};
  }
  std::string refusal(SaSpec spec) {
    try {
      sites->a.add_sa(std::move(spec));
    } catch (const std::invalid_argument& e) {
      return e.what();
    }
    return "";
  }

  std::optional<crypto::Registry> registry;
  std::optional<TwoSites> sites;
};

// L1: the peer sends under an SA whose keys are not here yet; several workers see its packets.
TEST_F(SaLife, L1PacketsBeforeTheKeys) {
  sites.reset();
  sites.emplace(*registry, 2);
  sites->add_policies();
  constexpr std::uint32_t kRekeys = 30;
  constexpr std::size_t kEach = 40;
  std::pair<SaId, SaId> old = add(0x200, 1);
  for (std::uint32_t n = 1; n <= kRekeys; ++n) {
    const std::uint32_t spi = 0x200 + n;
    const auto key = static_cast<std::uint8_t>(n + 1);
    sites->b.expect_sa(Spi{spi}, ip("127.0.0.2"));
    const SaId a = sites->a.add_sa(TwoSites::sa(Direction::out, spi, key));
    sites->send(kEach);
    if (n % 2 == 0) {
      ASSERT_EQ(sites->arrived_by_now(), 0U);
    }
    const SaId b = sites->b.add_sa(TwoSites::sa(Direction::in, spi, key));
    sites->b.expect_no_more(Spi{spi}, ip("127.0.0.2"));
    ASSERT_EQ(sites->arrived(kEach), kEach) << n;
    sites->a.remove_sa(old.first);
    sites->b.remove_sa(old.second);
    old = {a, b};
  }
  for (const Drop reason : {Drop::no_spi, Drop::not_keyed, Drop::integrity, Drop::duplicate})
    EXPECT_EQ(TwoSites::drops(sites->b, reason), 0U) << static_cast<unsigned>(reason);
}

TEST_F(SaLife, A16HardLimitOfPacketsOut) {
  const SaId id = add(0x100, 1).first;
  sites->a.update_sa(id, limit(&Lifetime::packets, {5, 10}));
  sites->send(4);
  ASSERT_EQ(sites->arrived(4), 4U);
  EXPECT_TRUE(sites->a.take_events().empty());
  sites->send(2);
  const Event soft = TwoSites::event(sites->a, EventKind::soft_expire);
  EXPECT_EQ(soft.sa, id);
  EXPECT_EQ(soft.direction, Direction::out);
  EXPECT_EQ(soft.spi, Spi{0x100});
  sites->send(20);
  EXPECT_EQ(TwoSites::event(sites->a, EventKind::hard_expire).sa, id);
  EXPECT_EQ(sites->arrived_by_now(), 6U);  // ten in all, not one more
  const SaStatus status = *sites->a.sa(id);
  EXPECT_TRUE(status.expired);
  EXPECT_EQ(status.traffic.packets, 10U);
  EXPECT_EQ(status.drops[static_cast<std::size_t>(Drop::expired)], 16U);
  EXPECT_EQ(TwoSites::drops(sites->a, Drop::expired), 16U);
  EXPECT_THROW(sites->a.update_sa(id, limit(&Lifetime::packets, {})), std::invalid_argument);
  sites->a.extend_limit(id, 1000);  // does not bring it back
  sites->send(1);
  EXPECT_EQ(sites->arrived_by_now(), 0U);
}

// Three workers send under one SA when it ends: together not one packet more.
TEST_F(SaLife, A16HardLimitOfPacketsOverWorkers) {
  sites.reset();
  sites.emplace(*registry, 3);
  sites->add_policies();
  constexpr std::uint64_t kLimit = 700;
  for (std::uint32_t round = 1; round <= 20; ++round) {
    const auto [out, in] = add(0x200 + round, static_cast<std::uint8_t>(round));
    sites->a.update_sa(out, limit(&Lifetime::packets, {0, kLimit}));
    std::atomic<bool> stop{false};
    std::vector<std::thread> senders;
    for (unsigned t = 0; t < 2; ++t)
      senders.emplace_back([&, t] {
        for (unsigned i = 0; !stop; ++i)
          sites->send(1, 60, static_cast<std::uint8_t>(1 + 100 * t + i % 100));
      });
    EXPECT_EQ(TwoSites::event(sites->a, EventKind::hard_expire).sa, out);
    stop = true;
    for (std::thread& sender : senders) sender.join();
    TwoSites::settle(sites->a);
    EXPECT_EQ(sites->a.sa(out)->traffic.packets, kLimit);
    sites->a.remove_sa(out);
    sites->b.remove_sa(in);
  }
}

TEST_F(SaLife, A16HardLimitOfPacketsIn) {
  const SaId id = add(0x100, 1).second;
  sites->b.update_sa(id, limit(&Lifetime::packets, {0, 10}));
  sites->send(30);
  EXPECT_EQ(sites->arrived_by_now(), 10U);
  EXPECT_EQ(TwoSites::event(sites->b, EventKind::hard_expire).direction, Direction::in);
  EXPECT_EQ(TwoSites::drops(sites->b, Drop::expired), 20U);
  EXPECT_TRUE(sites->b.sa(id)->expired);
}

// A packet that begins below the limit passes, the next one does not.
TEST_F(SaLife, A16HardLimitOfBytes) {
  const auto [out, in] = add(0x100, 1);
  sites->a.update_sa(out, limit(&Lifetime::bytes, {300, 550}));
  sites->send(20, 100);
  EXPECT_EQ(sites->arrived_by_now(), 6U);
  TwoSites::event(sites->a, EventKind::hard_expire);
  EXPECT_EQ(sites->a.sa(out)->traffic.bytes, 600U);
  EXPECT_FALSE(sites->b.sa(in)->expired);
}

// A queue that nobody empties is full at some time; an SA that ends then is told of all the same.
TEST_F(SaLife, ExpiriesThatFindNoRoomAreTold) {
  const SaId out = add(0x100, 1).first;
  constexpr std::uint64_t kRounds = EventQueue::kSlots + 10;
  for (std::uint64_t i = 1; i <= kRounds; ++i) {
    sites->a.update_sa(out, limit(&Lifetime::packets, {i, 0}));
    sites->send(1);
    ASSERT_EQ(sites->arrived(1), 1U);
  }
  sites->a.update_sa(out, limit(&Lifetime::packets, {0, kRounds + 1}));
  sites->send(1);
  ASSERT_EQ(sites->arrived(1), 1U);
  TwoSites::settle(sites->a);
  std::map<EventKind, std::uint64_t> told;
  for (const Event& event : sites->a.take_events())
    if (event.sa == out) ++told[event.kind];
  EXPECT_EQ(told[EventKind::soft_expire], EventQueue::kSlots + 1);  // ten of them as one
  EXPECT_EQ(told[EventKind::hard_expire], 1U);
  EXPECT_EQ(sites->a.events_lost(), 0U);
  EXPECT_TRUE(sites->a.take_events().empty());
}

TEST_F(SaLife, LimitsOfTime) {
  const auto [out, in] = add(0x100, 1);
  EXPECT_FALSE(sites->a.next_expiry());
  sites->a.update_sa(out, limit(&Lifetime::seconds, {100, 200}));
  const auto added = sites->a.sa(out)->added;
  EXPECT_EQ(*sites->a.next_expiry(), added + std::chrono::seconds(100));
  sites->a.update_sa(out, limit(&Lifetime::seconds, {0, 1}));
  EXPECT_EQ(*sites->a.next_expiry(), added + std::chrono::seconds(1));
  sites->send(3);
  EXPECT_EQ(sites->arrived(3), 3U);
  const Event hard = TwoSites::event(sites->a, EventKind::hard_expire);
  EXPECT_GE(hard.when, added + std::chrono::seconds(1));
  EXPECT_FALSE(sites->a.next_expiry());
  sites->send(3);
  EXPECT_EQ(sites->arrived_by_now(), 0U);
  EXPECT_EQ(TwoSites::drops(sites->a, Drop::expired), 3U);
}

TEST_F(SaLife, AnSaThatIsGoneIsNotDue) {
  const SaId id = add(0x100, 1).first;
  sites->a.update_sa(id, limit(&Lifetime::seconds, {1, 2}));
  sites->a.remove_sa(id);
  EXPECT_FALSE(sites->a.next_expiry());
  EXPECT_TRUE(sites->a.take_events().empty());
}

// 4303-1: without ESN the numbers end at 2^32-1, with a soft event well before; with ESN they go
// on.
TEST_F(SaLife, A12NumbersEndWithAnEvent) {
  const SaId id = add(0x100, 1, [](SaSpec& spec) {
                    spec.esn = false;
                    spec.next_seq = 0xfffffffe;
                  }).first;
  sites->send(1);
  EXPECT_EQ(TwoSites::event(sites->a, EventKind::soft_expire).sa, id);
  sites->send(5);
  const Event event = TwoSites::event(sites->a, EventKind::seq_exhausted);
  EXPECT_EQ(event.sa, id);
  EXPECT_EQ(event.seq, 0xffffffffU);
  EXPECT_EQ(sites->arrived_by_now(), 2U);
  EXPECT_EQ(TwoSites::drops(sites->a, Drop::seq_exhausted), 4U);
}

// RFC 4303 §2.6: authentic, and forgotten without an error.
TEST_F(SaLife, DummiesAreSentAndForgotten) {
  std::uint32_t spi = 0x100;
  for (const crypto::Suite suite : {crypto::Suite::aes_gcm256, crypto::Suite::aes128_sha256}) {
    ++spi;
    const auto [out, in] = add(spi, static_cast<std::uint8_t>(spi), [&](SaSpec& spec) {
      spec.suite = suite;
      spec.keymat = crypto::SecretBytes(crypto::info(suite).keymat());
      spec.keymat.bytes()[0] = static_cast<std::uint8_t>(spi);
    });
    sites->a.send_dummies(out, 5, 100);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (sites->b.sa(in)->seq < 5 && std::chrono::steady_clock::now() < deadline)
      TwoSites::settle(sites->b);
    EXPECT_EQ(sites->b.sa(in)->seq, 5U);
    EXPECT_EQ(sites->b.sa(in)->traffic.packets, 0U);
    EXPECT_EQ(sites->arrived_by_now(), 0U);
    sites->a.remove_sa(out);
    sites->b.remove_sa(in);
  }
  for (const Drop reason : {Drop::bad_next_header, Drop::bad_padding, Drop::integrity,
                            Drop::duplicate, Drop::too_short, Drop::bad_inner_length})
    EXPECT_EQ(TwoSites::drops(sites->b, reason), 0U);
}

// What two gateways of one reqid know of their peers is not the same thing.
TEST_F(SaLife, L7OneReqidTwoGateways) {
  SaSpec first = TwoSites::sa(Direction::out, 0x100, 1);
  SaSpec second = TwoSites::sa(Direction::out, 0x101, 2);
  second.peer.address = *ifaces::IpAddress::parse("127.0.0.3");
  SaSpec back = TwoSites::sa(Direction::in, 0x102, 3);
  back.local = TwoSites::sa(Direction::out, 0x102, 3).local;
  back.peer = second.peer;
  const ifaces::Endpoint wanted = second.peer;
  const SaId one = sites->a.add_sa(std::move(first));
  const SaId two = sites->a.add_sa(std::move(second));
  const SaId in = sites->a.add_sa(std::move(back));
  EXPECT_EQ(sites->a.sa(one)->peer.address, *ifaces::IpAddress::parse("127.0.0.2"));
  EXPECT_EQ(sites->a.sa(two)->peer, wanted);
  // The two directions of one peer move together, and the other stays.
  SaUpdate update;
  update.peer = ifaces::Endpoint{*ifaces::IpAddress::parse("127.0.0.4"), 4501};
  sites->a.update_sa(two, update);
  EXPECT_EQ(sites->a.sa(in)->peer, *update.peer);
  EXPECT_EQ(sites->a.sa(one)->peer.address, *ifaces::IpAddress::parse("127.0.0.2"));
}

TEST_F(SaLife, A12EsnGoesOn) {
  add(0x100, 1, [](SaSpec& spec) { spec.next_seq = 0xfffffffe; });
  sites->send(6);
  EXPECT_EQ(sites->arrived(6), 6U);
}

TEST_F(SaLife, A15EsnNeedsAWindow) {
  SaSpec spec = TwoSites::sa(Direction::in, 0x100, 1);
  spec.window_bits = 0;
  EXPECT_NE(refusal(std::move(spec)).find("extended sequence numbers need a replay window"),
            std::string::npos);
  const auto [out, in] = add(0x100, 1);
  EXPECT_THROW(sites->b.update_sa(in, window(0)), std::invalid_argument);
  EXPECT_THROW(sites->a.update_sa(out, window(64)), std::invalid_argument);
  for (const std::uint32_t bits : {1U, 31U, 65537U, 0x80000000U, ~0U}) {  // T29
    EXPECT_THROW(sites->b.update_sa(in, window(bits)), std::invalid_argument) << bits;
    SaSpec wrong = TwoSites::sa(Direction::in, 0x101, 2);
    wrong.window_bits = bits;
    EXPECT_NE(refusal(std::move(wrong)).find("32 to 65536"), std::string::npos) << bits;
  }
  EXPECT_EQ(sites->b.sa(in)->window_bits, 4096U);
}

TEST_F(SaLife, WindowsAreResizedLive) {
  const SaId in = add(0x100, 1).second;
  for (const std::uint32_t bits : {32U, 65536U, 64U, 4096U}) {
    sites->send(50);
    EXPECT_EQ(sites->arrived(50), 50U);
    sites->b.update_sa(in, window(bits));
    EXPECT_EQ(sites->b.sa(in)->window_bits, bits);
    TwoSites::settle(sites->b);  // a run is counted after its packets are written
    EXPECT_EQ(sites->b.sa(in)->seq, sites->b.sa(in)->traffic.packets);
  }
}

TEST_F(SaLife, L4SpisAreUniqueAndNotReserved) {
  const SaId in = add(0x100, 1).second;
  SaSpec again = TwoSites::sa(Direction::in, 0x100, 2);
  EXPECT_THROW(sites->b.add_sa(std::move(again)), std::invalid_argument);
  sites->send(1);
  EXPECT_EQ(sites->arrived(1), 1U);  // the old one is untouched
  EXPECT_EQ(sites->b.find_sa(Direction::in, Spi{0x100}, ip("127.0.0.2")), in);
  EXPECT_FALSE(sites->b.find_sa(Direction::in, Spi{0x100}, ip("127.0.0.3")));
  for (const std::uint32_t spi : {0U, 1U, 255U})
    for (const Direction direction : {Direction::in, Direction::out})
      EXPECT_NE(refusal(TwoSites::sa(direction, spi, 9)).find("reserved"), std::string::npos)
          << spi;
}

// The same key and salt would use every nonce twice. With another salt the nonces are others.
TEST_F(SaLife, T2SameKeyAndSaltTwiceIsRefused) {
  const SaId out = add(0x100, 1).first;
  EXPECT_EQ(sites->a.find_sa(Direction::out, Spi{0x100}, ip("127.0.0.2")), out);
  for (const Direction direction : {Direction::in, Direction::out}) {
    const std::string text = refusal(TwoSites::sa(direction, 0x101, 1));
    EXPECT_NE(text.find("same key and salt"), std::string::npos) << text;
    EXPECT_EQ(text.find("1f2021"), std::string::npos) << "key bytes";
  }
  SaSpec salted = TwoSites::sa(Direction::out, 0x102, 1);
  salted.keymat.bytes().back() ^= 1;
  EXPECT_EQ(refusal(std::move(salted)), "");
  sites->a.remove_sa(out);
  EXPECT_EQ(refusal(TwoSites::sa(Direction::out, 0x103, 1)), "");  // the owner says it is fresh
}

TEST_F(SaLife, LifetimesAreChecked) {
  SaSpec spec = TwoSites::sa(Direction::out, 0x100, 1);
  spec.lifetime.bytes = {10, 5};
  EXPECT_NE(refusal(std::move(spec)).find("soft limit of bytes (10) is above the hard one (5)"),
            std::string::npos);
  EXPECT_THROW(sites->a.update_sa(SaId{12345}, {}), std::invalid_argument);
}

TEST_F(SaLife, L5AcquireTellsTheFlow) {
  PolicySpec trap = TwoSites::policy(Direction::out, 7);
  trap.trap = true;
  trap.priority = 0;
  sites->a.remove_policy(sites->policy_a);
  const PolicyId id = sites->a.add_policy(trap);
  sites->send(40);
  const Event event = TwoSites::event(sites->a, EventKind::acquire);
  EXPECT_EQ(event.policy, id);
  EXPECT_EQ(event.device, sites->device_a);
  EXPECT_EQ(event.reqid, 7U);
  EXPECT_EQ(event.flow.source, ip("10.1.0.1"));
  EXPECT_EQ(event.flow.destination, ip("10.2.0.1"));
  EXPECT_EQ(event.flow.protocol, 253);
  sites->send(10);
  EXPECT_EQ(sites->arrived_by_now(), 0U);
  EXPECT_EQ(TwoSites::drops(sites->a, Drop::no_sa), 49U);  // the first one waits
  EXPECT_TRUE(sites->a.take_events().empty());             // one a second
}

TEST_F(SaLife, L5TheFirstPacketWaitsForItsSa) {
  PolicySpec trap = TwoSites::policy(Direction::out, 1);
  trap.trap = true;
  trap.priority = 0;
  sites->a.remove_policy(sites->policy_a);
  const PolicyId id = sites->a.add_policy(trap);
  sites->send(3);
  EXPECT_EQ(TwoSites::event(sites->a, EventKind::acquire).policy, id);
  EXPECT_EQ(sites->arrived_by_now(), 0U);
  add(0x100, 1);
  {
    // As an IKE daemon does: the policy once more.
    const Dataplane::Batch batch(sites->a);
    static_cast<void>(sites->a.add_policy(trap));
    sites->a.remove_policy(id);
  }
  EXPECT_EQ(sites->arrived(1), 1U);
  EXPECT_EQ(sites->arrived_by_now(), 0U);
  EXPECT_EQ(TwoSites::drops(sites->a, Drop::no_sa), 2U);
}

// Auditable events (RFC 4303 §3.4.2–4), from what anybody can send.
TEST_F(SaLife, AuditsAreToldOnceASecond) {
  const SaId in = add(0x100, 1).second;
  const ifaces::UniqueFd attacker(::socket(AF_INET, SOCK_DGRAM, 0));
  sockaddr_storage to{};
  const socklen_t length = ifaces::Endpoint{ip("127.0.0.2"), 4500}.to(to);
  Bytes packet(64, 0xee);
  const auto send = [&](std::uint32_t spi, std::uint32_t seq) {
    store_be(packet.data(), spi);
    store_be(packet.data() + 4, seq);
    ASSERT_GT(::sendto(attacker.get(), packet.data(), packet.size(), 0,
                       reinterpret_cast<const sockaddr*>(&to), length),
              0);
  };
  for (std::uint32_t i = 0; i < 100; ++i) send(0x999, i);
  const Event unknown = TwoSites::event(sites->b, EventKind::no_spi);
  EXPECT_EQ(unknown.spi, Spi{0x999});
  EXPECT_EQ(unknown.local.address, ip("127.0.0.2"));
  for (std::uint32_t i = 1; i <= 100; ++i) send(0x100, i);
  const Event forged = TwoSites::event(sites->b, EventKind::integrity);
  EXPECT_EQ(forged.sa, in);
  EXPECT_EQ(forged.peer.address, ip("127.0.0.1"));
  EXPECT_EQ(sites->b.sa(in)->seq, 0U);  // T6: nothing has moved the window
  sites->send(1);
  EXPECT_EQ(sites->arrived(1), 1U);
  for (int i = 0; i < 100; ++i) send(0x100, 1);
  const Event replayed = TwoSites::event(sites->b, EventKind::replay);
  EXPECT_EQ(replayed.seq, 1U);
  EXPECT_TRUE(sites->b.take_events().empty());
  EXPECT_EQ(sites->b.events_lost(), 0U);
}

TEST_F(SaLife, AMoveIsTold) {
  const auto [out, in] = add(0x100, 1);
  const ifaces::Endpoint elsewhere{ip("127.0.0.9"), 999};
  sites->b.update_sa(in, peer_at(elsewhere));
  EXPECT_EQ(sites->b.sa(in)->peer, elsewhere);
  sites->send(1);
  const Event moved = TwoSites::event(sites->b, EventKind::mapping_changed);
  EXPECT_EQ(moved.sa, in);
  EXPECT_EQ(moved.old_peer, elsewhere);
  EXPECT_EQ(moved.peer, (ifaces::Endpoint{ip("127.0.0.1"), 4500}));
}

// L1: make before break, again and again under load; nothing is lost, nothing counts as a replay.
TEST_F(SaLife, L1RekeyUnderLoad) {
  constexpr std::size_t kRounds = 60;
  constexpr std::size_t kBurst = 100;
  auto [old_out, old_in] = add(0x100, 1);
  for (std::uint32_t round = 1; round <= kRounds; ++round) {
    std::thread load([&] { sites->send(kBurst); });
    const auto [out, in] = add(0x100 + round, static_cast<std::uint8_t>(round + 1));
    sites->a.remove_sa(old_out);
    load.join();
    // The old inbound SA stays for what was under way.
    ASSERT_EQ(sites->arrived(kBurst), kBurst) << round;
    sites->b.remove_sa(old_in);
    old_out = out;
    old_in = in;
  }
  for (const Dataplane* plane : {&sites->a, &sites->b})
    for (std::size_t i = 0; i < kDropCount; ++i)
      if (Drop{static_cast<std::uint8_t>(i)} != Drop::no_policy) {  // IPv6's own chatter
        EXPECT_EQ(plane->drops()[i], 0U) << kDropInfo[i].name;
      }
}

// L2: what is removed while packets are under way is not touched again, and no packet leaves under
// its key once the call has returned.
TEST_F(SaLife, L2RemovalWithPacketsInFlight) {
  std::atomic<bool> stop{false};
  std::thread load([&] {
    while (!stop) sites->send(20);
  });
  for (std::uint32_t i = 0; i < 150; ++i) {
    const auto [out, in] = add(0x100 + i, static_cast<std::uint8_t>(i));
    if (i % 3 == 0) (void)sites->out_b->receive(1, milliseconds(1));
    if (i % 2 == 0) sites->b.remove_sa(in);
    sites->a.remove_sa(out);
    if (i % 2 != 0) sites->b.remove_sa(in);
  }
  stop = true;
  load.join();
  EXPECT_TRUE(sites->a.sas().empty());
  TwoSites::settle(sites->a);
  TwoSites::settle(sites->b);
  const std::uint64_t unknown = TwoSites::drops(sites->b, Drop::no_spi);
  const std::uint64_t before = TwoSites::drops(sites->a, Drop::no_sa);
  sites->send(50);
  while (TwoSites::drops(sites->a, Drop::no_sa) < before + 50) std::this_thread::yield();
  TwoSites::settle(sites->b);
  EXPECT_EQ(unknown, TwoSites::drops(sites->b, Drop::no_spi));
}

// A key that comes back goes on behind the numbers it has used, wherever it is told to start; also
// where both happen in one batch.
TEST_F(SaLife, AKeyThatComesBackGoesOn) {
  SaId id = add(0x100, 1).first;
  sites->send(7);
  ASSERT_EQ(sites->arrived(7), 7U);
  sites->a.remove_sa(id);
  id = sites->a.add_sa(TwoSites::sa(Direction::out, 0x100, 1));
  EXPECT_EQ(sites->a.sa(id)->seq, 8U);
  sites->send(3);
  ASSERT_EQ(sites->arrived(3), 3U);  // the peer's window takes them
  {
    const Dataplane::Batch batch(sites->a);
    sites->a.remove_sa(id);
    id = sites->a.add_sa(TwoSites::sa(Direction::out, 0x101, 1));
    EXPECT_EQ(sites->a.sa(id)->seq, 11U);
  }
  sites->a.remove_sa(id);
  SaSpec ahead = TwoSites::sa(Direction::out, 0x100, 1);
  ahead.next_seq = 100;
  EXPECT_EQ(sites->a.sa(sites->a.add_sa(std::move(ahead)))->seq, 100U);
}

// … and what was seen under it stays seen.
TEST_F(SaLife, AnInboundKeyThatComesBackTakesNothingTwice) {
  const SaId in = add(0x100, 1).second;
  sites->send(7);
  ASSERT_EQ(sites->arrived(7), 7U);
  const Dataplane::Batch batch(sites->b);
  sites->b.remove_sa(in);
  const SaId again = sites->b.add_sa(TwoSites::sa(Direction::in, 0x100, 1));
  EXPECT_EQ(sites->b.sa(again)->seq, 7U);
}

// What a peer has sent under a key is used too, should the key come back for the other direction.
TEST_F(SaLife, AnInboundKeyGoesOnWhereThePeerStopped) {
  const SaId in = add(0x100, 1).second;
  sites->send(7);
  ASSERT_EQ(sites->arrived(7), 7U);
  sites->b.remove_sa(in);
  SaSpec back = TwoSites::sa(Direction::out, 0x200, 1);
  std::swap(back.local, back.peer);
  const SaId out = sites->b.add_sa(std::move(back));
  EXPECT_EQ(sites->b.sa(out)->seq, 8U);
}

// In a batch no worker is waited for: one that still has the old limits may find them reached
// later.
TEST(Limits, ThoseThatWereReplacedDoNotTakeTheEventOfTheNew) {
  const Limits old(Lifetime{}), fresh(Lifetime{});
  EXPECT_TRUE(old.set_soft());
  EXPECT_FALSE(old.set_soft());
  EXPECT_TRUE(fresh.set_soft());
}

}  // namespace
}  // namespace espalier::test
