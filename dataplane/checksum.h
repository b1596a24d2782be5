// The Internet checksum (RFC 1071), with the widest vectors that the processor has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace espalier::dataplane {

// Partial sums: native byte order, unfolded, may be added to each other as long as each but the
// last part has an even length. Any alignment. Below 2^34 for lengths up to 64 KiB.
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

// The implementations that this processor can run, best first; the two functions above use the
// first. For tests and benchmarks. At most 64 KiB a call.
struct ChecksumKernel {
  const char* name;
  std::uint64_t (*sum)(const std::uint8_t* p, std::size_t n) noexcept;
  std::uint64_t (*copy)(std::uint8_t* to, const std::uint8_t* from, std::size_t n) noexcept;
};
[[nodiscard]] std::span<const ChecksumKernel> checksum_kernels() noexcept;

}  // namespace espalier::dataplane
