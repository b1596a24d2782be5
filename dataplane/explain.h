// What would happen to a packet that the kernel hands to one of our devices: from the same tables
// and by the same rules as for a real one. Nothing is sent, counted or told.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "dataplane/drop.h"
#include "dataplane/types.h"

namespace espalier::dataplane {

struct Device;

struct Explanation {
  std::optional<Drop> drop;        // empty: it leaves
  std::optional<PolicyId> policy;  // that decides
  std::optional<SaId> sa;          // that would take it, even if it drops it
  std::size_t inner_mtu = 0;       // of the SA's path; 0: no limit is known
  std::size_t pieces = 0;          // it leaves in so many: fragmented inside if more than one
  std::size_t outer_length = 0;    // of the (longest) outer IP packet
};

// The control thread. `packet`: a whole IP packet.
[[nodiscard]] Explanation explain(const Device& device, std::span<const std::uint8_t> packet,
                                  std::int64_t now_ns) noexcept;

}  // namespace espalier::dataplane
