// The inbound SAs, found by SPI and outer destination (RFC 4301 §4.4.2), and the SPIs that were
// given out and are still without keys.
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

struct LarvalTraits {
  using Key = SadKey;
  static const Key& key(const SadKey& larval) noexcept { return larval; }
  static std::uint64_t hash(const Key& k) noexcept { return SadTraits::hash(k); }
};

class Sad : public PtrIndex<InboundSa, SadTraits> {
 public:
  // Its packets wait for an SA that is to come (early_packets.h). To be looked at for what find()
  // does not know.
  PtrIndex<const SadKey, LarvalTraits> larval;
};

}  // namespace espalier::dataplane
