// Up to where the sequence numbers of keys are used whose SAs are gone: a key that comes back (an
// IKE daemon deletes an SA and adds it again when an address changes) goes on behind that. With
// AES-GCM a number that is used twice under a key gives the game away (RFC 4106 §3.1).
//
// A table of fixed size, made once: entries that stay among what comes and goes would keep the heap
// from shrinking. A name is random, so a few bytes of it are its place. The oldest are forgotten:
// of 10,000 keys one in a thousand.
//
// Thread safety: the control thread.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "crypto/fingerprint.h"

namespace espalier::dataplane {

class UsedNumbers {
 public:
  static constexpr std::size_t kSets = 4096;

  explicit UsedNumbers(std::size_t sets = kSets) : sets_(sets) {}

  void remember(const crypto::Fingerprint& key, std::uint64_t next) {
    Set& set = set_of(key);
    auto entry = std::find_if(set.begin(), set.end(),
                              [&key](const Entry& e) { return e.next != 0 && e.key == key; });
    if (entry == set.end())
      entry = std::min_element(set.begin(), set.end(),
                               [](const Entry& a, const Entry& b) { return a.age < b.age; });
    const std::uint64_t before = entry->key == key ? entry->next : 0;
    *entry = {key, std::max(before, next), ++clock_};
  }
  // The first number that may be used; 1 for a key that is new.
  [[nodiscard]] std::uint64_t next(const crypto::Fingerprint& key) {
    for (const Entry& entry : set_of(key))
      if (entry.next != 0 && entry.key == key) return entry.next;
    return 1;
  }

 private:
  struct Entry {
    crypto::Fingerprint key{};
    std::uint64_t next = 0;  // 0: free
    std::uint64_t age = 0;
  };
  using Set = std::array<Entry, 8>;

  Set& set_of(const crypto::Fingerprint& key) {
    std::uint64_t place = 0;
    std::memcpy(&place, key.data(), sizeof place);
    return sets_[place % sets_.size()];
  }

  std::vector<Set> sets_;
  std::uint64_t clock_ = 0;
};

}  // namespace espalier::dataplane
