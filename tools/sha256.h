// SHA-256 by OpenSSL, as lower-case hex.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace espalier::tools {

// Of the parts one after the other. Throws std::runtime_error if OpenSSL has no SHA-256.
[[nodiscard]] std::string sha256_hex(std::initializer_list<std::span<const std::uint8_t>> parts);

[[nodiscard]] inline std::span<const std::uint8_t> bytes_of(std::string_view text) noexcept {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

}  // namespace espalier::tools
