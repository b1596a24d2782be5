// From the outer socket to the TUN, in processing order: tell ESP from the rest, find the SA, check
// and open a run, deliver, coalesce, write.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "dataplane/coalesce.h"
#include "dataplane/counters.h"
#include "dataplane/early_packets.h"
#include "dataplane/esp_decap.h"
#include "dataplane/reporter.h"
#include "dataplane/sad.h"
#include "ifaces/engine.h"

namespace espalier::dataplane {

// One worker's inbound half.
class Inbound final : private TunSink {
 public:
  Inbound(unsigned worker, ifaces::Engine& engine, const Sad& sad, WorkerCounters& counters,
          EventQueue& events, ifaces::TunOffloads offloads);

  // Takes one receive of an outer socket; its bytes are decrypted in place and must stay until the
  // turn ends, as must `received`.
  void add(const OuterSocket& socket, const ifaces::Received& received) noexcept;

  // A turn starts; `now_ns`: steady clock.
  void begin_turn(std::int64_t now_ns) noexcept {
    now_ns_ = now_ns;
    ike_used_ = 0;
    reporter_.begin_turn(now_ns);
    if (!early_.empty()) [[unlikely]]
      retry_early();
  }
  // For a turn with many SAs: both for each receive, one after the other, before add().
  [[nodiscard]] bool worth_prefetching() const noexcept { return sad_.worth_prefetching(); }
  void prefetch_slot(const OuterSocket& socket, const ifaces::Received& received) const noexcept;
  void prefetch_sa(const OuterSocket& socket, const ifaces::Received& received) const noexcept;
  // The turn is over: everything added is delivered.
  void end_turn() noexcept;

 private:
  void add_datagram(const OuterSocket& socket, const ifaces::Received& received, std::uint8_t* data,
                    std::uint32_t len) noexcept;
  void hold(const SadKey& key, const OuterSocket& socket, const ifaces::Received& received,
            std::span<const std::uint8_t> esp) noexcept;
  void retry_early() noexcept;
  void release(EarlyPackets::Line& line, InboundSa& sa) noexcept;
  void forward_ike(const OuterSocket& socket, const ifaces::Received& received,
                   std::span<const std::uint8_t> datagram) noexcept;
  void run_batch() noexcept;
  void drop(InboundSa& sa, std::span<const InboundPacket> lost) noexcept;
  void follow(InboundSa& sa, const ifaces::Endpoint& newest) noexcept;
  void deliver(InboundSa& sa, const Binding* binding, std::span<InboundPacket> good) noexcept;
  void write(std::span<const iovec> parts, std::uint16_t packets) noexcept override;

  unsigned worker_;
  ifaces::Engine& engine_;
  const Sad& sad_;
  WorkerCounters& counters_;
  Reporter reporter_;
  Coalescer coalescer_;
  Device* device_ = nullptr;             // whose packets the coalescer holds
  InboundSa* sa_ = nullptr;              // of the run being collected
  const OuterSocket* socket_ = nullptr;  // where it came in
  AddressWords local_{};                 // the outer destination
  std::int64_t now_ns_ = 0;
  EarlyPackets early_;
  // IKE datagrams on their way to the IKE daemon's socket; they stay until the next turn.
  static constexpr std::size_t kIkeBytes = std::size_t{1} << 17;  // the longest one, and many more
  std::unique_ptr<std::uint8_t[]> ike_;
  std::size_t ike_used_ = 0;
  std::size_t count_ = 0;
  std::array<InboundPacket, kDecapBatch> run_;
};

}  // namespace espalier::dataplane
