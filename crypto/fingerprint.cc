#include "crypto/fingerprint.h"

#include <sodium.h>

namespace espalier::crypto {

Fingerprint fingerprint(std::span<const std::uint8_t> key_material) {
  static const auto secret = [] {
    std::array<std::uint8_t, 32> s{};
    randombytes_buf(s.data(), s.size());
    return s;
  }();
  Fingerprint out{};
  crypto_generichash(out.data(), out.size(), key_material.data(), key_material.size(),
                     secret.data(), secret.size());
  return out;
}

}  // namespace espalier::crypto
