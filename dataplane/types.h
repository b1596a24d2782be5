// The words of RFC 4301 as types, so that what must not mix cannot.
#pragma once

#include <chrono>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "crypto/secret.h"
#include "crypto/suite.h"
#include "ifaces/address.h"

namespace espalier::dataplane {

enum class Spi : std::uint32_t {};  // host order; 0–255 are reserved (RFC 4303 §2.1)
inline constexpr std::uint32_t kFirstSpi = 256;

// A policy's or an SA's mark: matches a key `k` iff (k & mask) == value. {0, 0} matches every key.
struct Mark {
  std::uint32_t value = 0;
  std::uint32_t mask = 0;
  [[nodiscard]] constexpr bool matches(std::uint32_t key) const noexcept {
    return (key & mask) == value;
  }
  auto operator<=>(const Mark&) const = default;
};

enum class Direction : std::uint8_t { in, out };
enum class Encapsulation : std::uint8_t { esp, udp };

// First to last, both included; of one family.
struct AddressRange {
  ifaces::IpAddress first, last;
  auto operator<=>(const AddressRange&) const = default;  // NOLINT(modernize-use-nullptr)
};

// What a packet must look like (RFC 4301 §4.4.1.1). Addresses of one family; protocol 0 and port
// range 0–65535 mean any. For ICMP and ICMPv6 the source ports are the type and the destination
// ports the code, as XFRM has it.
struct Selector {
  ifaces::Prefix source;
  ifaces::Prefix destination;
  // Narrower than the prefix above, which covers it: the SPD finds by prefix, then looks here.
  std::optional<AddressRange> source_range, destination_range;
  std::uint8_t protocol = 0;
  std::uint16_t source_port_first = 0, source_port_last = 65535;
  std::uint16_t destination_port_first = 0, destination_port_last = 65535;
  auto operator<=>(const Selector&) const = default;  // NOLINT(modernize-use-nullptr)
};

// A TUN in the place of a VTI.
struct DeviceSpec {
  std::string name;
  std::uint32_t ikey = 0;
  std::uint32_t okey = 0;
  ifaces::IpAddress local;   // any: every local address
  ifaces::IpAddress remote;  // any: several peers
  std::uint32_t if_id = 0;   // as an xfrm interface's: policies and SAs must have the same
  // Carrier: up while an outbound SA, or a policy that traps, serves the device; or always.
  bool carrier_follows_sa = true;
  // Room for a queue that somebody holds to keep the device there (ifaces/tun.h, hold_tun).
  bool holdable = false;
};

enum class PolicyAction : std::uint8_t { protect, bypass, discard };

// `out`: the template names the SA by reqid (the newest outbound one). `in`: which inner packets an
// inbound SA of this reqid may deliver, and by the mark to which device.
struct PolicySpec {
  Direction direction = Direction::out;
  Selector selector;
  Mark mark;
  std::uint32_t priority = 0;  // the lowest number wins; equal: the longer prefixes
  PolicyAction action = PolicyAction::protect;
  std::uint32_t reqid = 0;
  std::uint32_t if_id = 0;
  Spi spi{};          // out: this SA of the reqid and no other; 0: the newest
  bool trap = false;  // out: a packet without an SA is an `acquire` event (an IKE daemon waits)
  std::string name;   // of the conn, for listings
};

// When an SA is to be replaced (soft: an event) and when it ends (hard: an event, and no further
// packet either way). 0: never (RFC 4301 §4.4.2.1: time and bytes; packets too).
struct Limit {
  std::uint64_t soft = 0, hard = 0;
  auto operator<=>(const Limit&) const = default;
};
struct Lifetime {
  Limit bytes;    // inner
  Limit packets;  // also those that the peer lost
  Limit seconds;  // since the SA was added
  auto operator<=>(const Lifetime&) const = default;
};

// How the outer header is made from the inner one, and what comes back (RFC 4301 §5.1.2, 6040).
struct OuterHeader {
  enum class Dscp : std::uint8_t { copy, set, no };  // no: 0
  enum class Df : std::uint8_t { copy, set, clear };
  Dscp dscp = Dscp::copy;
  std::uint8_t dscp_value = 0;   // 0–63, with Dscp::set
  bool dscp_inwards = false;     // the outer DSCP replaces the inner one when it leaves the tunnel
  bool ecn = true;               // false: RFC 6040 compatibility mode, Not-ECT outside
  Df df = Df::copy;              // IPv4; an inner IPv6 packet counts as DF set
  std::uint8_t hop_limit = 0;    // 0: the system's default
  bool copy_flow_label = false;  // IPv6 in IPv6; otherwise the kernel chooses by the 5-tuple
  auto operator<=>(const OuterHeader&) const = default;
};

struct SaSpec {
  Direction direction = Direction::out;
  Spi spi{};
  std::uint32_t reqid = 0;
  Encapsulation encapsulation = Encapsulation::udp;
  ifaces::Endpoint local;  // port 0 with raw ESP
  ifaces::Endpoint peer;   // any address: not known yet, learned from an authenticated packet
  crypto::Suite suite = crypto::Suite::aes_gcm256;
  crypto::SecretBytes keymat;  // info(suite).keymat(): keys, then salt; moved from
  bool esn = true;
  // Inbound: 32 to 65,536; 0, without ESN only, turns anti-replay off: any number is taken.
  std::uint32_t window_bits = 4096;
  bool follow_peer = true;  // inbound, UDP: the peer's address may change (RFC 3948, 7296 §2.23)
  // out: the first number to use, and the last number that may be used before extend_limit().
  // in: numbers up to and including next_seq-1 count as seen.
  std::uint64_t next_seq = 1;
  std::uint64_t seq_limit = std::numeric_limits<std::uint64_t>::max();
  std::uint32_t outer_mark = 0;  // SO_MARK on the outer packets; 0: none
  Mark mark;                     // in: must match the device's ikey too (ip-xfrm(8))
  std::uint32_t if_id = 0;
  Lifetime lifetime;
  OuterHeader outer;
  // out, TFC (RFC 4303 §2.7): inner packets are padded to this many bytes; 0: no; kTfcToMtu: to
  // what the path carries.
  std::uint32_t tfc_padding = 0;
  std::uint16_t mss_clamp =
      0;             // TCP MSS of inner SYNs at most this; 0: no; kMssToPath: by the path
  std::string name;  // of the conn, for listings
};
inline constexpr std::uint32_t kTfcToMtu = 0xffffffff;
inline constexpr std::uint16_t kMssToPath = 0xffff;

// What may change while an SA lives; what is not set stays. Sequence numbers and window contents
// go on.
struct SaUpdate {
  std::optional<ifaces::Endpoint> peer;      // of both directions of the reqid
  std::optional<std::uint32_t> window_bits;  // numbers already seen stay seen
  std::optional<Lifetime> lifetime;
  std::optional<std::uint64_t> seq_limit;  // out
  std::optional<std::uint64_t> next_seq;   // as in SaSpec; never back
};

enum class DeviceId : std::uint32_t {};
enum class PolicyId : std::uint32_t {};
enum class SaId : std::uint32_t {};

}  // namespace espalier::dataplane
