// The Internet checksum (RFC 1071), with the widest vectors that the processor has.
#pragma once

#include <cstddef>
#include <cstdint>

namespace espalier::dataplane {

// Partial sums: native byte order, unfolded, may be added to each other as long as each but the
// last part has an even length.
[[nodiscard]] std::uint64_t sum_bytes(const std::uint8_t* p, std::size_t n) noexcept;
// The same while copying; the regions must not overlap.
[[nodiscard]] std::uint64_t copy_and_sum(std::uint8_t* to, const std::uint8_t* from,
                                         std::size_t n) noexcept;

// Folds to 16 bits, not complemented, native order: ready to be stored by memcpy after `~`.
[[nodiscard]] constexpr std::uint16_t fold(std::uint64_t sum) noexcept {
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffffffff) + (sum >> 32);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(sum);
}

}  // namespace espalier::dataplane
