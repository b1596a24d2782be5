// The anti-replay window of one inbound SA (RFC 4303 §3.4.3, Appendix A): a ring of one bit a
// number, as large as the window.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace espalier::dataplane {

inline constexpr std::uint32_t kMinWindowBits = 32;
inline constexpr std::uint32_t kMaxWindowBits = 65536;

// 64-bit sequence numbers; without ESN the caller passes the 32-bit number as it is. `check` before
// the ICV, `commit` after it; commit refuses duplicates itself, so several copies of one number in
// a batch pass at most once.
// Single writer at a time (the SA's lock).
class ReplayWindow {
 public:
  enum class Verdict : std::uint8_t { good, duplicate, late };

  // `bits` is rounded up to a power of two, at least kMinWindowBits; a window of W bits accepts
  // T-W+1 … T. 0: no window, every number is good, any number of times.
  // `top`: numbers up to and including it count as seen.
  explicit ReplayWindow(std::uint32_t bits, std::uint64_t top = 0);
  ReplayWindow(ReplayWindow&& other) noexcept { *this = std::move(other); }
  ReplayWindow& operator=(ReplayWindow&& other) noexcept;  // swaps
  ~ReplayWindow();

  [[nodiscard]] Verdict check(std::uint64_t seq) const noexcept {
    if (seq > top_) return Verdict::good;
    if (bits_ == 0) return Verdict::good;
    if (seq == 0 || top_ - seq >= bits_) return Verdict::late;
    return (word(seq) & bit(seq)) != 0 ? Verdict::duplicate : Verdict::good;
  }
  Verdict commit(std::uint64_t seq) noexcept {
    if (const Verdict verdict = check(seq); verdict != Verdict::good) return verdict;
    if (seq > top_) {
      if (seq - top_ > 1) forget(top_ + 1, seq - 1);
      top_ = seq;
    }
    if (bits_ != 0) word(seq) |= bit(seq);
    return Verdict::good;
  }

  // The 64-bit number that `seq_lo` most likely stands for (RFC 4303 Appendix A2.2).
  [[nodiscard]] std::uint64_t infer(std::uint32_t seq_lo) const noexcept;

  // From now on this knows what `other`, of any size, knows: what it has seen stays seen, and what
  // is behind it stays so.
  void take_over(const ReplayWindow& other) noexcept;

  [[nodiscard]] std::uint64_t top() const noexcept { return top_; }
  [[nodiscard]] std::uint32_t bits() const noexcept { return bits_; }

 private:
  static constexpr std::uint32_t kWordBits = 64;
  static constexpr std::uint64_t bit(std::uint64_t seq) {
    return std::uint64_t{1} << seq % kWordBits;
  }
  // A window of 32 has a whole word, too, and looks at the newest half of it.
  [[nodiscard]] std::uint64_t& word(std::uint64_t seq) const noexcept {
    return words_[seq / kWordBits & word_mask_];
  }
  [[nodiscard]] std::size_t words() const noexcept {
    return bits_ == 0 ? 0 : std::size_t{word_mask_} + 1;
  }
  void forget(std::uint64_t first, std::uint64_t last) noexcept;

  std::uint64_t top_ = 0;
  std::uint32_t bits_ = 0;
  std::uint32_t word_mask_ = 0;
  // Of an arena: while `top_` is 0 nobody has written to them, and they take no memory.
  std::uint64_t* words_ = nullptr;
};

}  // namespace espalier::dataplane
