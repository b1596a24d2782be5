// From one worker to the control thread: events, in a ring of fixed size: an event never holds up a
// packet. Of what does not fit, what happens once in the life of an SA is left with the SA, and the
// rest counted and lost.
//
// The worker posts while it handles packets and calls ring() once a turn; only that may make a
// system call, and only if the reader has seen everything of before.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "dataplane/event.h"

namespace espalier::dataplane {

// At most one event a second of what it is for; the others are counted. Any worker.
class EventLimiter {
 public:
  // Counts `n` more; not 0: it is time to tell of that many.
  [[nodiscard]] std::uint32_t take(std::uint32_t n, std::int64_t now_ns) noexcept {
    // Milliseconds in 32 bits tell a second from none for 49 days; 0 is never.
    const auto now = static_cast<std::uint32_t>(now_ns / 1'000'000) | 1U;
    pending_.fetch_add(n, std::memory_order_relaxed);
    std::uint32_t told = told_.load(std::memory_order_relaxed);
    if (told != 0 && now - told < kIntervalMs) return 0;
    if (!told_.compare_exchange_strong(told, now, std::memory_order_relaxed)) return 0;
    return pending_.exchange(0, std::memory_order_relaxed);
  }
  // Is there something that was counted and not told?
  [[nodiscard]] bool pending() const noexcept {
    return pending_.load(std::memory_order_relaxed) != 0;
  }

 private:
  static constexpr std::uint32_t kIntervalMs = 1000;
  std::atomic<std::uint32_t> told_{0}, pending_{0};
};

class EventQueue {
 public:
  static constexpr std::uint32_t kSlots = 256;

  // `wake_fd`: an eventfd; -1: nobody is to be woken.
  explicit EventQueue(int wake_fd) noexcept : wake_fd_(wake_fd) {}

  // The worker.
  void post(const Event& event) noexcept {
    if (!try_post(event)) lost_.fetch_add(1, std::memory_order_relaxed);
  }
  // False: there is no room.
  [[nodiscard]] bool try_post(const Event& event) noexcept {
    const std::uint32_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head_.load(std::memory_order_acquire) == kSlots) return false;
    ring_[tail % kSlots] = event;
    tail_.store(tail + 1, std::memory_order_release);
    posted_ = true;
    return true;
  }
  // An SA has something that is untold (LifeState).
  void leave() noexcept {
    left_.store(true, std::memory_order_release);
    posted_ = true;
  }
  // There is something else to look at.
  void poke() noexcept { posted_ = true; }
  void ring() noexcept {
    if (!posted_) [[likely]]
      return;
    posted_ = false;
    if (wake_fd_ >= 0 && !rung_.exchange(true)) ::eventfd_write(wake_fd_, 1);
  }

  // The control thread: to be called before the take()s, so that what is posted meanwhile rings.
  void answer() noexcept { rung_.store(false); }
  [[nodiscard]] bool take(Event& event) noexcept {
    const std::uint32_t head = head_.load(std::memory_order_relaxed);
    if (head == tail_.load(std::memory_order_acquire)) return false;
    event = ring_[head % kSlots];
    head_.store(head + 1, std::memory_order_release);
    return true;
  }
  [[nodiscard]] bool empty() const noexcept {
    return head_.load(std::memory_order_relaxed) == tail_.load(std::memory_order_acquire);
  }

  // Has something been left since this was asked last? To be called behind the take()s.
  [[nodiscard]] bool take_left() noexcept {
    return left_.load(std::memory_order_relaxed) &&
           left_.exchange(false, std::memory_order_acquire);
  }
  [[nodiscard]] std::uint64_t lost() const noexcept {
    return lost_.load(std::memory_order_relaxed);
  }

 private:
  int wake_fd_;
  bool posted_ = false;  // the worker's
  std::array<Event, kSlots> ring_{};
  alignas(64) std::atomic<std::uint32_t> tail_{0};
  std::atomic<std::uint64_t> lost_{0};
  alignas(64) std::atomic<std::uint32_t> head_{0};
  std::atomic<bool> rung_{false}, left_{false};
};

}  // namespace espalier::dataplane
