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

// What a packet must look like (RFC 4301 §4.4.1.1). Addresses of one family; protocol 0 and port
// range 0–65535 mean any.
struct Selector {
  ifaces::Prefix source;
  ifaces::Prefix destination;
  std::uint8_t protocol = 0;
  std::uint16_t source_port_first = 0, source_port_last = 65535;
  std::uint16_t destination_port_first = 0, destination_port_last = 65535;
  auto operator<=>(const Selector&) const = default;
};

// A TUN in the place of a VTI.
struct DeviceSpec {
  std::string name;
  std::uint32_t ikey = 0;
  std::uint32_t okey = 0;
  ifaces::IpAddress local;   // any: every local address
  ifaces::IpAddress remote;  // any: several peers
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
  std::string name;  // of the conn, for listings
};

struct SaSpec {
  Direction direction = Direction::out;
  Spi spi{};
  std::uint32_t reqid = 0;
  Encapsulation encapsulation = Encapsulation::udp;
  ifaces::Endpoint local;  // port 0 with raw ESP
  ifaces::Endpoint peer;   // any address: not known yet, learned from an authenticated packet
  crypto::Suite suite = crypto::Suite::aes_gcm256;
  crypto::SecretBytes keymat;  // key, then salt (RFC 4106 §8.1); moved from
  bool esn = true;
  std::uint32_t window_bits = 4096;  // inbound
  bool follow_peer = true;  // inbound, UDP: the peer's address may change (RFC 3948, 7296 §2.23)
  // out: the first number to use, and the last number that may be used before extend_limit().
  // in: numbers up to and including next_seq-1 count as seen.
  std::uint64_t next_seq = 1;
  std::uint64_t seq_limit = std::numeric_limits<std::uint64_t>::max();
  std::uint32_t outer_mark = 0;  // SO_MARK on the outer packets; 0: none
  std::string name;              // of the conn, for listings
};

enum class DeviceId : std::uint32_t {};
enum class PolicyId : std::uint32_t {};
enum class SaId : std::uint32_t {};

}  // namespace espalier::dataplane
