#include "dataplane/replay_window.h"

#include <algorithm>
#include <bit>

#include "crypto/page_arena.h"

namespace espalier::dataplane {
namespace {

// Never destroyed: a window in static storage may be freed after every other destructor has run.
crypto::PageArena& arena() {
  static auto* const instance = new crypto::PageArena(crypto::PageArena::Pages::plain);
  return *instance;
}
constexpr std::size_t arena_bytes(std::size_t words) {
  return crypto::PageArena::rounded(words * sizeof(std::uint64_t));
}

}  // namespace

ReplayWindow::ReplayWindow(std::uint32_t bits, std::uint64_t top)
    : top_(top),
      bits_(bits == 0 ? 0 : std::bit_ceil(std::clamp(bits, kMinWindowBits, kMaxWindowBits))),
      word_mask_(bits_ <= kWordBits ? 0 : bits_ / kWordBits - 1) {
  if (bits_ == 0) return;
  words_ = reinterpret_cast<std::uint64_t*>(arena().allocate(arena_bytes(words())));
  if (top > 0) std::fill_n(words_, words(), ~std::uint64_t{0});
}

ReplayWindow& ReplayWindow::operator=(ReplayWindow&& other) noexcept {
  std::swap(top_, other.top_);
  std::swap(bits_, other.bits_);
  std::swap(word_mask_, other.word_mask_);
  std::swap(words_, other.words_);
  return *this;
}

ReplayWindow::~ReplayWindow() {
  if (words_ == nullptr) return;
  if (top_ != 0) std::fill_n(words_, words(), 0);
  arena().release(reinterpret_cast<std::uint8_t*>(words_), arena_bytes(words()));
}

// Makes the places of first … last, which the window enters, those of numbers not seen.
void ReplayWindow::forget(std::uint64_t first, std::uint64_t last) noexcept {
  if (bits_ == 0) return;
  const std::uint64_t all = ~std::uint64_t{0};
  const std::uint64_t from = all << first % kWordBits;
  const std::uint64_t to = all >> (kWordBits - 1 - last % kWordBits);
  const std::uint64_t steps = last / kWordBits - first / kWordBits;
  if (last - first >= words() * kWordBits - 1) {
    std::fill_n(words_, words(), 0);
  } else if (steps == 0) {
    word(first) &= ~(from & to);
  } else {  // the last word may be the first one again, met from the other end
    word(first) &= ~from;
    for (std::uint64_t i = 1; i < steps; ++i) word(first + i * kWordBits) = 0;
    word(last) &= ~to;
  }
}

void ReplayWindow::take_over(const ReplayWindow& other) noexcept {
  top_ = other.top_;
  if (bits_ == 0) return;
  std::fill_n(words_, words(), top_ == 0 ? 0 : ~std::uint64_t{0});
  const std::uint64_t known = std::min<std::uint64_t>({bits_, other.bits_, top_});
  for (std::uint64_t i = 0; i < known; ++i)
    if (other.check(top_ - i) == Verdict::good) word(top_ - i) &= ~bit(top_ - i);
}

std::uint64_t ReplayWindow::infer(std::uint32_t seq_lo) const noexcept {
  const auto top_lo = static_cast<std::uint32_t>(top_);
  const std::uint64_t top_hi = top_ >> 32;
  const std::uint32_t bottom_lo = top_lo - bits_ + 1;  // modulo 2^32
  std::uint64_t hi = top_hi;
  if (top_lo >= bits_ - 1) {
    if (seq_lo < bottom_lo) ++hi;  // case A: the window lies within one subspace
  } else if (seq_lo >= bottom_lo && hi > 0) {
    --hi;  // case B: the window reaches back into the subspace before
  }
  return hi << 32 | seq_lo;
}

}  // namespace espalier::dataplane
