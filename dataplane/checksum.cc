#include "dataplane/checksum.h"

#include <array>
#include <atomic>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace espalier::dataplane {
namespace {

using Bytes = const std::uint8_t*;

// Below this a vector's horizontal sum costs more than it saves.
constexpr std::size_t kVectorMin = 64;
// The vectors count in 32-bit lanes; this much cannot fill them.
constexpr std::size_t kBlock = 65536;

// Scalar: eight bytes a step, carries added back at the end of the word (RFC 1071 §2 (B), (C)).

constexpr std::uint64_t add_carry(std::uint64_t sum, std::uint64_t v) {
  sum += v;
  return sum + static_cast<std::uint64_t>(sum < v);
}

// So that callers may add partial sums without carries of their own.
constexpr std::uint64_t shorten(std::uint64_t sum) {
  return (sum & 0xffffffff) + (sum >> 32);
}

template <class T, bool kCopy>
inline std::uint64_t step(std::uint8_t*& to, Bytes& from) {
  T v;
  std::memcpy(&v, from, sizeof v);
  if constexpr (kCopy) {
    std::memcpy(to, &v, sizeof v);
    to += sizeof v;
  }
  from += sizeof v;
  return v;
}

template <bool kCopy>
inline std::uint64_t scalar(std::uint8_t* to, Bytes from, std::size_t n) {
  std::uint64_t sum = 0;
  std::uint64_t other = 0;  // two chains of carries
  for (; n >= 16; n -= 16) {
    sum = add_carry(sum, step<std::uint64_t, kCopy>(to, from));
    other = add_carry(other, step<std::uint64_t, kCopy>(to, from));
  }
  sum = add_carry(sum, other);
  if ((n & 8) != 0) sum = add_carry(sum, step<std::uint64_t, kCopy>(to, from));
  std::uint64_t rest = 0;
  if ((n & 4) != 0) rest += step<std::uint32_t, kCopy>(to, from);
  if ((n & 2) != 0) rest += step<std::uint16_t, kCopy>(to, from);
  if ((n & 1) != 0) {
    std::uint16_t last = 0;  // padded with a zero byte behind it
    std::memcpy(&last, from, 1);
    if constexpr (kCopy) *to = *from;
    rest += last;
  }
  return shorten(add_carry(sum, rest));
}

std::uint64_t sum_scalar(Bytes p, std::size_t n) noexcept {
  return scalar<false>(nullptr, p, n);
}
std::uint64_t copy_scalar(std::uint8_t* to, Bytes from, std::size_t n) noexcept {
  return scalar<true>(to, from, n);
}

#if defined(__x86_64__)

// AVX2: the low and high halves of each 64-bit lane are added to 64-bit counters.

#define ESPALIER_AVX2 __attribute__((target("avx2"))) inline

template <bool kCopy>
ESPALIER_AVX2 __m256i load_avx2(std::uint8_t* to, Bytes from, std::size_t at) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at));
  if constexpr (kCopy) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), v);
  return v;
}

ESPALIER_AVX2 std::uint64_t total_avx2(__m256i v) {
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  return static_cast<std::uint64_t>(
      _mm_cvtsi128_si64(_mm_add_epi64(half, _mm_unpackhi_epi64(half, half))));
}

template <bool kCopy>
ESPALIER_AVX2 std::uint64_t vector_avx2(std::uint8_t* to, Bytes from, std::size_t n) {
  const __m256i low_half = _mm256_set1_epi64x(0xffffffff);
  __m256i low = _mm256_setzero_si256();
  __m256i high = low;
  std::size_t at = 0;
  for (; n - at >= 64; at += 64) {
    const __m256i a = load_avx2<kCopy>(to, from, at);
    const __m256i b = load_avx2<kCopy>(to, from, at + 32);
    low = _mm256_add_epi64(low, _mm256_and_si256(a, low_half));
    high = _mm256_add_epi64(high, _mm256_srli_epi64(a, 32));
    low = _mm256_add_epi64(low, _mm256_and_si256(b, low_half));
    high = _mm256_add_epi64(high, _mm256_srli_epi64(b, 32));
  }
  return shorten(total_avx2(_mm256_add_epi64(low, high))) +
         scalar<kCopy>(kCopy ? to + at : nullptr, from + at, n - at);
}

__attribute__((target("avx2"))) std::uint64_t sum_avx2(Bytes p, std::size_t n) noexcept {
  return vector_avx2<false>(nullptr, p, n);
}
__attribute__((target("avx2"))) std::uint64_t copy_avx2(std::uint8_t* to, Bytes from,
                                                        std::size_t n) noexcept {
  return vector_avx2<true>(to, from, n);
}

// AVX-512 with VNNI: one dot product adds the even bytes of a vector to 32-bit counters, one the
// odd bytes; two instructions for 64 bytes. Processors with AVX-512 but without VNNI lower their
// clock for wide vectors; they take AVX2.

#define ESPALIER_AVX512 __attribute__((target("avx512f,avx512bw,avx512vnni"))) inline

struct Counters {
  __m512i even, odd;
};

ESPALIER_AVX512 void count_avx512(Counters& c, __m512i v) {
  c.even = _mm512_dpbusd_epi32(c.even, v, _mm512_set1_epi16(0x0001));
  c.odd = _mm512_dpbusd_epi32(c.odd, v, _mm512_set1_epi16(0x0100));
}

template <bool kCopy>
ESPALIER_AVX512 void step_avx512(Counters& c, std::uint8_t* to, Bytes from, std::size_t at) {
  const __m512i v = _mm512_loadu_si512(from + at);
  if constexpr (kCopy) _mm512_storeu_si512(to + at, v);
  count_avx512(c, v);
}

