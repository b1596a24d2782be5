// What a worker tells of its packets: which events they are, and how often one is told.
#pragma once

#include <cstdint>

#include "dataplane/esp_decap.h"
#include "dataplane/event_queue.h"
#include "dataplane/sa.h"
#include "dataplane/spd.h"

namespace espalier::dataplane {

// One worker's. Everything here is off the path of a packet that passes.
class Reporter {
 public:
  explicit Reporter(EventQueue& queue) noexcept : queue_(queue) {}

  // `now_ns`: steady clock.
  void begin_turn(std::int64_t now_ns) noexcept { now_ns_ = now_ns; }
  void end_turn() noexcept { queue_.ring(); }

  // Outbound.
  void acquire(const Policy& policy, const Device& device, const InnerKey& key,
               std::uint64_t packets) noexcept;
  void seq_exhausted(OutboundSa& sa, std::uint64_t packets) noexcept;
  // To be called after packets were counted: have limits been reached?
  void judge(OutboundSa& sa, const Limits& limits) noexcept;

  // Inbound.
  void no_spi(const OuterSocket& socket, std::uint32_t spi, const ifaces::Endpoint& peer) noexcept;
  void lost(InboundSa& sa, const InboundPacket& packet) noexcept;  // by its reason
  void mapping_changed(InboundSa& sa, const ifaces::Endpoint& before, const ifaces::Endpoint& now,
                       std::uint32_t moves) noexcept;
  void judge(InboundSa& sa, const Limits& limits) noexcept;

 private:
  [[nodiscard]] Event event(EventKind kind) const noexcept;
  [[nodiscard]] Event event(EventKind kind, const SaCommon& sa, Direction direction) const noexcept;
  template <class Sa>
  void judge(Sa& sa, const Limits& limits, Direction direction) noexcept;
  // What is told once; `what` of LifeState.
  void tell(SaCommon& sa, const Event& event, std::uint8_t what) noexcept;

  EventQueue& queue_;
  EventLimiter no_spi_;
  std::int64_t now_ns_ = 0;
};

// Of an SA, without a time.
[[nodiscard]] Event sa_event(EventKind kind, const SaCommon& sa, Direction direction) noexcept;

// Ends the SA. True for the first caller: the one who tells of it.
bool expire(OutboundSa& sa) noexcept;
bool expire(InboundSa& sa) noexcept;

}  // namespace espalier::dataplane
