#include "dataplane/outbound.h"

#include <netinet/in.h>

#include <algorithm>
#include <cstring>

#include "dataplane/esp.h"
#include "dataplane/esp_encap.h"

namespace espalier::dataplane {
namespace {

// From our own end, is it what `sa` has sent? A route that covers the peer would have led it here,
// and once round the loop it would be two packets, then three (the kernel's VTI: collisions).
bool is_outer(const InnerKey& key, const OutboundSa& sa) noexcept {
  if (!same(key.destination, words(sa.peer->get().address))) return false;
  if (sa.encapsulation == Encapsulation::esp) return key.protocol == IPPROTO_ESP;
  return key.protocol == IPPROTO_UDP && key.has_ports && key.source_port == sa.socket->local.port;
}

}  // namespace

namespace {

// How many of the packets still pass under the SA's hard limits.
template <class Items>
std::uint64_t within(const Limits& limits, const SaCounters& counters,
                     const Items& items) noexcept {
  std::uint64_t packets = counters.packets.load(std::memory_order_relaxed);
  std::uint64_t bytes = counters.bytes.load(std::memory_order_relaxed);
  std::uint64_t admitted = 0;
  for (const auto& item : items) {
    for (std::size_t i = 0; i < item.plan.count; ++i, ++admitted, ++packets) {
      if (!limits.admits(packets, bytes)) return admitted;
      bytes += segment_length(item.plan, i);
    }
  }
  return admitted;
}

}  // namespace

Outbound::Outbound(unsigned worker, ifaces::Engine& engine, WorkerCounters& counters,
                   EventQueue& events)
    : worker_(worker),
      counters_(counters),
      reporter_(events),
      transmitter_(worker, engine, counters),
      icmp_(engine) {}

void Outbound::add(Device& device, std::uint8_t* data, std::uint32_t len) noexcept {
  if (count_ == kBatch) run_batch();
  Item& item = items_[count_];
  ifaces::VnetHdr hdr{};
  if (len <= sizeof hdr) return counters_.drop(Drop::malformed_inner);
  std::memcpy(&hdr, data, sizeof hdr);
  item.packet = {data + sizeof hdr, len - sizeof hdr};
  if (!plan_segments(hdr, item.packet, item.plan) || !parse_inner(item.packet, item.key))
    return counters_.drop(Drop::malformed_inner);
  item.device = &device;
  item.as_before = count_ > 0 && items_[count_ - 1].device == &device &&
                   same_flow(items_[count_ - 1].key, item.key);
  if (!item.as_before) {
    device.policies.prefetch(item.key);
    heads_[head_count_++] = static_cast<std::uint8_t>(count_);
  }
  ++count_;
}

void Outbound::end_turn() noexcept {
  run_batch();
  transmitter_.submit();
  reporter_.end_turn();
}

// In three passes, so that the cache misses of the batch overlap.
void Outbound::find_policies() noexcept {
  const std::span<const std::uint8_t> heads(heads_.data(), head_count_);
  for (const std::uint8_t i : heads) items_[i].device->policies.prefetch_bucket(items_[i].key);
  for (const std::uint8_t i : heads) {
    items_[i].policy = items_[i].device->policies.find(items_[i].key);
    __builtin_prefetch(items_[i].policy);
  }
  head_count_ = 0;
}

Outbound::Found Outbound::resolve(const Policy* policy) noexcept {
  if (policy == nullptr) return {nullptr, Drop::no_policy, nullptr};
  switch (policy->action) {
    case PolicyAction::protect:
      return {policy->sa.load(std::memory_order_acquire), Drop::no_sa, policy};
    case PolicyAction::bypass:  // a TUN has no way round the tunnel
      return {nullptr, Drop::policy_bypass, policy};
    case PolicyAction::discard:
      break;
  }
  return {nullptr, Drop::policy_discard, policy};
}

// It does not go on in any form; its sender is told (RFC 4301 §7.4).
void Outbound::refuse(const Item& item, Drop reason, const Policy* trap) noexcept {
  counters_.drop(reason, item.plan.count);
  DeviceCounters& device = item.device->counters[worker_];
  if (reason == Drop::no_sa) bump(device.tx_no_sa, item.plan.count);
  if (reason == Drop::no_sa && trap != nullptr && trap->spec.trap) {
    // An SA is on its way: an answer would end the connection that asks for it.
    reporter_.acquire(*trap, *item.device, item.key, item.plan.count);
    return;
  }
  if (reason == Drop::loop) return bump(device.tx_loops, item.plan.count);
  icmp_.answer(device, item.packet,
               reason == Drop::policy_discard ? IcmpReason::prohibited : IcmpReason::unreachable,
               segment_length(item.plan, 0));
}

void Outbound::run_batch() noexcept {
  find_policies();
  std::size_t good = 0;
  Found found{};
  for (std::size_t i = 0; i < count_; ++i) {
    Item& item = items_[i];
    if (!item.as_before) {
      found = resolve(item.policy);
      if (found.sa != nullptr && same(item.key.source, found.sa->socket->local_words) &&
          is_outer(item.key, *found.sa)) [[unlikely]]
        found = {nullptr, Drop::loop, nullptr};
    }
    if (found.sa == nullptr) [[unlikely]] {
      refuse(item, found.reason, found.policy);
      continue;
    }
    item.sa = found.sa;
    __builtin_prefetch(found.sa);
    if (good != i) items_[good] = item;
    ++good;
  }
  count_ = 0;
  for (std::size_t first = 0; first < good;) {
    std::size_t last = first + 1;
    while (last < good && items_[last].sa == items_[first].sa) ++last;
    encap({&items_[first], last - first});
    first = last;
  }
}

Drop Outbound::stop(OutboundSa& sa, std::uint64_t packets, bool by_lifetime) noexcept {
  if (by_lifetime || sa.life.expired()) {
    sa.after_end.fetch_add(packets, std::memory_order_relaxed);
    return Drop::expired;
  }
  sa.exhausted.fetch_add(packets, std::memory_order_relaxed);
  reporter_.seq_exhausted(sa, packets);
  return Drop::seq_exhausted;
}

// Packets of one SA, in order.
void Outbound::encap(std::span<Item> items) noexcept {
  OutboundSa& sa = *items.front().sa;
  std::uint64_t wanted = 0;
  for (const Item& item : items) wanted += item.plan.count;
  const ifaces::Endpoint to = sa.peer->get();
  if (to.address.is_any()) {
    for (const Item& item : items) refuse(item, Drop::no_peer);
    return;
  }

  const Limits* limits = sa.limits.load(std::memory_order_acquire);
  std::uint64_t admitted = wanted;
  if (limits != nullptr) [[unlikely]]
    admitted = within(*limits, sa.counters, items);
  std::uint64_t seq = 0;
  const std::uint64_t usable = sa.reserve(admitted, seq);
  if (usable < wanted) [[unlikely]] {
    if (limits != nullptr) reporter_.judge(sa, *limits);
    const Drop reason = stop(sa, wanted - usable, usable == admitted);
    if (usable == 0) {
      for (const Item& item : items) refuse(item, reason);
      return;
    }
    counters_.drop(reason, wanted - usable);
  }
  const std::uint64_t end = seq + usable;

  const crypto::SuiteInfo& suite = crypto::info(sa.suite);
  transmitter_.select(sa, to);
  std::uint64_t packets = 0;
  std::uint64_t bytes = 0;
  for (const Item& item : items) {
    const std::uint64_t packets_before = packets;
    const std::uint64_t bytes_before = bytes;
    const std::uint8_t next_header = item.key.ipv6 ? kNextIpv6 : kNextIpv4;
    for (std::size_t i = 0; i < item.plan.count && seq < end; ++i, ++seq) {
      const std::size_t length = segment_length(item.plan, i);
      const std::size_t esp = esp_length(suite, length);
      if (esp > kMaxDatagram) {
        counters_.drop(Drop::too_big);
        continue;
      }
      // RFC 6040 §4.1, RFC 4301 §5.1.2.1: DSCP and ECN are copied outwards.
      std::uint8_t* out = transmitter_.place(esp, item.key.tos);
      write_segment(item.plan, item.packet, i, out + kEspHeader + suite.iv);
      esp_frame(sa, suite, seq, out, length, next_header, transmitter_.op());
      ++packets;
      bytes += length;
    }
    DeviceCounters& counters = item.device->counters[worker_];
    bump(counters.tx_packets, packets - packets_before);
    bump(counters.tx_bytes, bytes - bytes_before);
  }
  sa.counters.count(packets, bytes, now_ns_);
  if (limits != nullptr) [[unlikely]]
    reporter_.judge(sa, *limits);
}

}  // namespace espalier::dataplane
