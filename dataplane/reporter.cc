#include "dataplane/reporter.h"

#include "dataplane/bytes.h"

namespace espalier::dataplane {
namespace {

ifaces::IpAddress address(const AddressWords& words, bool ipv6) noexcept {
  ifaces::IpAddress out;
  out.family = ipv6 ? ifaces::Family::v6 : ifaces::Family::v4;
  store_be(out.bytes.data(), words[0]);
  store_be(out.bytes.data() + 8, words[1]);
  return out;
}

Flow flow_of(const InnerKey& key) noexcept {
  return {address(key.source, key.ipv6), address(key.destination, key.ipv6), key.protocol,
          key.source_port, key.destination_port};
}

}  // namespace

Event sa_event(EventKind kind, const SaCommon& sa, Direction direction) noexcept {
  Event e;
  e.kind = kind;
  e.direction = direction;
  e.sa = sa.id;
  e.spi = sa.spi;
  e.reqid = sa.reqid;
  if (sa.socket != nullptr) e.local = sa.socket->local;
  e.peer = sa.peer->get();
  return e;
}

bool expire(OutboundSa& sa) noexcept {
  const bool first = sa.life.set_expired();
  sa.seq_limit.store(0, std::memory_order_release);  // nobody reserves a number any more
  return first;
}

bool expire(InboundSa& sa) noexcept {
  return sa.life.set_expired();
}

Event Reporter::event(EventKind kind) const noexcept {
  Event e;
  e.kind = kind;
  e.when = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(now_ns_));
  return e;
}

Event Reporter::event(EventKind kind, const SaCommon& sa, Direction direction) const noexcept {
  Event e = sa_event(kind, sa, direction);
  e.when = event(kind).when;
  return e;
}

void Reporter::acquire(const Policy& policy, const Device& device, const InnerKey& key,
                       std::uint64_t packets) noexcept {
  const std::uint32_t count = policy.acquires.take(static_cast<std::uint32_t>(packets), now_ns_);
  if (count == 0) return;
  Event e = event(EventKind::acquire);
  e.policy = policy.id;
  e.device = device.id;
  e.reqid = policy.spec.reqid;
  e.count = count;
  e.flow = flow_of(key);
  queue_.post(e);
}

void Reporter::seq_exhausted(OutboundSa& sa, std::uint64_t packets) noexcept {
  const std::uint32_t count = sa.exhaustions.take(static_cast<std::uint32_t>(packets), now_ns_);
  if (count == 0) return;
  Event e = event(EventKind::seq_exhausted, sa, Direction::out);
  e.seq = sa.seq_limit.load(std::memory_order_relaxed);
  e.count = count;
  queue_.post(e);
}

void Reporter::no_spi(const OuterSocket& socket, std::uint32_t spi,
                      const ifaces::Endpoint& peer) noexcept {
  const std::uint32_t count = no_spi_.take(1, now_ns_);
  if (count == 0) return;
  Event e = event(EventKind::no_spi);
  e.spi = Spi{spi};
  e.count = count;
  e.local = socket.local;
  e.peer = peer;
  queue_.post(e);
}

void Reporter::lost(InboundSa& sa, const InboundPacket& packet) noexcept {
  InboundSa::Audit audit{};
  EventKind kind{};
  switch (packet.reason) {
    case Drop::late:
    case Drop::duplicate:
      audit = InboundSa::Audit::replay;
      kind = EventKind::replay;
      break;
    case Drop::integrity:
      audit = InboundSa::Audit::integrity;
      kind = EventKind::integrity;
      break;
    case Drop::selector_mismatch:
      audit = InboundSa::Audit::selector;
      kind = EventKind::selector_mismatch;
      break;
    default:
      return;
  }
  const std::uint32_t count = sa.audits[static_cast<std::size_t>(audit)].take(1, now_ns_);
  if (count == 0) return;
  Event e = event(kind, sa, Direction::in);
  e.seq = packet.seq;
  e.count = count;
  e.peer = *packet.peer;
  if (kind == EventKind::selector_mismatch) e.flow = flow_of(packet.key);
  queue_.post(e);
}

void Reporter::mapping_changed(InboundSa& sa, const ifaces::Endpoint& before,
                               const ifaces::Endpoint& now, std::uint32_t moves) noexcept {
  const std::uint32_t count =
      sa.audits[static_cast<std::size_t>(InboundSa::Audit::mapping)].take(moves, now_ns_);
  if (count == 0) return;
  Event e = event(EventKind::mapping_changed, sa, Direction::in);
  e.count = count;
  e.old_peer = before;
  e.peer = now;
  tell(sa, e, LifeState::kMoved);
}

void Reporter::tell(SaCommon& sa, const Event& event, std::uint8_t what) noexcept {
  if (queue_.try_post(event)) return;
  sa.life.set_untold(what);
  queue_.leave();
}

template <class Sa>
void Reporter::judge(Sa& sa, const Limits& limits, Direction direction) noexcept {
  const std::uint64_t packets = sa.counters.packets.load(std::memory_order_relaxed);
  const std::uint64_t bytes = sa.counters.bytes.load(std::memory_order_relaxed);
  if (!limits.admits(packets, bytes)) {
    if (expire(sa)) tell(sa, event(EventKind::hard_expire, sa, direction), LifeState::kHard);
  } else if (limits.soft_reached(packets, bytes) && limits.set_soft()) {
    tell(sa, event(EventKind::soft_expire, sa, direction), LifeState::kSoft);
  }
}

void Reporter::judge(OutboundSa& sa, const Limits& limits) noexcept {
  judge(sa, limits, Direction::out);
}

void Reporter::judge(InboundSa& sa, const Limits& limits) noexcept {
  judge(sa, limits, Direction::in);
}

}  // namespace espalier::dataplane
