// A map from the ids that we give out, which only grow, to what they name: a sorted array, 16 bytes
// an entry. What is erased leaves a gap; the gaps are closed when they are half of it.
//
// Thread safety: the control thread.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <utility>
#include <vector>

namespace espalier::dataplane {

template <class Id, class T>
class IdMap {
 public:
  using mapped_type = std::unique_ptr<T>;
  using value_type = std::pair<Id, mapped_type>;

  class const_iterator {
   public:
    const_iterator(const value_type* at, const value_type* end) : at_(at), end_(end) { skip(); }
    const value_type& operator*() const { return *at_; }
    const value_type* operator->() const { return at_; }
    const_iterator& operator++() {
      ++at_;
      skip();
      return *this;
    }
    bool operator==(const const_iterator& other) const { return at_ == other.at_; }

   private:
    friend class IdMap;
    void skip() {
      while (at_ != end_ && at_->second == nullptr) ++at_;
    }
    const value_type* at_;
    const value_type* end_;
  };

  [[nodiscard]] const_iterator begin() const { return at(0); }
  [[nodiscard]] const_iterator end() const { return at(entries_.size()); }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

  [[nodiscard]] const_iterator find(Id id) const {
    const std::size_t i = lower_bound(id);
    const bool there =
        i < entries_.size() && entries_[i].first == id && entries_[i].second != nullptr;
    return there ? at(i) : end();
  }
  // The first one behind `id`.
  [[nodiscard]] const_iterator upper_bound(Id id) const {
    std::size_t i = lower_bound(id);
    if (i < entries_.size() && entries_[i].first == id) ++i;
    return at(i);
  }

  void emplace(Id id, mapped_type&& value) {
    const std::size_t i =
        entries_.empty() || entries_.back().first < id ? entries_.size() : lower_bound(id);
    entries_.emplace(entries_.begin() + static_cast<std::ptrdiff_t>(i), id, std::move(value));
    ++size_;
  }
  // Takes out what find() has found.
  mapped_type extract(const_iterator it) {
    mapped_type value =
        std::move(entries_[static_cast<std::size_t>(it.at_ - entries_.data())].second);
    --size_;
    if (entries_.size() > 2 * size_ + kSlack) close_gaps();
    return value;
  }

 private:
  static constexpr std::size_t kSlack = 32;

  [[nodiscard]] const_iterator at(std::size_t i) const {
    return {entries_.data() + i, entries_.data() + entries_.size()};
  }
  [[nodiscard]] std::size_t lower_bound(Id id) const {
    const auto it = std::lower_bound(entries_.begin(), entries_.end(), id,
                                     [](const value_type& e, Id i) { return e.first < i; });
    return static_cast<std::size_t>(it - entries_.begin());
  }
  void close_gaps() {
    std::erase_if(entries_, [](const value_type& e) { return e.second == nullptr; });
    if (entries_.capacity() > 4 * size_ + kSlack) entries_.shrink_to_fit();
  }

  std::vector<value_type> entries_;
  std::size_t size_ = 0;
};

}  // namespace espalier::dataplane
