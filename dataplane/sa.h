// Security associations as the workers see them: hot state apart from configuration.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "crypto/aead.h"
#include "crypto/fingerprint.h"
#include "crypto/secret.h"
#include "dataplane/device.h"
#include "dataplane/drop.h"
#include "dataplane/event_queue.h"
#include "dataplane/inner.h"
#include "dataplane/lifetime.h"
#include "dataplane/outer_header.h"
#include "dataplane/peer.h"
#include "dataplane/replay_window.h"
#include "dataplane/socket_set.h"
#include "dataplane/types.h"

namespace espalier::dataplane {

// One key, or one for each worker where a key cannot be shared between threads.
class WorkerKeys {
 public:
  void push_back(std::unique_ptr<crypto::AeadKey> key) {
    if (first_ == nullptr) {
      first_ = std::move(key);
      return;
    }
    if (others_ == nullptr) others_ = std::make_unique<std::vector<Key>>();
    others_->push_back(std::move(key));
  }
  [[nodiscard]] std::size_t size() const noexcept {
    return (first_ == nullptr ? 0U : 1U) + (others_ == nullptr ? 0U : others_->size());
  }
  [[nodiscard]] const std::unique_ptr<crypto::AeadKey>& front() const noexcept { return first_; }
  [[nodiscard]] const crypto::AeadKey& of(unsigned worker) const noexcept {
    return others_ == nullptr || worker == 0 ? *first_ : *(*others_)[worker - 1];
  }

 private:
  using Key = std::unique_ptr<crypto::AeadKey>;
  Key first_;
  std::unique_ptr<std::vector<Key>> others_;
};

// What the SAs of both directions have. The order leaves few gaps: there may be many.
struct SaCommon {
  SaCommon() = default;
  SaCommon(const SaCommon&) = delete;
  SaCommon& operator=(const SaCommon&) = delete;
  ~SaCommon() {
    crypto::wipe(salt);
    delete limits.load(std::memory_order_relaxed);
  }

  SaId id{};
  Spi spi{};
  AddressWords local_words{};  // in: of the outer destination
  std::uint32_t reqid = 0;
  Encapsulation encapsulation{};
  bool esn = false;
  crypto::Suite suite{};
  // Here and not with the key, as each packet needs it; worth nothing without that (RFC 4106 §4).
  std::array<std::uint8_t, crypto::kMaxSaltBytes> salt{};
  std::uint16_t mss_clamp = 0;  // as in SaSpec
  WorkerKeys keys;
  std::string_view backend;
  crypto::Fingerprint key_name{};
  OuterSocket* socket = nullptr;
  std::shared_ptr<Peer> peer;    // never null; shared with the other direction
  std::uint32_t outer_mark = 0;  // SO_MARK
  std::uint32_t if_id = 0;
  Mark mark;
  ifaces::IpAddress local;
  // As it was given, for the control thread: a peer that moves stays with its device.
  ifaces::IpAddress remote;
  std::uint16_t remote_port = 0;
  bool moves = false;  // the peer's address may change
  LifeState life;
  std::string name;
  std::chrono::steady_clock::time_point added;
  std::atomic<const Limits*> limits{nullptr};  // null: no limit by packets or bytes

  // What was asked for; control thread.
  [[nodiscard]] const Lifetime& lifetime() const noexcept {
    static constexpr Lifetime kNone{};
    const Limits* l = limits.load(std::memory_order_relaxed);
    return l == nullptr ? kNone : l->asked;
  }
  [[nodiscard]] const crypto::AeadKey& key(unsigned worker) const noexcept {
    return keys.of(worker);
  }
};

// Written once a run of packets, by whichever worker has it.
struct SaCounters {
  std::atomic<std::uint64_t> packets{0};
  std::atomic<std::uint64_t> bytes{0};
  std::atomic<std::int64_t> last_packet_ns{0};  // steady clock; 0: none yet

  void count(std::uint64_t p, std::uint64_t b, std::int64_t now_ns) noexcept {
    packets.fetch_add(p, std::memory_order_relaxed);
    bytes.fetch_add(b, std::memory_order_relaxed);
    last_packet_ns.store(now_ns, std::memory_order_relaxed);
  }
};

struct OutboundSa : SaCommon {
  OuterRule outer;
  std::uint32_t tfc_padding = 0;       // as in SaSpec
  std::int64_t last_keepalive_ns = 0;  // control thread
  OutboundSa* same_spi = nullptr;      // control thread: the next one of this SPI
  // The next number to hand out; it may run past the limit, and then nothing more is sent.
  alignas(64) std::atomic<std::uint64_t> next_seq{1};
  std::atomic<std::uint64_t> seq_limit{0};
  SaCounters counters;
  std::atomic<std::uint64_t> claimed{0};    // of a hard limit of packets: sent, or about to be
  std::atomic<std::uint64_t> exhausted{0};  // packets dropped for want of a number
  std::atomic<std::uint64_t> after_end{0};  // packets dropped because the SA has expired
  EventLimiter exhaustions;

