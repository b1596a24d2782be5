// The anti-replay window of one inbound SA (RFC 4303 §3.4.3, Appendix A; block layout as RFC 6479).
#pragma once

#include <bit>
#include <cstdint>
#include <memory>

namespace espalier::dataplane {

// 64-bit sequence numbers; without ESN the caller passes the 32-bit number as it is. `check` before
// the ICV, `commit` after it; commit refuses duplicates itself, so several copies of one number in
// a batch pass at most once.
// Single writer at a time (the SA's lock).
class ReplayWindow {
 public:
  enum class Verdict : std::uint8_t { good, duplicate, late };

  // `bits` is rounded up to a power of two, at least 64; a window of W bits accepts T-W+1 … T.
  // `top`: numbers up to and including it count as seen.
  explicit ReplayWindow(std::uint32_t bits, std::uint64_t top = 0);

  [[nodiscard]] Verdict check(std::uint64_t seq) const noexcept;
  Verdict commit(std::uint64_t seq) noexcept;

  // The 64-bit number that `seq_lo` most likely stands for (RFC 4303 Appendix A2.2).
  [[nodiscard]] std::uint64_t infer(std::uint32_t seq_lo) const noexcept;

  [[nodiscard]] std::uint64_t top() const noexcept { return top_; }
  [[nodiscard]] std::uint32_t bits() const noexcept { return bits_; }

 private:
  // One more block than the window holds, so that the block being entered can be cleared while the
  // rest of the window stays whole.
  std::uint64_t top_;
  std::uint32_t bits_;
  std::uint32_t block_mask_;
  std::unique_ptr<std::uint64_t[]> blocks_;
};

}  // namespace espalier::dataplane
