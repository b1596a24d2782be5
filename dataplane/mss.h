// Clamping of the TCP MSS (RFC 9293 §3.7.1): a host that never sees ICMP still sends segments that
// the tunnel carries.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "dataplane/types.h"

namespace espalier::dataplane {

// The most that a SYN may announce, by family; 0: whatever it likes.
struct MssLimit {
  std::uint16_t v4 = 0, v6 = 0;

  MssLimit() = default;
  // `wanted`: SaSpec::mss_clamp. `mtu`: the longest inner packet that the path carries.
  MssLimit(std::uint16_t wanted, std::size_t mtu) noexcept {
    if (wanted == kMssToPath) {
      v4 = less(mtu, 20 + 20);
      v6 = less(mtu, 40 + 20);
    } else {
      v4 = v6 = wanted;
    }
  }

 private:
  static std::uint16_t less(std::size_t mtu, std::size_t headers) noexcept {
    constexpr std::size_t kLeast =
        88;  // as Linux's tcp_min_snd_mss less its options: no flow stalls
    return static_cast<std::uint16_t>(
        std::min<std::size_t>(std::max(mtu, headers + kLeast) - headers, 0xfffe));
  }
};

// Lowers the MSS option of a TCP SYN; everything else stays as it is. `packet`: a whole IP packet,
// its lengths checked (parse_inner). The TCP checksum is updated, not made anew (RFC 1624).
void clamp_mss(std::span<std::uint8_t> packet, const MssLimit& limit) noexcept;

}  // namespace espalier::dataplane
