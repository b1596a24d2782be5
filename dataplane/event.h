// What the data plane tells its owner: an IKE daemon acts on it, `espalier monitor` shows it.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <string_view>

#include "dataplane/types.h"

namespace espalier::dataplane {

enum class EventKind : std::uint8_t {
  acquire,          // a policy that traps met a packet, and has no SA
  soft_expire,      // a soft limit: to be replaced
  hard_expire,      // a hard limit: no packet passes any more; the owner removes the SA
  seq_exhausted,    // the numbers are used up: nothing is sent any more (RFC 4303 §3.3.3)
  mapping_changed,  // the peer is somewhere else now (RFC 3948, 7296 §2.23)
  replay,           // auditable events (RFC 4303 §3.4.3, §3.4.4, RFC 4301 §5.2)
  integrity,
  selector_mismatch,
  no_spi,
  path_mtu,  // `path_mtu` to the peer of the SA is known now
};
inline constexpr std::array<std::string_view, 10> kEventNames = {
    "acquire", "soft-expire", "hard-expire",       "seq-exhausted", "mapping",
    "replay",  "integrity",   "selector-mismatch", "no-spi",        "path-mtu"};

// The inner packet that caused it, where there is one.
struct Flow {
  ifaces::IpAddress source, destination;
  std::uint8_t protocol = 0;
  std::uint16_t source_port = 0, destination_port = 0;
};

// Members that do not belong to the kind are zero.
struct Event {
  EventKind kind{};
  Direction direction{};
  SaId sa{};
  PolicyId policy{};
  DeviceId device{};
  Spi spi{};
  std::uint32_t reqid = 0;
  std::uint64_t seq = 0;         // replay, integrity
  std::uint64_t count = 1;       // how many alike since the last one told: events are limited to
                                 // one a second for each SA or policy and kind
  std::uint32_t path_mtu = 0;    // bytes of outer IP packet
  ifaces::Endpoint local, peer;  // mapping_changed: peer is the new one
  ifaces::Endpoint old_peer;     // mapping_changed; unset if the peer has moved more than once
  Flow flow;                     // acquire, selector_mismatch
  std::chrono::steady_clock::time_point when;
};

}  // namespace espalier::dataplane
