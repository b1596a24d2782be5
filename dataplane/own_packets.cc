#include "dataplane/own_packets.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "crypto/iv_source.h"
#include "dataplane/esp.h"
#include "dataplane/esp_encap.h"
#include "dataplane/outbound.h"

namespace espalier::dataplane {

void send_dummies(const Workers& workers, OutboundSa& sa, unsigned count, unsigned length) {
  const crypto::SuiteInfo& suite = crypto::info(sa.suite);
  constexpr unsigned kLongest = 9000;
  if (length > kLongest)
    throw std::invalid_argument("a dummy packet of " + std::to_string(length) +
                                " bytes; write at most " + std::to_string(kLongest));
  // To an observer they are like the SA's other packets (RFC 4303 §2.6, §2.7).
  const OuterFields outer(sa.outer.tos_set, sa.outer.hop_limit, sa.outer.clear_df, 0);
  const std::size_t padding = Outbound::room_of(sa, sa.peer->get(), coarse_now_ns()).tfc;
  const std::size_t padded = std::max<std::size_t>(length, padding);
  std::vector<std::uint8_t> packet(esp_length(suite, padded));
  workers.front().call([&](ifaces::Engine& engine) {
    crypto::IvSource ivs;
    ifaces::Endpoint to = sa.peer->get();
    if (sa.encapsulation == Encapsulation::esp) to.port = 0;
    sockaddr_storage address{};
    const socklen_t address_length = to.to(address);
    for (unsigned i = 0; i < count && !to.address.is_any(); ++i) {
      std::uint64_t seq = 0;
      if (sa.life.expired() || sa.reserve(1, seq) == 0) return;
      std::fill(packet.begin(), packet.end(), std::uint8_t{0});
      crypto::AeadOp op{};
      esp_frame(sa, suite, seq, packet.data(), padded, kNextNone, op);
      if (suite.iv_kind == crypto::IvKind::random) ivs.draw(op.text - suite.iv);
      sa.key(0).seal({&op, 1});
      if (!op.good) return;
      engine.send({.port = outer.fragmentable() ? sa.socket->sender_ports.front()
                                                : sa.socket->ports.front(),
                   .tos = outer.tos(),
                   .segment_size = 0,
                   .len = static_cast<std::uint32_t>(packet.size()),
                   .data = packet.data(),
                   .to = &address,
                   .to_len = address_length,
                   .mark = sa.outer_mark,
                   .hop_limit = outer.hop_limit(),
                   .source = sa.socket->source()},
                  0);
      engine.flush();
    }
  });
}

void send_keepalives(const Workers& workers, const Tables& tables, std::chrono::seconds idle) {
  const std::int64_t now_ns = coarse_now_ns();
  const std::int64_t before_ns =
      now_ns - std::chrono::duration_cast<std::chrono::nanoseconds>(idle).count();
  // A NAT's mapping is that of two end points, whichever of their SAs used it last.
  struct Mapping {
    std::int64_t last_ns = 0;
    std::vector<OutboundSa*> sas;
  };
  std::map<std::pair<const OuterSocket*, ifaces::Endpoint>, Mapping> mappings;
  for (OutboundSa* sa : tables.all_outbound()) {
    const ifaces::Endpoint to = sa->peer->get();
    if (sa->encapsulation != Encapsulation::udp || to.address.is_any()) continue;
    Mapping& mapping = mappings[{sa->socket, to}];
    mapping.last_ns =
        std::max({mapping.last_ns, sa->counters.last_packet_ns.load(std::memory_order_relaxed),
                  sa->last_keepalive_ns});
    mapping.sas.push_back(sa);
  }
  struct Keepalive {
    ifaces::Port port;
    ifaces::Endpoint to;
    std::uint32_t mark;
    const ifaces::IpAddress* from;
  };
  std::vector<Keepalive> due;
  for (const auto& [ends, mapping] : mappings) {
    if (mapping.last_ns > before_ns) continue;
    for (OutboundSa* sa : mapping.sas) sa->last_keepalive_ns = now_ns;
    due.push_back({ends.first->ports.front(), ends.second, mapping.sas.back()->outer_mark,
                   ends.first->source()});
  }
  if (due.empty()) return;
  static constexpr std::uint8_t kKeepalive = 0xff;
  workers.front().call([&](ifaces::Engine& engine) {
    for (const auto& [port, to, mark, from] : due) {
      sockaddr_storage address{};
      const socklen_t length = to.to(address);
      engine.send({.port = port,
                   .tos = 0,
                   .segment_size = 0,
                   .len = 1,
                   .data = &kKeepalive,
                   .to = &address,
                   .to_len = length,
                   .mark = mark,
                   .source = from},
                  0);
      engine.flush();
    }
  });
}

}  // namespace espalier::dataplane
