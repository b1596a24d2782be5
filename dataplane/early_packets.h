// ESP packets of an SPI that was given out and has no keys yet wait for them here. A peer that
// answers a rekey may send under the new SA as soon as it has agreed (RFC 7296 §2.8: it MAY), while
// the end that asked still computes the keys. What was held goes the way of packets that come now:
// nothing is believed of it before.
//
// One worker's. Whoever sees an SPI on its way can fill this: each SPI has its share, and when all
// is taken the oldest packet of the SPI that has the most makes room.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "dataplane/sa.h"

namespace espalier::dataplane {

class EarlyPackets {
 public:
  static constexpr std::size_t kSpis = 64;
  static constexpr std::size_t kPackets = 2048;        // of all SPIs
  static constexpr std::size_t kOfOne = kPackets / 2;  // of an SPI: 10 ms of 1.2 Gbit/s
  static constexpr std::size_t kBytes = 2048;          // of a packet; longer ones do not wait
  static constexpr std::int64_t kPatienceNs = 5'000'000'000;  // a slow key exchange, and more

  struct Held {
    ifaces::Endpoint peer;
    std::int64_t until_ns;
    std::uint16_t length;
    std::uint16_t next;
    std::uint8_t tos;
    Encapsulation encapsulation;
  };
  // Of an SPI, the oldest first.
  struct Line {
    SadKey key;
    std::uint16_t first = kNone, last = kNone;
    std::uint16_t count = 0;
  };

  EarlyPackets();

  [[nodiscard]] bool empty() const noexcept { return waiting_ == 0 && leaving_ == kNone; }
  // False: a packet is lost, this one or an older one.
  [[nodiscard]] bool hold(const SadKey& key, std::span<const std::uint8_t> esp, Encapsulation how,
                          std::uint8_t tos, const ifaces::Endpoint& peer,
                          std::int64_t now_ns) noexcept;

  // Those with a count of 0 are free.
  [[nodiscard]] std::span<Line> lines() noexcept { return lines_; }
  // Null if nothing of the SPI waits.
  [[nodiscard]] Line* find(const SadKey& key) noexcept;
  // Takes the oldest packet out of a line that has one; it and its bytes stay until retire().
  [[nodiscard]] Held& take(Line& line) noexcept;
  [[nodiscard]] std::uint8_t* bytes(const Held& held) noexcept;
  // Empties a line; returns how many packets that were.
  std::size_t forget(Line& line) noexcept;
  // The same for those of its packets that have waited too long.
  std::size_t expire(Line& line, std::int64_t now_ns) noexcept;
  // What was taken before is free. Not in a turn that has taken some: its writes may be queued.
  void retire() noexcept;

 private:
  static constexpr std::uint16_t kNone = 0xffff;
  // In front of a packet, as in an engine's buffers: what is opened in place may grow downwards.
  static constexpr std::size_t kHeadroom = 64;
  static constexpr std::size_t kStride = kHeadroom + kBytes;

  [[nodiscard]] Line* line_of(const SadKey& key) noexcept;
  [[nodiscard]] std::uint16_t free_slot() noexcept;
  std::uint16_t pop(Line& line) noexcept;
  void give_back(std::uint16_t slot) noexcept;

  struct Deallocate {
    void operator()(Held* slots) const noexcept {
      std::allocator<Held>().deallocate(slots, kPackets);
    }
  };

  // Not written before there is something to hold, nor constructed: no memory until then.
  std::unique_ptr<Held[], Deallocate> slots_;
  std::unique_ptr<std::uint8_t[]> bytes_;
  std::array<Line, kSpis> lines_{};
  std::size_t waiting_ = 0;
  std::uint16_t untouched_ = 0;  // slots from here on were never used
  std::uint16_t free_ = kNone;   // a chain, as are:
  std::uint16_t leaving_ = kNone;
};

}  // namespace espalier::dataplane