  // `count` consecutive numbers, the first in `first`; how many of them may be used is returned.
  // What was reserved is never given back (RFC 4106 §3.1).
  [[nodiscard]] std::uint64_t reserve(std::uint64_t count, std::uint64_t& first) noexcept {
    const std::uint64_t limit = seq_limit.load(std::memory_order_acquire);
    if (next_seq.load(std::memory_order_relaxed) > limit) return 0;  // no run towards 2^64
    first = next_seq.fetch_add(count, std::memory_order_relaxed);
    if (first > limit) return 0;
    return std::min(count, limit - first + 1);
  }
  // How many of `wanted` packets may pass under a hard limit of `most`; whoever else asks meanwhile
  // is told what is left.
  [[nodiscard]] std::uint64_t claim(std::uint64_t wanted, std::uint64_t most) noexcept {
    std::uint64_t before = claimed.load(std::memory_order_relaxed);
    std::uint64_t granted = 0;
    do {
      granted = before < most ? std::min(wanted, most - before) : 0;
    } while (granted != 0 &&
             !claimed.compare_exchange_weak(before, before + granted, std::memory_order_relaxed));
    return granted;
  }
  void unclaim(std::uint64_t count) noexcept {
    claimed.fetch_sub(count, std::memory_order_relaxed);
  }
  // Control thread. Never back.
  void advance(std::uint64_t next) noexcept {
    std::uint64_t before = next_seq.load();
    while (before < next && !next_seq.compare_exchange_weak(before, next)) {
    }
  }
};

// May the device use the SA? A wildcard end takes any, and so does a peer that moves
// (vti_state_check).
[[nodiscard]] inline bool ends_fit(const Device& device, const OutboundSa& sa) noexcept {
  const DeviceSpec& spec = device.spec;
  return (spec.local.is_any() || spec.local == sa.local) &&
         (spec.remote.is_any() || sa.moves || spec.remote == sa.peer->get().address);
}

// Where an inbound SA's packets may go: its policies, and their device. Immutable; replaced whole.
struct Binding {
  Device* device = nullptr;  // null: no device for the policy's mark
  struct Rule {
    SelectorMatcher selector;
    bool allow;
    explicit Rule(const Selector& s, bool a = true) : selector(s), allow(a) {}
  };
  std::vector<Rule> selectors;  // the first that matches decides; none: the packet is refused
};

struct InboundSa : SaCommon {
  bool follow_peer = false;
  bool dscp_inwards = false;
  std::atomic<const Binding*> binding{nullptr};
  std::unique_ptr<const Binding> own_binding;  // control thread: what `binding` is

  alignas(64) ReplayWindow window;
  SaCounters counters;
  // Taken twice a run of packets, not per packet: a GRO super-packet may bring a packet to a worker
  // whose SA it is not.
  std::atomic_flag busy;
  std::array<std::atomic<std::uint32_t>, kDropCount> drops{};
  enum class Audit : std::uint8_t { replay, integrity, selector, mapping };
  std::array<EventLimiter, 4> audits;

  void set_local(const ifaces::IpAddress& address) noexcept {
    local = address;
    local_words = words(address);
  }

  explicit InboundSa(std::uint32_t window_bits, std::uint64_t top) : window(window_bits, top) {}

  // Live: what was seen stays seen, as far back as the new window goes.
  void resize(std::uint32_t window_bits);
  // Behind the highest number that was seen.
  [[nodiscard]] std::uint64_t next();
  // Numbers before `next` count as seen.
  void advance(std::uint64_t next);
};

class SaLock {
 public:
  explicit SaLock(InboundSa& sa) noexcept : sa_(sa) {
    while (sa_.busy.test_and_set(std::memory_order_acquire)) {
    }
  }
  ~SaLock() { sa_.busy.clear(std::memory_order_release); }
  SaLock(const SaLock&) = delete;
  SaLock& operator=(const SaLock&) = delete;

 private:
  InboundSa& sa_;
};

inline void InboundSa::resize(std::uint32_t window_bits) {
  ReplayWindow fresh(window_bits);
  const SaLock lock(*this);
  fresh.take_over(window);
  std::swap(fresh, window);
}

inline std::uint64_t InboundSa::next() {
  const SaLock lock(*this);
  return window.top() + 1;
}

inline void InboundSa::advance(std::uint64_t next) {
  ReplayWindow fresh(window.bits(), next - 1);
  const SaLock lock(*this);
  if (window.top() < fresh.top()) std::swap(fresh, window);
}

// Inbound lookup key: SPI and outer destination (RFC 4301 §4.1; the SPI alone is not unique between
// two local addresses).
struct SadKey {
  std::uint32_t spi = 0;
  AddressWords local{};
  bool operator==(const SadKey& other) const noexcept {
    return spi == other.spi && same(local, other.local);
  }
};

}  // namespace espalier::dataplane