template <bool kCopy>
ESPALIER_AVX512 void part_avx512(Counters& c, std::uint8_t* to, Bytes from, std::size_t at,
                                 std::size_t n) {
  const __mmask64 mask = ~std::uint64_t{0} >> (64 - n);  // n: 1 … 64
  const __m512i v = _mm512_maskz_loadu_epi8(mask, from + at);
  if constexpr (kCopy) _mm512_mask_storeu_epi8(to + at, mask, v);
  count_avx512(c, v);
}

// Masked: GCC 12 takes the undefined operand inside the plain intrinsic for a mistake of ours.
ESPALIER_AVX512 __m256i halve_avx512(__m512i v) {
  return _mm256_add_epi32(_mm512_maskz_extracti64x4_epi64(0xff, v, 0),
                          _mm512_maskz_extracti64x4_epi64(0xff, v, 1));
}

// n: at most kBlock
template <bool kCopy>
ESPALIER_AVX512 std::uint64_t vector_avx512(std::uint8_t* to, Bytes from, std::size_t n) {
  const __m512i zero = _mm512_setzero_si512();
  Counters a{zero, zero};
  Counters b{zero, zero};
  std::size_t at = 0;
  if constexpr (kCopy) {
    // Stores that straddle cache lines cost twice. An odd start would swap even and odd bytes.
    const std::size_t head = (~reinterpret_cast<std::uintptr_t>(to) + 1) & 63;
    if (head != 0 && head % 2 == 0 && n >= 256) {
      part_avx512<kCopy>(a, to, from, 0, head);
      at = head;
    }
  }
  for (; n - at >= 128; at += 128) {
    step_avx512<kCopy>(a, to, from, at);
    step_avx512<kCopy>(b, to, from, at + 64);
  }
  if (n - at >= 64) {
    step_avx512<kCopy>(a, to, from, at);
    at += 64;
  }
  if (n != at) part_avx512<kCopy>(b, to, from, at, n - at);
  const __m256i even = halve_avx512(_mm512_add_epi32(a.even, b.even));
  const __m256i odd = halve_avx512(_mm512_add_epi32(a.odd, b.odd));
  const __m256i both = _mm256_add_epi32(even, _mm256_slli_epi32(odd, 8));
  __m128i v = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
  v = _mm_add_epi32(v, _mm_unpackhi_epi64(v, v));
  v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(v));
}

__attribute__((target("avx512f,avx512bw,avx512vnni"))) std::uint64_t sum_avx512(
    Bytes p, std::size_t n) noexcept {
  return vector_avx512<false>(nullptr, p, n);
}
__attribute__((target("avx512f,avx512bw,avx512vnni"))) std::uint64_t copy_avx512(
    std::uint8_t* to, Bytes from, std::size_t n) noexcept {
  return vector_avx512<true>(to, from, n);
}

#endif  // __x86_64__

// Each processor that can run one of these can run those behind it.
constexpr std::array kKernels = {
#if defined(__x86_64__)
    ChecksumKernel{"avx512-vnni", sum_avx512, copy_avx512},
    ChecksumKernel{"avx2", sum_avx2, copy_avx2},
#endif
    ChecksumKernel{"scalar", sum_scalar, copy_scalar},
};

std::size_t first_supported() noexcept {
#if defined(__x86_64__)
  __builtin_cpu_init();  // this may run before the constructors of the run-time library
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni")) return 0;
  if (__builtin_cpu_supports("avx2")) return 1;
#endif
  return kKernels.size() - 1;
}

std::uint64_t choose_sum(Bytes p, std::size_t n) noexcept;
std::uint64_t choose_copy(std::uint8_t* to, Bytes from, std::size_t n) noexcept;

// The first call replaces them. Initialised by the compiler, so that it works in the constructors
// of other files too; not by an ifunc, whose resolver runs before the sanitizers do.
constinit std::atomic<decltype(ChecksumKernel::sum)> chosen_sum{choose_sum};
constinit std::atomic<decltype(ChecksumKernel::copy)> chosen_copy{choose_copy};

std::uint64_t choose_sum(Bytes p, std::size_t n) noexcept {
  const auto sum = checksum_kernels().front().sum;
  chosen_sum.store(sum, std::memory_order_relaxed);
  return sum(p, n);
}

std::uint64_t choose_copy(std::uint8_t* to, Bytes from, std::size_t n) noexcept {
  const auto copy = checksum_kernels().front().copy;
  chosen_copy.store(copy, std::memory_order_relaxed);
  return copy(to, from, n);
}

}  // namespace

std::span<const ChecksumKernel> checksum_kernels() noexcept {
  return std::span<const ChecksumKernel>(kKernels).subspan(first_supported());
}

std::uint64_t sum_bytes(const std::uint8_t* p, std::size_t n) noexcept {
  if (n < kVectorMin) return scalar<false>(nullptr, p, n);
  const auto sum = chosen_sum.load(std::memory_order_relaxed);
  std::uint64_t total = 0;
  for (; n > kBlock; p += kBlock, n -= kBlock) total += sum(p, kBlock);
  return total + sum(p, n);
}

std::uint64_t copy_and_sum(std::uint8_t* to, const std::uint8_t* from, std::size_t n) noexcept {
  if (n < kVectorMin) return scalar<true>(to, from, n);
  const auto copy = chosen_copy.load(std::memory_order_relaxed);
  std::uint64_t total = 0;
  for (; n > kBlock; to += kBlock, from += kBlock, n -= kBlock) total += copy(to, from, kBlock);
  return total + copy(to, from, n);
}

}  // namespace espalier::dataplane
