// SAs, policies and devices as the control socket writes them: from JSON to what the data plane
// takes, and back. tools/CONTROL.md lists the members.
//
// The parsers throw std::invalid_argument: one line that says what to write instead, without key
// material.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "crypto/secret.h"
#include "dataplane/dataplane.h"
#include "tools/fields.h"

namespace espalier::tools {

// Is it an address of this host? Asked where an SA does not say its direction.
using IsLocal = std::function<bool(const ifaces::IpAddress&)>;

[[nodiscard]] dataplane::SaSpec parse_sa(Fields& fields, std::span<const crypto::SecretBytes> keys,
                                         const IsLocal& is_local);
// Only the members of an update.
[[nodiscard]] dataplane::SaUpdate parse_sa_update(Fields& fields,
                                                  const dataplane::SaStatus& status);
[[nodiscard]] dataplane::PolicySpec parse_policy(Fields& fields);

struct VtiSpec {
  dataplane::DeviceSpec device;
  unsigned mtu = 0;
  std::vector<ifaces::Prefix> addresses;
};
[[nodiscard]] VtiSpec parse_vti(Fields& fields);

// A name or a number; throws std::invalid_argument.
[[nodiscard]] std::uint8_t parse_protocol(const std::string& text);
// Has its header something where XFRM looks for ports?
[[nodiscard]] bool has_ports(std::uint8_t protocol);

[[nodiscard]] std::string_view name(dataplane::Direction direction);
[[nodiscard]] std::string_view name(dataplane::Encapsulation encapsulation);
[[nodiscard]] std::string hex(dataplane::Spi spi);

// `spec`: what is known beyond the status, without its key; null: nothing.
[[nodiscard]] nlohmann::json sa_json(const dataplane::SaStatus& status,
                                     const dataplane::SaSpec* spec,
                                     std::chrono::steady_clock::time_point now);
[[nodiscard]] nlohmann::json policy_json(const dataplane::PolicyStatus& status);
// `when`: the time of day at which it happened.
[[nodiscard]] nlohmann::json event_json(const dataplane::Event& event,
                                        std::chrono::system_clock::time_point when);

}  // namespace espalier::tools
