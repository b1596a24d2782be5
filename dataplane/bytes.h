// Loads and stores of network-order numbers at any alignment.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace espalier::dataplane {

namespace internal {
template <class T>
[[nodiscard]] inline T swapped(T v) noexcept {
  if constexpr (std::endian::native == std::endian::big) {
    return v;
  } else if constexpr (sizeof v == 8) {
    return __builtin_bswap64(v);
  } else if constexpr (sizeof v == 4) {
    return __builtin_bswap32(v);
  } else {
    static_assert(sizeof v == 2);
    return __builtin_bswap16(v);
  }
}
}  // namespace internal

// As store_be() writes it.
template <class T>
[[nodiscard]] inline T big_endian(T v) noexcept {
  return internal::swapped(v);
}

template <class T>
[[nodiscard]] inline T load_be(const std::uint8_t* p) noexcept {
  T v;
  std::memcpy(&v, p, sizeof v);
  return internal::swapped(v);
}

template <class T>
inline void store_be(std::uint8_t* p, T v) noexcept {
  v = internal::swapped(v);
  std::memcpy(p, &v, sizeof v);
}

}  // namespace espalier::dataplane
