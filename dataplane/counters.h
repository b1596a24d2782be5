// What one worker counts of its drops. Only that worker writes.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "dataplane/drop.h"

namespace espalier::dataplane {

struct alignas(64) WorkerCounters {
  std::array<std::atomic<std::uint64_t>, kDropCount> drops{};

  void drop(Drop reason, std::uint64_t packets = 1) noexcept {
    auto& counter = drops[static_cast<std::size_t>(reason)];
    counter.store(counter.load(std::memory_order_relaxed) + packets, std::memory_order_relaxed);
  }
};

}  // namespace espalier::dataplane
