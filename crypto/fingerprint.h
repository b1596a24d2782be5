// A name for key material that tells nothing of it, and means nothing to another process.
#pragma once

#include <array>
#include <cstdint>
#include <span>

namespace espalier::crypto {

using Fingerprint = std::array<std::uint8_t, 16>;

// Equal for equal bytes within this process (keyed BLAKE2b); for finding a key that is there twice.
[[nodiscard]] Fingerprint fingerprint(std::span<const std::uint8_t> key_material);

}  // namespace espalier::crypto
