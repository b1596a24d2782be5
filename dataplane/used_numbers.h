// Up to where the sequence numbers of keys are used whose SAs are gone: a key that comes back (an
// IKE daemon deletes an SA and adds it again when an address changes) goes on behind that. With
// AES-GCM a number that is used twice under a key gives the game away (RFC 4106 §3.1).
//
// Thread safety: the control thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>

#include "crypto/fingerprint.h"

namespace espalier::dataplane {

class UsedNumbers {
 public:
  static constexpr std::size_t kKeys = std::size_t{1} << 16;  // then the oldest are forgotten

  void remember(const crypto::Fingerprint& key, std::uint64_t next) {
    const auto [entry, fresh] = next_.emplace(key, next);
    entry->second = std::max(entry->second, next);
    if (!fresh) return;
    order_.push_back(key);
    if (order_.size() <= kKeys) return;
    next_.erase(order_.front());
    order_.pop_front();
  }
  // The first number that may be used; 1 for a key that is new.
  [[nodiscard]] std::uint64_t next(const crypto::Fingerprint& key) const {
    const auto found = next_.find(key);
    return found == next_.end() ? 1 : found->second;
  }

 private:
  std::map<crypto::Fingerprint, std::uint64_t> next_;
  std::deque<crypto::Fingerprint> order_;
};

}  // namespace espalier::dataplane
