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

// One worker's share; only that worker writes.
struct alignas(64) DeviceCounters {
  std::atomic<std::uint64_t> rx_packets{0}, rx_bytes{0}, tx_packets{0}, tx_bytes{0}, tx_no_sa{0};
};

// Adds to a counter that one thread writes and others read.
inline void bump(std::atomic<std::uint64_t>& counter, std::uint64_t by) noexcept {
  counter.store(counter.load(std::memory_order_relaxed) + by, std::memory_order_relaxed);
}

struct Device {
  DeviceId id{};
  DeviceSpec spec;
  Spd policies;                          // the outbound policies whose mark okey matches
  std::vector<ifaces::UniqueFd> queues;  // one a worker
  std::vector<ifaces::Port> ports;       // in each worker's engine
  std::unique_ptr<DeviceCounters[]> counters;
};

}  // namespace espalier::dataplane
