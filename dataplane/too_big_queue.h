// What routers report, from the worker that receives it to the control thread, which checks it
// against the SAs. A few at a time: what does not fit is reported again by the router.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "dataplane/icmp.h"

namespace espalier::dataplane {

class TooBigQueue {
 public:
  // The worker.
  void post(const TooBig& report) noexcept {
    const std::uint32_t tail = tail_.load(std::memory_order_relaxed);
    if (tail - head_.load(std::memory_order_acquire) == kSlots) return;
    ring_[tail % kSlots] = report;
    tail_.store(tail + 1, std::memory_order_release);
  }
  // The control thread.
  [[nodiscard]] bool take(TooBig& report) noexcept {
    const std::uint32_t head = head_.load(std::memory_order_relaxed);
    if (head == tail_.load(std::memory_order_acquire)) return false;
    report = ring_[head % kSlots];
    head_.store(head + 1, std::memory_order_release);
    return true;
  }

 private:
  static constexpr std::uint32_t kSlots = 32;
  std::array<TooBig, kSlots> ring_{};
  std::atomic<std::uint32_t> tail_{0}, head_{0};
};

}  // namespace espalier::dataplane
