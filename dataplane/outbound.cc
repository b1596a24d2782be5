#include "dataplane/outbound.h"

#include <netinet/in.h>

#include <algorithm>
#include <cstring>

#include "dataplane/esp.h"
#include "dataplane/esp_encap.h"
#include "dataplane/fragment.h"

namespace espalier::dataplane {
namespace {

// From our own end, is it what `sa` has sent? A route that covers the peer would have led it here,
// and once round the loop it would be two packets, then three (the kernel's VTI: collisions).
bool is_outer(const InnerKey& key, const OutboundSa& sa) noexcept {
  if (!same(key.destination, words(sa.peer->get().address))) return false;
  if (sa.encapsulation == Encapsulation::esp) return key.protocol == IPPROTO_ESP;
  return key.protocol == IPPROTO_UDP && key.has_ports && key.source_port == sa.socket->local.port;
}

constexpr std::size_t kMinMtu4 = 68;          // RFC 791 §3.2
constexpr std::size_t kMinMtu6 = 1280;        // RFC 8200 §5
constexpr std::size_t kScratchBytes = 65536;  // more than any IP packet

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

// How many of `wanted` packets the hard limit of packets leaves this worker.
std::uint64_t claim(OutboundSa& sa, const Limits& limits, std::uint64_t wanted) noexcept {
  if (limits.hard_packets == Limits::kNever) [[likely]]
    return wanted;
  return sa.claim(wanted, limits.hard_packets);
}

// What of a run was read from which device: added up once a device, which is one as a rule.
class DeviceTally {
 public:
  DeviceTally(unsigned worker, Device& device, std::uint64_t packets) noexcept
      : worker_(worker), device_(&device), packets_(packets) {}
  [[nodiscard]] Device& device() const noexcept { return *device_; }
  // `packets` and `bytes`: of the run so far.
  void turn_to(Device& next, std::uint64_t packets, std::uint64_t bytes) noexcept {
    DeviceCounters& counters = device_->counters[worker_];
    bump(counters.tx_packets, packets - packets_);
    bump(counters.tx_bytes, bytes - bytes_);
    device_ = &next;
    packets_ = packets;
    bytes_ = bytes;
  }

