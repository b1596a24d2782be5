// Up to where the sequence numbers of keys are used whose SAs are gone: a key that comes back (an
// IKE daemon deletes an SA and adds it again when an address changes) goes on behind that. With
// AES-GCM a number that is used twice under a key gives the game away (RFC 4106 §3.1).
//
// Two tables of fixed size, the later of which is filled; when it is full it becomes the earlier
// one, whose keys are forgotten. So the last `keys` are always known, whatever comes and goes, and
// nothing is left on the heap. Of a name, which is random, eight bytes are kept: a key that is
// taken for another only starts higher.
//
// Thread safety: the control thread.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "crypto/fingerprint.h"

namespace espalier::dataplane {

class UsedNumbers {
 public:
  static constexpr std::size_t kKeys = std::size_t{3} << 16;  // known at least; 4 MiB a table

  explicit UsedNumbers(std::size_t keys = kKeys)
      : keys_(keys), mask_(std::bit_ceil(keys + keys / 3) - 1) {}

  void remember(const crypto::Fingerprint& key, std::uint64_t next) noexcept {
    const std::uint64_t name = name_of(key);
    const std::uint64_t before = this->next(key);
    if (count_ == keys_) {
      std::swap(earlier_, later_);
      std::fill_n(later_.get(), mask_ + 1, Entry{});
      count_ = 0;
    }
    Entry& entry = place_of(later_, name);
    if (entry.next == 0) ++count_;
    entry = {name, std::max(before, next)};
  }
  // The first number that may be used; 1 for a key that is new.
  [[nodiscard]] std::uint64_t next(const crypto::Fingerprint& key) const noexcept {
    const std::uint64_t name = name_of(key);
    return std::max({std::uint64_t{1}, place_of(later_, name).next, place_of(earlier_, name).next});
  }

 private:
  struct Entry {
    std::uint64_t name = 0;
    std::uint64_t next = 0;  // 0: free
  };
  // Never full. From calloc, so that what is not used takes no memory.
  struct Free {
    void operator()(Entry* table) const noexcept { std::free(table); }
  };
  using Table = std::unique_ptr<Entry[], Free>;
  [[nodiscard]] Table make_table() const {
    void* table = std::calloc(mask_ + 1, sizeof(Entry));
    if (table == nullptr) throw std::bad_alloc();
    return Table(static_cast<Entry*>(table));
  }

  static std::uint64_t name_of(const crypto::Fingerprint& key) noexcept {
    std::uint64_t name = 0;
    std::memcpy(&name, key.data(), sizeof name);
    return name;
  }
  // Where `name` is, or would be.
  [[nodiscard]] Entry& place_of(const Table& table, std::uint64_t name) const noexcept {
    std::size_t place = name & mask_;
    while (table[place].next != 0 && table[place].name != name) place = (place + 1) & mask_;
    return table[place];
  }

  std::size_t keys_, mask_;
  std::size_t count_ = 0;  // in `later_`
  Table earlier_ = make_table(), later_ = make_table();
};

}  // namespace espalier::dataplane
