// The inbound SAs, found by SPI and outer destination (RFC 4301 §4.4.2).
#pragma once

#include "dataplane/ptr_index.h"
#include "dataplane/sa.h"

namespace espalier::dataplane {

struct SadTraits {
  using Key = SadKey;
  static Key key(const InboundSa& sa) noexcept {
    return {static_cast<std::uint32_t>(sa.spi), sa.local_words};
  }
  static std::uint64_t hash(const Key& k) noexcept {
    return hash_words(k.spi ^ k.local[0], k.local[1]);
  }
};

using Sad = PtrIndex<InboundSa, SadTraits>;

}  // namespace espalier::dataplane
