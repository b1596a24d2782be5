// Packets that met a policy without an SA and wait for the one that an IKE daemon is asked for, as
// the kernel's policy queue has them: the first of each flow, so that a connection opens without a
// retransmission. Few, short ones, and not for long. One worker's.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "dataplane/inner.h"
#include "dataplane/types.h"
#include "ifaces/engine.h"

namespace espalier::dataplane {

class HeldPackets {
 public:
  static constexpr std::size_t kSlots = 64;
  static constexpr std::size_t kBytes = 2048;                  // of a read; longer ones do not wait
  static constexpr std::int64_t kPatienceNs = 60'000'000'000;  // XFRM_QUEUE_TMO_MAX

  struct Held {
    DeviceId device{};
    ifaces::Port port = 0;
    InnerKey key;
    std::int64_t until_ns = 0;
    std::uint32_t packets = 0;  // of a super-packet
    std::uint32_t length = 0;   // 0: the slot is free
    bool leaving = false;       // handed over; free in the next turn, unless it comes back
    std::array<std::uint8_t, kBytes + ifaces::kTunTailroom> bytes;
  };

  HeldPackets() : slots_(new Held[kSlots]) {}

  [[nodiscard]] bool empty() const noexcept { return used_ == 0; }
  // False: there is one of its flow, no room, or it is too long. `read`: as the TUN gave it, or
  // what was handed over, which stays then.
  [[nodiscard]] bool hold(DeviceId device, ifaces::Port port, const InnerKey& key,
                          std::uint32_t packets, std::span<const std::uint8_t> read,
                          std::int64_t now_ns) noexcept {
    if (read.empty() || read.size() > kBytes) return false;
    Held* free = nullptr;
    for (Held& held : slots()) {
      if (held.length == 0) {
        if (free == nullptr) free = &held;
      } else if (held.device == device && same_flow(held.key, key)) {
        if (read.data() != held.bytes.data()) return false;
        held.leaving = false;
        return true;
      }
    }
    if (free == nullptr) return false;
    free->device = device;
    free->port = port;
    free->key = key;
    free->until_ns = now_ns + kPatienceNs;
    free->packets = packets;
    free->length = static_cast<std::uint32_t>(read.size());
    free->leaving = false;
    std::copy(read.begin(), read.end(), free->bytes.begin());
    ++used_;
    return true;
  }
  void release(Held& held) noexcept {
    held.length = 0;
    --used_;
  }
  [[nodiscard]] std::span<Held> slots() noexcept { return {slots_.get(), kSlots}; }

 private:
  std::unique_ptr<Held[]> slots_;
  std::size_t used_ = 0;
};

}  // namespace espalier::dataplane
