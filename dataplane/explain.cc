#include "dataplane/explain.h"

#include <algorithm>

#include "dataplane/esp.h"
#include "dataplane/fragment.h"
#include "dataplane/outbound.h"

namespace espalier::dataplane {
namespace {

// Why the SA takes no packet at all.
std::optional<Drop> closed(const OutboundSa& sa) noexcept {
  if (sa.peer->get().address.is_any()) return Drop::no_peer;
  const Limits* limits = sa.limits.load(std::memory_order_acquire);
  if (sa.life.expired() ||
      (limits != nullptr && !limits->admits(sa.counters.packets.load(std::memory_order_relaxed),
                                            sa.counters.bytes.load(std::memory_order_relaxed))))
    return Drop::expired;
  if (sa.next_seq.load(std::memory_order_relaxed) > sa.seq_limit.load(std::memory_order_relaxed))
    return Drop::seq_exhausted;
  return std::nullopt;
}

std::size_t outer_length(const OutboundSa& sa, std::size_t inner) noexcept {
  const bool ipv6 = sa.peer->get().address.family == ifaces::Family::v6;
  const std::size_t udp = sa.encapsulation == Encapsulation::udp ? kUdpHeader : 0;
  return (ipv6 ? 40 : 20) + udp + esp_length(crypto::info(sa.suite), inner);
}

}  // namespace

Explanation explain(const Device& device, std::span<const std::uint8_t> packet,
                    std::int64_t now_ns) noexcept {
  Explanation out;
  InnerKey key{};
  if (!parse_inner(packet, key)) {
    out.drop = Drop::malformed_inner;
    return out;
  }
  const Outbound::Found found = Outbound::choose(device, device.policies.find(key), key);
  if (found.policy != nullptr) out.policy = found.policy->id;
  if (found.sa == nullptr) {
    out.drop = found.reason;
    return out;
  }
  const OutboundSa& sa = *found.sa;
  out.sa = sa.id;
  out.drop = closed(sa);
  const Outbound::Room room = Outbound::room_of(sa, sa.peer->get(), now_ns);
  if (sa.peer->path().get(now_ns) != 0) out.inner_mtu = room.unfragmented;
  if (out.drop) return out;
  const bool df = !key.ipv6 && (packet[6] & 0x40) != 0;
  switch (Outbound::fit(packet.size(), key.ipv6, df, room)) {
    case Outbound::Fit::whole:
      out.pieces = 1;
      out.outer_length = outer_length(sa, std::max(packet.size(), room.tfc));
      break;
    case Outbound::Fit::in_fragments: {
      Fragmenter fragments(packet, room.longest);
      out.pieces = fragments.count();
      out.outer_length = outer_length(sa, std::max(fragments.next_length(), room.tfc));
      break;
    }
    case Outbound::Fit::not_at_all:
      out.drop = Drop::too_big;
      break;
  }
  return out;
}

}  // namespace espalier::dataplane
