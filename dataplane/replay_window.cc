#include "dataplane/replay_window.h"

#include <algorithm>

namespace espalier::dataplane {
namespace {

constexpr std::uint32_t kBlockBits = 64;

constexpr std::uint64_t bit(std::uint64_t seq) {
  return std::uint64_t{1} << (seq % kBlockBits);
}

}  // namespace

ReplayWindow::ReplayWindow(std::uint32_t bits, std::uint64_t top)
    : top_(top),
      bits_(std::bit_ceil(std::max(bits, kBlockBits))),
      // Twice the window in blocks keeps the index a mask; one spare block would be enough.
      block_mask_(2 * bits_ / kBlockBits - 1),
      blocks_(std::make_unique<std::uint64_t[]>(block_mask_ + 1)) {
  if (top > 0) std::fill_n(blocks_.get(), block_mask_ + 1, ~std::uint64_t{0});
  // The rest of the top's own block is still to come.
  if (top > 0) blocks_[top / kBlockBits & block_mask_] = bit(top) | (bit(top) - 1);
}

ReplayWindow::Verdict ReplayWindow::check(std::uint64_t seq) const noexcept {
  if (seq > top_) return Verdict::good;
  if (seq == 0 || top_ - seq >= bits_) return Verdict::late;
  return (blocks_[seq / kBlockBits & block_mask_] & bit(seq)) != 0 ? Verdict::duplicate
                                                                   : Verdict::good;
}

ReplayWindow::Verdict ReplayWindow::commit(std::uint64_t seq) noexcept {
  if (const Verdict verdict = check(seq); verdict != Verdict::good) return verdict;
  if (seq > top_) {
    const std::uint64_t from = top_ / kBlockBits;
    const std::uint64_t steps = std::min<std::uint64_t>(seq / kBlockBits - from, block_mask_ + 1);
    for (std::uint64_t i = 1; i <= steps; ++i) blocks_[(from + i) & block_mask_] = 0;
    top_ = seq;
  }
  blocks_[seq / kBlockBits & block_mask_] |= bit(seq);
  return Verdict::good;
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
