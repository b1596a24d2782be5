// What several threads touch at once. Meant for ThreadSanitizer; true without it as well.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "dataplane/reporter.h"
#include "dataplane/sad.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace espalier::dataplane {
namespace {

// T3: many senders on one SA, and no number twice.
TEST(Concurrency, ReservedNumbersAreDistinct) {
  constexpr std::size_t kThreads = 8;
  constexpr std::size_t kBatches = 20000;
  OutboundSa sa;
  sa.seq_limit = ~std::uint64_t{0} - 1;
  std::vector<std::vector<std::pair<std::uint64_t, std::uint64_t>>> taken(kThreads);
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&sa, &mine = taken[t], t] {
      for (std::size_t i = 0; i < kBatches; ++i) {
        std::uint64_t first = 0;
        const std::uint64_t count = sa.reserve(1 + (i + t) % 64, first);
        mine.emplace_back(first, count);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<std::pair<std::uint64_t, std::uint64_t>> all;
  for (const auto& mine : taken) all.insert(all.end(), mine.begin(), mine.end());
  std::sort(all.begin(), all.end());
  std::uint64_t next = 1;
  for (const auto& [first, count] : all) {
    ASSERT_EQ(first, next);
    next += count;
  }
}

// A8: replayed, late and good packets of one SA on several workers; each number is delivered once.
TEST(Concurrency, A8OneSaOnSeveralWorkers) {
  constexpr std::uint64_t kPackets = 4000;
  constexpr unsigned kWorkers = 3;
  SaPair pair(true, crypto::Suite::aes_gcm128, 65536);
  std::vector<Bytes> sealed;
  for (std::uint64_t seq = 1; seq <= kPackets; ++seq)
    sealed.push_back(pair.seal(seq, inner_v4(60)));
  const Bytes keymat(36, 7);
  for (unsigned w = 1; w < kWorkers; ++w)  // OpenSSL's keys are not for several threads
    pair.in.keys.push_back(
        pair.backend->expand(crypto::Suite::aes_gcm128, std::span(keymat).first(16)));

  std::array<std::atomic<int>, kPackets + 1> delivered{};
  std::vector<std::thread> workers;
  for (unsigned w = 0; w < kWorkers; ++w) {
    workers.emplace_back([&, w] {
      std::mt19937 random(w);
      std::vector<std::uint64_t> order;
      for (std::uint64_t seq = 1; seq <= kPackets; ++seq) order.push_back(seq);
      for (std::size_t i = 0; i + 1 < order.size(); ++i)  // nearly in order
        std::swap(order[i], order[std::min(order.size() - 1, i + random() % 32)]);
      std::array<InboundPacket, kDecapBatch> run{};
      std::vector<Bytes> copies(kDecapBatch);
      for (std::size_t at = 0; at < order.size();) {
        const std::size_t count =
            std::min<std::size_t>(1 + random() % kDecapBatch, order.size() - at);
        for (std::size_t i = 0; i < count; ++i, ++at) {
          copies[i] = sealed[order[at] - 1];
          run[i].esp = copies[i].data();
          run[i].len = static_cast<std::uint32_t>(copies[i].size());
          run[i].outer_tos = 0;
          run[i].peer = &pair.sender;
        }
        const DecapResult result = esp_decap(pair.in, w, {run.data(), count});
        for (std::size_t i = 0; i < result.good; ++i) ++delivered[run[i].seq];
        for (std::size_t i = result.good; i < count; ++i) EXPECT_EQ(run[i].reason, Drop::duplicate);
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  for (std::uint64_t seq = 1; seq <= kPackets; ++seq) ASSERT_EQ(delivered[seq], 1) << seq;
}

// Live resize while two workers open packets of the SA: nothing is delivered twice.
TEST(Concurrency, A8WindowIsResizedUnderTraffic) {
  constexpr std::uint64_t kPackets = 3000;
  SaPair pair(true, crypto::Suite::aes_gcm128, 65536);
  const Bytes keymat(crypto::kMaxKeysBytes + crypto::kMaxSaltBytes, 7);
  pair.in.keys.push_back(
      pair.backend->expand(crypto::Suite::aes_gcm128, std::span(keymat).first(pair.suite.keys())));
  std::vector<Bytes> sealed;
  for (std::uint64_t seq = 1; seq <= kPackets; ++seq)
    sealed.push_back(pair.seal(seq, inner_v4(60)));
  std::array<std::atomic<int>, kPackets + 1> delivered{};
  std::atomic<unsigned> running{2};
  std::vector<std::thread> workers;
  for (unsigned w = 0; w < 2; ++w) {
    workers.emplace_back([&, w] {
      for (int round = 0; round < 3; ++round) {
        for (const Bytes& packet : sealed) {
          Bytes copy = packet;
          InboundPacket p{};
          p.esp = copy.data();
          p.len = static_cast<std::uint32_t>(copy.size());
          p.peer = &pair.sender;
          if (esp_decap(pair.in, w, {&p, 1}).good == 1) ++delivered[p.seq];
        }
      }
      --running;
    });
  }
  std::mt19937 random(1);
  do {
    pair.in.resize(32U << random() % 12);
  } while (running > 0);
  for (std::thread& worker : workers) worker.join();
  for (std::uint64_t seq = 1; seq <= kPackets; ++seq) ASSERT_LE(delivered[seq], 1) << seq;
  EXPECT_EQ(pair.in.window.top(), kPackets);
}

// A worker posts, the control thread takes: in order, none twice, none lost without being counted,
// and whoever waits is always woken.
TEST(Concurrency, EventsArrive) {
  constexpr std::uint64_t kEvents = 20000;
  EventQueue queue(-1);
  std::thread worker([&] {
    Event event;
    for (std::uint64_t i = 1; i <= kEvents; ++i) {
      event.seq = i;
      queue.post(event);
      queue.ring();
    }
  });
  std::uint64_t last = 0;
  std::uint64_t taken = 0;
  while (last < kEvents && taken + queue.lost() < kEvents) {
    Event event;
    queue.answer();
    while (queue.take(event)) {
      ASSERT_GT(event.seq, last);
      last = event.seq;
      ++taken;
    }
  }
  worker.join();
  Event event;
  while (queue.take(event)) ++taken;
  EXPECT_EQ(taken + queue.lost(), kEvents);
}

// Several workers meet the hard limit of one SA: one of them tells.
TEST(Concurrency, OneExpiryForAll) {
  for (int round = 0; round < 200; ++round) {
    OutboundSa sa;
    sa.seq_limit = 1000;
    std::atomic<int> told{0};
    std::vector<std::thread> workers;
    for (int w = 0; w < 3; ++w)
      workers.emplace_back([&] {
        if (expire(sa)) ++told;
        std::uint64_t first = 0;
        EXPECT_EQ(sa.reserve(1, first), 0U);
      });
    for (std::thread& worker : workers) worker.join();
    EXPECT_EQ(told, 1);
  }
}

// A16: however the runs of several workers meet, all that a hard limit of packets admits may pass,
// and not one more.
TEST(Concurrency, A16HardLimitOfPacketsForAll) {
  constexpr std::uint64_t kLimit = 400'000;
  for (int round = 0; round < 20; ++round) {
    OutboundSa sa;
    sa.seq_limit = 1'000'000;
    std::atomic<std::uint64_t> sent{0};
    std::vector<std::thread> workers;
    for (std::uint64_t w = 0; w < 3; ++w)
      workers.emplace_back([&, w] {
        for (std::uint64_t i = 0; i < 20'000; ++i) {
          const std::uint64_t wanted = 1 + (i + w) % 64;
          const std::uint64_t granted = sa.claim(wanted, kLimit);
          EXPECT_LE(granted, wanted);
          const std::uint64_t unused = granted / 2;  // for want of a number
          sa.unclaim(unused);
          sent += granted - unused;
        }
      });
    for (std::thread& worker : workers) worker.join();
    EXPECT_EQ(sent, kLimit);
  }
}

TEST(Concurrency, APeerIsNeverHalfMoved) {
  const ifaces::Endpoint a{*ifaces::IpAddress::parse("192.0.2.1"), 4500};
  const ifaces::Endpoint b{*ifaces::IpAddress::parse("2001:db8::2"), 61000};
  Peer peer(a);
  std::atomic<bool> stop{false};
  std::vector<std::thread> movers;
  for (int i = 0; i < 2; ++i)
    movers.emplace_back([&] {
      while (!stop) {
        peer.set(b);
        peer.set(a);
      }
    });
  for (int i = 0; i < 50000; ++i) {
    const ifaces::Endpoint seen = peer.get();
    ASSERT_TRUE(seen == a || seen == b) << seen.str();
  }
  stop = true;
  for (std::thread& mover : movers) mover.join();
}

// Readers find what is there all the time, and never anything else, while other entries come and
// go.
TEST(Concurrency, ReadersOfAChangingTable) {
  constexpr std::uint32_t kSteady = 64;
  constexpr std::uint32_t kPassing = 2000;
  std::vector<std::unique_ptr<InboundSa>> sas;
  const auto local = *ifaces::IpAddress::parse("192.0.2.1");
  for (std::uint32_t i = 0; i < kSteady + kPassing; ++i) {
    sas.push_back(std::make_unique<InboundSa>(64, 0));
    sas.back()->spi = Spi{kFirstSpi + i};
    sas.back()->set_local(local);
  }
  Sad sad;
  for (std::uint32_t i = 0; i < kSteady; ++i) sad.insert(sas[i].get());
  std::atomic<bool> stop{false};
  std::vector<std::thread> readers;
  for (unsigned t = 0; t < 2; ++t) {
    readers.emplace_back([&, t] {
      std::mt19937 random(t);
      while (!stop) {
        const auto i = static_cast<std::uint32_t>(random() % (kSteady + kPassing));
        const InboundSa* found = sad.find({kFirstSpi + i, words(local)});
        if (i < kSteady) {
          ASSERT_EQ(found, sas[i].get());
        } else if (found != nullptr) {
          ASSERT_EQ(found, sas[i].get());
        }
      }
    });
  }
  for (int round = 0; round < 20; ++round) {
    for (std::uint32_t i = kSteady; i < kSteady + kPassing; ++i) sad.insert(sas[i].get());
    for (std::uint32_t i = kSteady; i < kSteady + kPassing; ++i)
      ASSERT_EQ(sad.erase({kFirstSpi + i, words(local)}), sas[i].get());
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(sad.size(), kSteady);
}

}  // namespace
}  // namespace espalier::dataplane
