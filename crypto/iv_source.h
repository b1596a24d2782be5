// IVs that nobody can foretell, for CBC.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "crypto/secret.h"

namespace espalier::crypto {

// Blocks of ChaCha20 key stream under a key that every refill replaces (RFC 3602 §3: an IV is
// unpredictable, and no counter or last ciphertext block). Not thread safe: one for each thread.
// Construction may throw; drawing does not fail. A copy of the process must not draw on.
class IvSource {
 public:
  static constexpr std::size_t kBlock = 16;

  IvSource();

  // Writes kBlock bytes.
  void draw(std::uint8_t* out) noexcept;

 private:
  static constexpr std::size_t kKey = 32;
  static constexpr std::size_t kBlocks = 62;  // with the key, 1 KiB of key stream

  void refill() noexcept;

  SecretBytes stream_;  // the next key, then blocks: an IV is secret until its plaintext is fixed
  std::size_t used_ = 0;
};

}  // namespace espalier::crypto
