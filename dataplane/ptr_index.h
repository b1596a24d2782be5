// A hash index of pointers: one writer (the control thread), any number of readers (the workers),
// no lock.
//
// Readers see an entry from the moment insert() returns until the moment erase() returns; what was
// erased, and the array that growing leaves behind, may still be in a reader's hands until every
// worker has finished its turn. The caller therefore frees both only after a grace period.
//
// `Traits`: `Key`; `static Key key(const Node&)`; `static std::uint64_t hash(const Key&)`.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace espalier::dataplane {

template <class Node, class Traits>
class PtrIndex {
 public:
  using Key = typename Traits::Key;

  PtrIndex() : table_(new Table(kFirstSlots)) {}
  PtrIndex(const PtrIndex&) = delete;
  PtrIndex& operator=(const PtrIndex&) = delete;
  ~PtrIndex() { delete table_.load(std::memory_order_relaxed); }

  // Any thread.
  [[nodiscard]] Node* find(const Key& key) const noexcept {
    const Table* table = table_.load(std::memory_order_acquire);
    const std::uint64_t hash = Traits::hash(key);
    for (std::size_t i = hash & table->mask;; i = (i + 1) & table->mask) {
      const Slot slot = table->slots[i].load(std::memory_order_acquire);
      if (slot == 0) return nullptr;
      if (slot >> kPointerBits != hash >> kPointerBits || slot == tombstone()) continue;
      Node* node = node_of(slot);
      if (Traits::key(*node) == key) return node;
    }
  }

  // Any thread, for batches of lookups: first prefetch() for all, then prefetch_node(), then
  // find(), so that their cache misses overlap. Not worth it while the index is small.
  [[nodiscard]] bool worth_prefetching() const noexcept {
    return table_.load(std::memory_order_acquire)->mask >= kPrefetchFrom;
  }
  // Brings the slot of `key` nearer.
  void prefetch(const Key& key) const noexcept {
    const Table* table = table_.load(std::memory_order_acquire);
    __builtin_prefetch(&table->slots[Traits::hash(key) & table->mask]);
  }
  // Brings the node of `key` nearer.
  void prefetch_node(const Key& key) const noexcept {
    const Table* table = table_.load(std::memory_order_acquire);
    const std::uint64_t hash = Traits::hash(key);
    for (std::size_t i = hash & table->mask;; i = (i + 1) & table->mask) {
      const Slot slot = table->slots[i].load(std::memory_order_acquire);
      if (slot == 0) return;
      if (slot >> kPointerBits == hash >> kPointerBits) return __builtin_prefetch(node_of(slot));
    }
  }

  // Control thread. The key must not be there yet.
  void insert(Node* node) {
    Table* table = table_.load(std::memory_order_relaxed);
    if (2 * (used_ + 1) > table->mask + 1) table = rebuild();
    place(*table, node);
    ++used_;
    ++size_;
  }

  // Control thread. Returns what was there, or null.
  Node* erase(const Key& key) noexcept {
    Table* table = table_.load(std::memory_order_relaxed);
    for (std::size_t i = Traits::hash(key) & table->mask;; i = (i + 1) & table->mask) {
      const Slot slot = table->slots[i].load(std::memory_order_relaxed);
      if (slot == 0) return nullptr;
      Node* node = node_of(slot);
      if (slot == tombstone() || !(Traits::key(*node) == key)) continue;
      table->slots[i].store(tombstone(), std::memory_order_release);
      --size_;
      if (table->mask > 32 * (size_ + 8)) shrink();
      return node;
    }
  }

  // Control thread. Puts `node` in the place of `old`, which is there and has the same key.
  void replace(const Node& old, Node& node) noexcept {
    Table* table = table_.load(std::memory_order_relaxed);
    const std::uint64_t hash = Traits::hash(Traits::key(old));
    std::size_t i = hash & table->mask;
    while (table->slots[i].load(std::memory_order_relaxed) != slot_of(old, hash))
      i = (i + 1) & table->mask;
    table->slots[i].store(slot_of(node, hash), std::memory_order_release);
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  // Control thread, after a grace period: frees the arrays that growing left behind.
  void reclaim() noexcept { old_.clear(); }

 private:
  static constexpr std::size_t kFirstSlots = 8;
  static constexpr std::size_t kPrefetchFrom =
      2048;  // slots; with their nodes more than half an L2

  // An address, and above it the first bits of the hash: what is not looked for is passed by
  // without being read. 0: empty. User space ends below 2^47 unless it asks for more.
  using Slot = std::uint64_t;
  static constexpr unsigned kPointerBits = 48;

  struct Table {
    explicit Table(std::size_t count)
        : mask(count - 1), slots(std::make_unique<std::atomic<Slot>[]>(count)) {}
    std::size_t mask;
    std::unique_ptr<std::atomic<Slot>[]> slots;
  };

  static Slot slot_of(const Node& node, std::uint64_t hash) noexcept {
    return reinterpret_cast<Slot>(&node) | hash >> kPointerBits << kPointerBits;
  }
  static Node* node_of(Slot slot) noexcept {
    // NOLINTNEXTLINE(performance-no-int-to-ptr): made from a pointer by place()
    return reinterpret_cast<Node*>(slot & ((Slot{1} << kPointerBits) - 1));
  }
  // An address that no node has; never followed.
  static Slot tombstone() noexcept { return reinterpret_cast<Slot>(&kTombstone); }
  alignas(64) static inline std::byte kTombstone{};

  static void place(Table& table, Node* node) noexcept {
    const std::uint64_t hash = Traits::hash(Traits::key(*node));
    std::size_t i = hash & table.mask;
    while (table.slots[i].load(std::memory_order_relaxed) != 0) i = (i + 1) & table.mask;
    table.slots[i].store(slot_of(*node, hash), std::memory_order_release);
  }

  void shrink() noexcept {
    try {
      rebuild();
    } catch (const std::bad_alloc&) {  // then it stays as large as it is
    }
  }

  // Without the tombstones, at most a quarter full.
  Table* rebuild() {
    std::size_t count = kFirstSlots;
    while (count < 4 * (size_ + 1)) count *= 2;
    auto fresh = std::make_unique<Table>(count);
    Table* table = table_.load(std::memory_order_relaxed);
    for (std::size_t i = 0; i <= table->mask; ++i) {
      const Slot slot = table->slots[i].load(std::memory_order_relaxed);
      if (slot != 0 && slot != tombstone()) place(*fresh, node_of(slot));
    }
    old_.emplace_back(table);
    used_ = size_;
    table_.store(fresh.get(), std::memory_order_release);
    return fresh.release();
  }

  std::atomic<Table*> table_;
  std::size_t size_ = 0;  // entries
  std::size_t used_ = 0;  // entries and tombstones
  std::vector<std::unique_ptr<Table>> old_;
};

// A multiplicative hash with a secret of this process: nobody outside can aim at one slot.
[[nodiscard]] std::uint64_t hash_words(std::uint64_t a, std::uint64_t b) noexcept;

}  // namespace espalier::dataplane
