// A packet as a request describes it ("explain"): only its headers mean something.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ifaces/address.h"
#include "tools/fields.h"

namespace espalier::tools {

// Members: source, destination, protocol, ports or ICMP type and code, length, df. Throws
// std::invalid_argument, as all of Fields.
[[nodiscard]] std::vector<std::uint8_t> parse_packet(Fields& fields);

// Of a packet that parse_packet() has made.
[[nodiscard]] ifaces::IpAddress destination_of(std::span<const std::uint8_t> packet);

}  // namespace espalier::tools