 private:
  unsigned worker_;
  Device* device_;
  std::uint64_t packets_;
  std::uint64_t bytes_ = 0;
};

}  // namespace

Outbound::Outbound(unsigned worker, ifaces::Engine& engine, WorkerCounters& counters,
                   EventQueue& events)
    : worker_(worker),
      counters_(counters),
      reporter_(events),
      transmitter_(worker, engine, counters),
      icmp_(engine),
      scratch_(std::make_unique<std::uint8_t[]>(kScratchBytes)) {}

void Outbound::add(Device& device, std::uint8_t* data, std::uint32_t len) noexcept {
  if (count_ == kBatch) run_batch();
  Item& item = items_[count_];
  ifaces::VnetHdr hdr{};
  if (len <= sizeof hdr) return counters_.drop(Drop::malformed_inner);
  std::memcpy(&hdr, data, sizeof hdr);
  item.packet = {data + sizeof hdr, len - sizeof hdr};
  if (!parse_inner(item.packet, item.key)) return counters_.drop(Drop::malformed_inner);
  if (hdr.gso_type == ifaces::kVnetGsoNone && (hdr.flags & ifaces::kVnetNeedsCsum) == 0 &&
      item.key.length == item.packet.size()) {
    plan_whole(item.packet.size(), item.plan);
  } else if (!plan_segments(hdr, item.packet, item.plan)) {
    return counters_.drop(Drop::malformed_inner);
  }
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

Outbound::Found Outbound::resolve(const Device& device, const Policy* policy) noexcept {
  if (policy == nullptr) return {nullptr, Drop::no_policy, nullptr};
  switch (policy->action) {
    case PolicyAction::protect: {
      const bool compare = policy->compare_ends.load(std::memory_order_acquire);
      OutboundSa* sa = policy->sa.load(std::memory_order_acquire);
      if ((compare || policy->compare_ends.load(std::memory_order_relaxed)) && sa != nullptr &&
          !ends_fit(device, *sa)) [[unlikely]]
        sa = nullptr;
      return {sa, Drop::no_sa, policy};
    }
    case PolicyAction::bypass:  // a TUN has no way round the tunnel
      return {nullptr, Drop::policy_bypass, policy};
    case PolicyAction::discard:
      break;
  }
  return {nullptr, Drop::policy_discard, policy};
}

Outbound::Found Outbound::choose(const Device& device, const Policy* policy,
                                 const InnerKey& key) noexcept {
  const Found found = resolve(device, policy);
  if (found.sa != nullptr && same(key.source, found.sa->socket->local_words) &&
      is_outer(key, *found.sa)) [[unlikely]]
    return {nullptr, Drop::loop, nullptr};
  return found;
}

void Outbound::tell(const Item& item, IcmpReason reason, std::size_t mtu) noexcept {
  icmp_.answer(item.device->counters[worker_], item.packet, reason, segment_length(item.plan, 0),
               static_cast<std::uint32_t>(mtu));
}

// It does not go on in any form; its sender is told (RFC 4301 §7.4).
void Outbound::refuse(const Item& item, Drop reason, const Policy* trap) noexcept {
  const bool asks = reason == Drop::no_sa && trap != nullptr && trap->spec.trap;
  if (asks) {
    reporter_.acquire(*trap, *item.device, item.key, item.plan.count);
    if (hold(item)) return;
  }
  counters_.drop(reason, item.plan.count);
  bump(item.device->counters[worker_].tx_no_sa, item.plan.count);  // whatever the reason (vti_xmit)
  // An SA is on its way: an answer would end the connection that asks for it.
  if (asks) return;
  if (reason == Drop::loop) return bump(item.device->counters[worker_].tx_loops, item.plan.count);
  tell(item, reason == Drop::policy_discard ? IcmpReason::prohibited : IcmpReason::unreachable);
}

bool Outbound::hold(const Item& item) noexcept {
  constexpr std::size_t kHeader = sizeof(ifaces::VnetHdr);
  return held_.hold(item.device->id, item.device->ports[worker_], item.key,
                    static_cast<std::uint32_t>(item.plan.count),
                    {item.packet.data() - kHeader, item.packet.size() + kHeader}, now_ns_);
}

void Outbound::retry(HeldPackets::Held& held, Device* device) noexcept {
  if (held.leaving || device == nullptr || device->id != held.device) return held_.release(held);
  if (held.until_ns < now_ns_) {
    counters_.drop(Drop::no_sa, held.packets);
    bump(device->counters[worker_].tx_no_sa, held.packets);
    return held_.release(held);
  }
  const Found found = resolve(*device, device->policies.find(held.key));
  const bool still_asks = found.sa == nullptr && found.policy != nullptr && found.policy->spec.trap;
  if (still_asks && found.reason == Drop::no_sa) return;
  // Its bytes stay until the turn ends.
  held.leaving = true;
  add(*device, held.bytes.data(), held.length);
}

void Outbound::run_batch() noexcept {
  find_policies();
  std::size_t good = 0;
  Found found{};
  for (std::size_t i = 0; i < count_; ++i) {
    Item& item = items_[i];
    if (!item.as_before) found = choose(*item.device, item.policy, item.key);
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

Outbound::Room Outbound::room_of(const OutboundSa& sa, const ifaces::Endpoint& to,
                                 std::int64_t now_ns) noexcept {
  const crypto::SuiteInfo& suite = crypto::info(sa.suite);
  constexpr std::size_t kMaxPacket = 65535;
  const std::uint32_t path = sa.peer->path().get(now_ns);
  Room room{inner_mtu(suite, kMaxPacket, false, true), kMaxPacket, 0, {}};
  if (path == 0 && sa.tfc_padding == 0 && sa.mss_clamp == 0) [[likely]]
    return room;

  constexpr std::uint32_t kEthernet = 1500;  // a path that nobody has complained about
  const bool ipv6 = to.address.family == ifaces::Family::v6;
  const bool udp = sa.encapsulation == Encapsulation::udp;
  const std::size_t fits = inner_mtu(suite, path == 0 ? kEthernet : path, ipv6, udp);
  const bool guessed = path == 0 && sa.tfc_padding != kTfcToMtu;
  room.tfc = std::min<std::size_t>(sa.tfc_padding, guessed ? room.longest : fits);
  room.mss = MssLimit(sa.mss_clamp, fits);
  if (path == 0) return room;
  room.unfragmented = fits;
  if (!sa.outer.clear_df) room.longest = fits;
  return room;
}

// Packets of one SA, in order.
void Outbound::encap(std::span<Item> items) noexcept {
  OutboundSa& sa = *items.front().sa;
  const ifaces::Endpoint to = sa.peer->get();
  if (to.address.is_any()) {
    for (const Item& item : items) refuse(item, Drop::no_peer);
    return;
  }
  transmitter_.select(sa, to);
  const Room room = room_of(sa, to, now_ns_);
  std::size_t first = 0;
  std::uint64_t packets = 0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    if (segment_length(items[i].plan, 0) <= room.longest) [[likely]] {
      packets += items[i].plan.count;
      continue;
    }
    send(sa, items.subspan(first, i - first), packets, room);
    too_long(sa, items[i], room);
    first = i + 1;
    packets = 0;
  }
  send(sa, items.subspan(first), packets, room);
}

Outbound::Numbers Outbound::reserve(OutboundSa& sa, const Limits* limits, std::uint64_t wanted,
                                    std::uint64_t admitted) noexcept {
  Numbers numbers{};
  numbers.count = sa.reserve(admitted, numbers.first);
  if (numbers.count < wanted) [[unlikely]] {
    if (limits != nullptr) {
      if (limits->hard_packets != Limits::kNever) sa.unclaim(admitted - numbers.count);
      reporter_.judge(sa, *limits);
    }
    numbers.why = stop(sa, wanted - numbers.count, numbers.count == admitted);
  }
  return numbers;
}

template <class Write>
inline void Outbound::frame(const OutboundSa& sa, const crypto::SuiteInfo& suite, std::uint64_t seq,
                            std::size_t length, const Room& room, OuterFields outer,
                            const Write& write) noexcept {
  const std::size_t padded = std::max(length, room.tfc);
  std::uint8_t* out = transmitter_.place(esp_length(suite, padded), outer);
  std::uint8_t* inner = out + kEspHeader + suite.iv;
  write(inner);
  // RFC 4303 §2.7: the receiver finds the end by the inner header.
  if (padded != length) [[unlikely]]
    std::memset(inner + length, 0, padded - length);
  if (room.mss.v4 != 0) [[unlikely]]
    clamp_mss({inner, length}, room.mss);
  const std::uint8_t next_header = inner[0] >> 4 == 6 ? kNextIpv6 : kNextIpv4;
  esp_frame(sa, suite, seq, out, padded, next_header, transmitter_.op());
}

// A packet that is not cut is sealed out of the TUN's buffer.
inline void Outbound::frame_whole(const OutboundSa& sa, const crypto::SuiteInfo& suite,
                                  std::uint64_t seq, const Item& item, const Room& room,
                                  OuterFields outer) noexcept {
  const std::size_t length = item.plan.length;
  if (item.plan.kind == SegmentPlan::Kind::whole_csum) {
    complete(item.plan, item.packet);
    item.packet.data()[-static_cast<std::ptrdiff_t>(sizeof(ifaces::VnetHdr))] &=
        static_cast<std::uint8_t>(~ifaces::kVnetNeedsCsum);  // `flags`: as the packet is now
  }
  if (room.mss.v4 != 0) [[unlikely]]
    clamp_mss(item.packet, room.mss);
  std::uint8_t* out = transmitter_.place(esp_length(suite, length), outer);
  esp_frame(sa, suite, seq, out, length, item.key.ipv6 ? kNextIpv6 : kNextIpv4, transmitter_.op(),
            item.packet.data());
}

void Outbound::send(OutboundSa& sa, std::span<const Item> items, std::uint64_t wanted,
                    const Room& room) noexcept {
  if (wanted == 0) return;
  const Limits* limits = sa.limits.load(std::memory_order_acquire);
  std::uint64_t admitted = wanted;
  if (limits != nullptr) [[unlikely]]
    admitted = claim(sa, *limits, within(*limits, sa.counters, items));
  const Numbers numbers = reserve(sa, limits, wanted, admitted);
  if (numbers.count < wanted) [[unlikely]] {
    if (numbers.count == 0) {
      for (const Item& item : items) refuse(item, numbers.why);
      return;
    }
    counters_.drop(numbers.why, wanted - numbers.count);
  }
  std::uint64_t seq = numbers.first;
  const std::uint64_t end = seq + numbers.count;
  std::uint64_t bytes = 0;
  const crypto::SuiteInfo& suite = crypto::info(sa.suite);
  const bool from_where_it_is = suite.mode == crypto::Mode::gcm && room.tfc == 0;
  DeviceTally tally(worker_, *items.front().device, seq);
  const bool by_tos_alone = sa.outer.by_tos_alone();
  unsigned tos = 0x100;  // none yet
  OuterFields fields;
  for (const Item& item : items) {
    if (&tally.device() != item.device) [[unlikely]]
      tally.turn_to(*item.device, seq, bytes);
    if (item.key.tos != tos || !by_tos_alone) {
      tos = item.key.tos;
      fields = sa.outer.fields(item.packet.data(), item.key.ipv6, item.key.tos);
    }
    OuterFields outer = fields;
    if (segment_length(item.plan, 0) > room.unfragmented) [[unlikely]]
      outer.make_fragments();
    if (from_where_it_is && item.plan.headers == 0) {
      if (seq == end) break;
      frame_whole(sa, suite, seq, item, room, outer);
      ++seq;
      bytes += item.plan.length;
      continue;
    }
    for (std::size_t i = 0; i < item.plan.count && seq < end; ++i, ++seq) {
      const std::size_t length = segment_length(item.plan, i);
      frame(sa, suite, seq, length, room, outer,
            [&](std::uint8_t* inner) { write_segment(item.plan, item.packet, i, inner); });
      bytes += length;
    }
  }
  tally.turn_to(tally.device(), seq, bytes);
  sa.counters.count(numbers.count, bytes, now_ns_);
  if (limits != nullptr) [[unlikely]]
    reporter_.judge(sa, *limits);
}

Outbound::Fit Outbound::fit(std::size_t length, bool ipv6, bool df, const Room& room) noexcept {
  if (length <= room.longest) return Fit::whole;
  if (!ipv6) return df || room.longest < kMinMtu4 ? Fit::not_at_all : Fit::in_fragments;
  // Nobody sends IPv6 in smaller pieces: where the path takes less, the outer packet is fragmented
  // (RFC 2473 §7.2).
  return length <= kMinMtu6 ? Fit::whole : Fit::not_at_all;
}

// An inner packet that the path does not carry: its sender is told, or it is cut (RFC 4301 §8).
void Outbound::too_long(OutboundSa& sa, const Item& item, const Room& room) noexcept {
  const std::size_t length = segment_length(item.plan, 0);
  const bool df = !item.key.ipv6 && (item.packet[6] & 0x40) != 0;
  switch (fit(length, item.key.ipv6, df, room)) {
    case Fit::whole:
      return send(sa, {&item, 1}, item.plan.count, room);
    case Fit::in_fragments:
      return send_fragments(sa, item, room);
    case Fit::not_at_all:
      break;
  }
  const std::size_t mtu = item.key.ipv6 ? std::max(room.longest, kMinMtu6) : room.longest;
  counters_.drop(Drop::too_big, item.plan.count);
  tell(item, IcmpReason::too_big, mtu);
}

void Outbound::send_fragments(OutboundSa& sa, const Item& item, const Room& room) noexcept {
  const crypto::SuiteInfo& suite = crypto::info(sa.suite);
  const OuterFields outer = sa.outer.fields(item.packet.data(), item.key.ipv6, item.key.tos);
  DeviceCounters& counters = item.device->counters[worker_];
  const Limits* limits = sa.limits.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < item.plan.count; ++i) {
    const std::size_t length = segment_length(item.plan, i);
    write_segment(item.plan, item.packet, i, scratch_.get());
    Fragmenter fragments({scratch_.get(), length}, room.longest);
    const std::uint64_t wanted = fragments.count();
    std::uint64_t admitted = wanted;
    if (limits != nullptr) {
      admitted = limits->admitted(wanted, sa.counters.packets.load(std::memory_order_relaxed),
                                  sa.counters.bytes.load(std::memory_order_relaxed));
      admitted = claim(sa, *limits, admitted);
    }
    const Numbers numbers = reserve(sa, limits, wanted, admitted);
    if (numbers.count < wanted) counters_.drop(numbers.why, wanted - numbers.count);
    if (numbers.count == 0) continue;
    std::uint64_t bytes = 0;
    for (std::uint64_t seq = numbers.first; seq < numbers.first + numbers.count; ++seq) {
      const std::size_t piece = fragments.next_length();
      frame(sa, suite, seq, piece, room, outer,
            [&](std::uint8_t* inner) { fragments.write_next(inner); });
      bytes += piece;
    }
    sa.counters.count(numbers.count, bytes, now_ns_);
    if (limits != nullptr) reporter_.judge(sa, *limits);
    bump(counters.tx_packets, 1);
    bump(counters.tx_bytes, length);
  }
}

}  // namespace espalier::dataplane
