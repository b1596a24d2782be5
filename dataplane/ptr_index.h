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
    for (std::size_t i = Traits::hash(key) & table->mask;; i = (i + 1) & table->mask) {
      Node* node = table->slots[i].load(std::memory_order_acquire);
      if (node == nullptr) return nullptr;
      if (node != tombstone() && Traits::key(*node) == key) return node;
    }
  }

  // Any thread: brings the slot of `key` nearer, for a batch of lookups.
  void prefetch(const Key& key) const noexcept {
    const Table* table = table_.load(std::memory_order_acquire);
    __builtin_prefetch(&table->slots[Traits::hash(key) & table->mask]);
  }
  // Any thread, after prefetch() has had time to work: brings the first node of the slot nearer.
  void prefetch_node(const Key& key) const noexcept {
    const Table* table = table_.load(std::memory_order_acquire);
    __builtin_prefetch(
        table->slots[Traits::hash(key) & table->mask].load(std::memory_order_acquire));
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
      Node* node = table->slots[i].load(std::memory_order_relaxed);
      if (node == nullptr) return nullptr;
      if (node == tombstone() || !(Traits::key(*node) == key)) continue;
      table->slots[i].store(tombstone(), std::memory_order_release);
      --size_;
      return node;
    }
  }

  [[nodiscard]] std::size_t size() const noexcept { return size_; }

  // Control thread, after a grace period: frees the arrays that growing left behind.
  void reclaim() noexcept { old_.clear(); }

 private:
  static constexpr std::size_t kFirstSlots = 8;

  struct Table {
    explicit Table(std::size_t count)
        : mask(count - 1), slots(std::make_unique<std::atomic<Node*>[]>(count)) {}
    std::size_t mask;
    std::unique_ptr<std::atomic<Node*>[]> slots;
  };

  // An address that no node has; never followed.
  static Node* tombstone() noexcept { return reinterpret_cast<Node*>(&kTombstone); }
  alignas(64) static inline std::byte kTombstone{};

  static void place(Table& table, Node* node) noexcept {
    std::size_t i = Traits::hash(Traits::key(*node)) & table.mask;
    while (table.slots[i].load(std::memory_order_relaxed) != nullptr) i = (i + 1) & table.mask;
    table.slots[i].store(node, std::memory_order_release);
  }

  // Without the tombstones, at most a quarter full.
  Table* rebuild() {
    std::size_t count = kFirstSlots;
    while (count < 4 * (size_ + 1)) count *= 2;
    auto fresh = std::make_unique<Table>(count);
    Table* table = table_.load(std::memory_order_relaxed);
    for (std::size_t i = 0; i <= table->mask; ++i) {
      Node* node = table->slots[i].load(std::memory_order_relaxed);
      if (node != nullptr && node != tombstone()) place(*fresh, node);
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
