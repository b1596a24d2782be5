#include "crypto/stack.h"

#include <sodium.h>

#include <cstddef>

namespace espalier::crypto {

void wipe_stack() noexcept {
  constexpr std::size_t kDeepest = std::size_t{48} << 10;  // of what seals and opens, ample
  sodium_stackzero(kDeepest);
}

}  // namespace espalier::crypto
