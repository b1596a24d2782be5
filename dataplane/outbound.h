// From the TUN to the outer socket, in processing order: cut the super-packet, find policy and SA,
// reserve sequence numbers, frame, seal, send.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "dataplane/device.h"
#include "dataplane/held_packets.h"
#include "dataplane/icmp_sender.h"
#include "dataplane/mss.h"
#include "dataplane/reporter.h"
#include "dataplane/segment.h"
#include "dataplane/transmitter.h"

namespace espalier::dataplane {

// One worker's outbound half.
class Outbound {
 public:
  Outbound(unsigned worker, ifaces::Engine& engine, WorkerCounters& counters, EventQueue& events);

  // Takes one TUN read: a VnetHdr and a packet, and kTunTailroom bytes behind it, all of which must
  // stay until the turn ends and may be written to.
  void add(Device& device, std::uint8_t* data, std::uint32_t len) noexcept;

  // A turn starts; `now_ns`: steady clock.
  void begin_turn(std::int64_t now_ns) noexcept {
    now_ns_ = now_ns;
    reporter_.begin_turn(now_ns);
    icmp_.begin_turn(now_ns);
  }
  // Once a turn, first of all: packets that have waited for an SA go on, or wait no more.
  // `device_of`: of a port, as it is now; null if there is none.
  template <class DeviceOf>
  void retry(const DeviceOf& device_of) noexcept {
    if (held_.empty()) [[likely]]
      return;
    for (HeldPackets::Held& held : held_.slots())
      if (held.length != 0) retry(held, device_of(held.port));
  }
  // The turn is over: everything added is sealed and queued.
  void end_turn() noexcept;

  [[nodiscard]] IcmpSender& icmp() noexcept { return icmp_; }
  [[nodiscard]] Transmitter& transmitter() noexcept { return transmitter_; }

  // The rules by which packets go, also for who only wants to know (explain.h).

  // Where a packet goes, or why it does not.
  struct Found {
    OutboundSa* sa;
    Drop reason;
    const Policy* policy;
  };
  // `policy`: what the device's policies have for `key`.
  [[nodiscard]] static Found choose(const Device& device, const Policy* policy,
                                    const InnerKey& key) noexcept;
  // What of the inner packets of one SA passes, in bytes.
  struct Room {
    std::size_t longest;       // longer: see fit()
    std::size_t unfragmented;  // longer: without DF, and alone, as the kernel is to fragment it
    std::size_t tfc;           // shorter: padded to this
    MssLimit mss;
  };
  [[nodiscard]] static Room room_of(const OutboundSa& sa, const ifaces::Endpoint& to,
                                    std::int64_t now_ns) noexcept;
  enum class Fit : std::uint8_t { whole, in_fragments, not_at_all };
  // `df`: the inner packet may not be fragmented.
  [[nodiscard]] static Fit fit(std::size_t length, bool ipv6, bool df, const Room& room) noexcept;

 private:
  // Reads looked up together, so that the cache misses of their lookups overlap.
  static constexpr std::size_t kBatch = 64;

  struct Item {
    std::span<std::uint8_t> packet;
    SegmentPlan plan;
    InnerKey key;
    Device* device;
    const Policy* policy;  // of a head
    OutboundSa* sa;
    bool as_before;  // device and flow are those of the item before; otherwise it is a head
  };

  void run_batch() noexcept;
  void find_policies() noexcept;
  [[nodiscard]] static Found resolve(const Device& device, const Policy* policy) noexcept;
  void refuse(const Item& item, Drop reason, const Policy* trap = nullptr) noexcept;
  // Why `packets` of the SA may not leave; the SA counts them, and it is told.
  [[nodiscard]] Drop stop(OutboundSa& sa, std::uint64_t packets, bool by_lifetime) noexcept;
  void tell(const Item& item, IcmpReason reason, std::size_t mtu = 0) noexcept;
  [[nodiscard]] bool hold(const Item& item) noexcept;
  void retry(HeldPackets::Held& held, Device* device) noexcept;

  void encap(std::span<Item> items) noexcept;
  // Of the SA that encap() has chosen. `wanted`: packets of all items.
  void send(OutboundSa& sa, std::span<const Item> items, std::uint64_t wanted,
            const Room& room) noexcept;
  void too_long(OutboundSa& sa, const Item& item, const Room& room) noexcept;
  void send_fragments(OutboundSa& sa, const Item& item, const Room& room) noexcept;
  // The numbers of a run of packets. Fewer than `wanted` where the SA has no more, or its lifetime
  // admits fewer: the rest is for the caller to count as lost.
  struct Numbers {
    std::uint64_t first, count;
    Drop why;
  };
  [[nodiscard]] Numbers reserve(OutboundSa& sa, const Limits* limits, std::uint64_t wanted,
                                std::uint64_t admitted) noexcept;
  template <class Write>
  void frame(const OutboundSa& sa, const crypto::SuiteInfo& suite, std::uint64_t seq,
             std::size_t length, const Room& room, OuterFields outer, const Write& write) noexcept;
  void frame_whole(const OutboundSa& sa, const crypto::SuiteInfo& suite, std::uint64_t seq,
                   const Item& item, const Room& room, OuterFields outer) noexcept;

  unsigned worker_;
  WorkerCounters& counters_;
  Reporter reporter_;
  Transmitter transmitter_;
  IcmpSender icmp_;
  HeldPackets held_;
  std::int64_t now_ns_ = 0;
  std::size_t count_ = 0;
  std::array<Item, kBatch> items_;
  std::unique_ptr<std::uint8_t[]> scratch_;  // a segment that is to be fragmented
  std::size_t head_count_ = 0;
  std::array<std::uint8_t, kBatch> heads_{};  // which items
};

}  // namespace espalier::dataplane
