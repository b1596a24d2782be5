// A TUN in the place of a VTI, as the workers see it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dataplane/spd.h"
#include "dataplane/types.h"
#include "ifaces/engine.h"
#include "ifaces/unique_fd.h"

namespace espalier::dataplane {

// How many ICMP errors may be sent (RFC 4443 §2.4(f)): as many as the kernel itself allows
// (net.ipv4.icmp_msgs_per_sec and icmp_msgs_burst).
struct TokenBucket {
  static constexpr std::int64_t kIntervalNs = 1'000'000;
  static constexpr std::int64_t kBurst = 50;
  std::int64_t full_at_ns = 0;  // when there are kBurst tokens again

  [[nodiscard]] bool has(std::int64_t now_ns) const noexcept {
    return full_at_ns - now_ns <= (kBurst - 1) * kIntervalNs;
  }
  void take(std::int64_t now_ns) noexcept {
    full_at_ns = (full_at_ns > now_ns ? full_at_ns : now_ns) + kIntervalNs;
  }
};

// One worker's share; only that worker writes.
struct alignas(64) DeviceCounters {
  std::atomic<std::uint64_t> rx_packets{0}, rx_bytes{0}, tx_packets{0}, tx_bytes{0}, tx_no_sa{0};
  std::atomic<std::uint64_t> tx_loops{0}, rx_errors{0};
  std::atomic<std::uint64_t> icmp_sent{0};
  TokenBucket icmp_limit;  // nobody else looks at it
};

// Adds to a counter that one thread writes and others read.
inline void bump(std::atomic<std::uint64_t>& counter, std::uint64_t by) noexcept {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

struct Device {
  DeviceId id{};
  DeviceSpec spec;
  bool carrier = true;                   // as the kernel has it
  Spd policies;                          // the outbound policies whose mark okey matches
  std::vector<ifaces::UniqueFd> queues;  // one a worker
  std::vector<ifaces::Port> ports;       // in each worker's engine
  std::unique_ptr<DeviceCounters[]> counters;
};

}  // namespace espalier::dataplane
