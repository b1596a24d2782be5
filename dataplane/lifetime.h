// The limits of an SA by packets and bytes (RFC 4301 §4.4.2.1), as the workers see them. Those by
// time are the control thread's: expiry.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>

#include "dataplane/types.h"

namespace espalier::dataplane {

// Replaced whole; all but whether the soft limit was told of is immutable. An SA without limits has
// none. A hard limit of packets out is exact, however many workers share the SA, if the SA is
// added with it; one that comes later counts what the workers are sending as it comes as not sent
// yet. Bytes, and packets of an inbound SA, are read before a run of packets and written after it,
// so workers may together pass a hard limit of those by a run each.
struct Limits {
  static constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

  Lifetime asked;
  std::uint64_t soft_packets, soft_bytes, hard_packets, hard_bytes;  // kNever: no limit

  // `margin_packets`: a soft limit of the sequence numbers (RFC 4303 §3.3.3), as packets.
  explicit Limits(const Lifetime& lifetime, std::uint64_t margin_packets = kNever) noexcept
      : asked(lifetime),
        soft_packets(std::min(or_never(lifetime.packets.soft), margin_packets)),
        soft_bytes(or_never(lifetime.bytes.soft)),
        hard_packets(or_never(lifetime.packets.hard)),
        hard_bytes(or_never(lifetime.bytes.hard)) {}

  // May one more packet pass when so much has passed?
  [[nodiscard]] bool admits(std::uint64_t packets, std::uint64_t bytes) const noexcept {
    return packets < hard_packets && bytes < hard_bytes;
  }
  // How many of `wanted` more packets may pass?
  [[nodiscard]] std::uint64_t admitted(std::uint64_t wanted, std::uint64_t packets,
                                       std::uint64_t bytes) const noexcept {
    return admits(packets, bytes) ? std::min(wanted, hard_packets - packets) : 0;
  }
  [[nodiscard]] bool soft_reached(std::uint64_t packets, std::uint64_t bytes) const noexcept {
    return packets >= soft_packets || bytes >= soft_bytes;
  }

  // True for the first caller. Here, not with the SA: whoever still judges by limits that have been
  // replaced must not take the event of the new ones away.
  [[nodiscard]] bool set_soft() const noexcept {
    return !soft_told_.load(std::memory_order_relaxed) && !soft_told_.exchange(true);
  }

 private:
  static std::uint64_t or_never(std::uint64_t limit) noexcept {
    return limit == 0 ? kNever : limit;
  }

  mutable std::atomic<bool> soft_told_{false};
};

// How far an SA is in its life, and which of its events found no room in a worker's queue: the
// control thread looks for those by itself (EventQueue::leave).
class LifeState {
 public:
  static constexpr std::uint8_t kSoft = 1, kHard = 2, kMoved = 4;

  [[nodiscard]] bool expired() const noexcept { return expired_.load(); }
  // True for the first caller.
  [[nodiscard]] bool set_expired() noexcept { return !expired_.exchange(true); }

  void set_untold(std::uint8_t what) noexcept { untold_.fetch_or(what); }
  [[nodiscard]] std::uint8_t take_untold() noexcept {
    return untold_.load(std::memory_order_relaxed) == 0 ? std::uint8_t{0} : untold_.exchange(0);
  }

 private:
  std::atomic<bool> expired_{false};
  std::atomic<std::uint8_t> untold_{0};
};

}  // namespace espalier::dataplane
