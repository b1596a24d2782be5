// Text that holds keys: wiped wherever it was when it moves or goes.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "crypto/secret.h"

namespace espalier::tools {

// Short texts lie inside the string itself and are not wiped; no key is that short.
template <typename T>
struct WipingAllocator {
  using value_type = T;
  WipingAllocator() = default;
  template <typename U>
  explicit WipingAllocator(const WipingAllocator<U>& /*unused*/) noexcept {}
  [[nodiscard]] T* allocate(std::size_t count) { return std::allocator<T>().allocate(count); }
  void deallocate(T* data, std::size_t count) noexcept {
    crypto::wipe({reinterpret_cast<std::uint8_t*>(data), count * sizeof(T)});
    std::allocator<T>().deallocate(data, count);
  }
  bool operator==(const WipingAllocator& /*unused*/) const noexcept { return true; }
};

using SecretText = std::basic_string<char, std::char_traits<char>, WipingAllocator<char>>;

}  // namespace espalier::tools
