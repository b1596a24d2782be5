// The ESP transforms: their names, lengths and limits. Pure data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace espalier::crypto {

enum class Suite : std::uint8_t { aes_gcm128, aes_gcm192, aes_gcm256 };

inline constexpr std::size_t kSuiteCount = 3;
inline constexpr std::size_t kMaxKeyBytes = 32;
inline constexpr std::size_t kMaxSaltBytes = 4;
inline constexpr std::size_t kMaxIvBytes = 8;
inline constexpr std::size_t kMaxIcvBytes = 16;

// Lengths are in bytes. `align` is what payload + padding + pad length + next header is rounded up
// to (RFC 4303 §2.4).
struct SuiteInfo {
  Suite suite;
  std::string_view name;  // libreswan's: aes_gcm256
  std::uint8_t key;
  std::uint8_t salt;
  std::uint8_t iv;
  std::uint8_t icv;
  std::uint8_t align;

  [[nodiscard]] constexpr std::size_t keymat() const noexcept { return std::size_t{key} + salt; }
};

[[nodiscard]] const SuiteInfo& info(Suite suite) noexcept;

// All suites, in the order of the enumeration.
[[nodiscard]] std::span<const SuiteInfo> suites() noexcept;

// Understands libreswan's and strongSwan's spellings: aes_gcm256, aes_gcm_16_256, aes256gcm16,
// aes_gcm-256. Empty when the name is none of them.
[[nodiscard]] std::optional<Suite> parse_suite(std::string_view name) noexcept;

}  // namespace espalier::crypto
