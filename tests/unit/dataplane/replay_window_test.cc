#include "dataplane/replay_window.h"

#include <gtest/gtest.h>

#include <cctype>
#include <fstream>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace espalier::dataplane {
namespace {

using Verdict = ReplayWindow::Verdict;

// The published table: `LIM*4-LIM+2 yes` and the like, evaluated for a window size.
std::uint64_t evaluate(const std::string& expression, std::uint64_t lim) {
  std::uint64_t total = 0;
  std::uint64_t product = 1;
  char sign = '+';
  std::size_t i = 0;
  const auto apply = [&] { total = sign == '+' ? total + product : total - product; };
  while (i < expression.size()) {
    std::uint64_t value = 0;
    if (expression.compare(i, 3, "LIM") == 0) {
      value = lim;
      i += 3;
    } else {
      while (i < expression.size() && std::isdigit(static_cast<unsigned char>(expression[i])) != 0)
        value = value * 10 + static_cast<std::uint64_t>(expression[i++] - '0');
    }
    product *= value;
    if (i < expression.size() && expression[i] != '*') {
      apply();
      sign = expression[i];
      product = 1;
    }
    ++i;
  }
  apply();
  return total;
}

class Sizes : public testing::TestWithParam<std::uint32_t> {};
INSTANTIATE_TEST_SUITE_P(ReplayWindow, Sizes, testing::Values(32, 64, 128, 1024, 4096, 65536));

TEST_P(Sizes, PublishedTable) {
  std::ifstream file(ESPALIER_VECTORS "/replay-table.txt");
  ASSERT_TRUE(file);
  ReplayWindow window(GetParam());
  std::string line;
  int rows = 0;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    std::istringstream words(line);
    std::string number;
    std::string verdict;
    words >> number >> verdict;
    EXPECT_EQ(window.commit(evaluate(number, GetParam())) == Verdict::good, verdict == "yes")
        << line;
    ++rows;
  }
  EXPECT_EQ(rows, 24);
}

TEST_P(Sizes, PublishedSweeps) {
  const std::uint64_t w = GetParam() - 1;
  const auto good = [](ReplayWindow& window, std::uint64_t n) {
    return window.commit(n) == Verdict::good;
  };
  {
    ReplayWindow window(GetParam());
    for (std::uint64_t n = 2; n <= w + 1; ++n) ASSERT_TRUE(good(window, n));
    EXPECT_TRUE(good(window, 1));
    EXPECT_FALSE(good(window, 1));
  }
  {
    ReplayWindow window(GetParam());
    for (std::uint64_t n = 3; n <= w + 2; ++n) ASSERT_TRUE(good(window, n));
    EXPECT_TRUE(good(window, 2));
    EXPECT_FALSE(good(window, 1));
  }
  {
    ReplayWindow window(GetParam());
    for (std::uint64_t n = w + 2; n >= 2; --n) ASSERT_TRUE(good(window, n));
    EXPECT_FALSE(good(window, 1));
  }
  {
    ReplayWindow window(GetParam());
    for (std::uint64_t n = w + 1; n >= 2; --n) ASSERT_TRUE(good(window, n));
    EXPECT_TRUE(good(window, w + 2));
    EXPECT_FALSE(good(window, 1));
  }
  {
    ReplayWindow window(GetParam());
    for (std::uint64_t n = w + 1; n >= 1; --n) ASSERT_TRUE(good(window, n));
    EXPECT_TRUE(good(window, w + 2));
  }
}

TEST(ReplayWindow, ZeroIsNeverAccepted) {
  ReplayWindow window(64);
  EXPECT_EQ(window.check(0), Verdict::late);
  EXPECT_EQ(window.commit(0), Verdict::late);
}

TEST(ReplayWindow, CheckDoesNotMove) {
  ReplayWindow window(64);
  EXPECT_EQ(window.commit(79), Verdict::good);
  for (std::uint64_t n = 200; n < 217; ++n) EXPECT_EQ(window.check(n), Verdict::good);
  EXPECT_EQ(window.commit(70), Verdict::good);  // forged numbers ahead have not moved it
}

TEST(ReplayWindow, A6LateAndGoodInOneBatch) {
  ReplayWindow window(64);
  EXPECT_EQ(window.commit(79), Verdict::good);
  EXPECT_EQ(window.commit(200), Verdict::good);
  EXPECT_EQ(window.commit(81), Verdict::late);
  EXPECT_EQ(window.commit(201), Verdict::good);
  EXPECT_EQ(window.commit(202), Verdict::good);
}

TEST(ReplayWindow, LastNumberIsAcceptedOnce) {
  ReplayWindow window(1024);
  const std::uint64_t last = ~std::uint64_t{0};
  EXPECT_EQ(window.commit(last), Verdict::good);
  EXPECT_EQ(window.commit(last), Verdict::duplicate);
  EXPECT_EQ(window.commit(last - 1), Verdict::good);
}

TEST(ReplayWindow, TopOfARestartCountsAsSeen) {
  for (const std::uint64_t top : {1ULL, 63ULL, 64ULL, 65ULL, 4095ULL, 4096ULL, 5000000000ULL}) {
    ReplayWindow window(4096, top);
    for (std::uint64_t n = top; n > 0 && top - n < 5000; --n)
      ASSERT_NE(window.commit(n), Verdict::good) << top << " " << n;
    for (std::uint64_t n = top + 1; n < top + 5000; ++n)
      ASSERT_EQ(window.commit(n), Verdict::good) << top << " " << n;
  }
}

TEST(ReplayWindow, InfersTheHighHalf) {
  ReplayWindow window(64);
  (void)window.commit(0xfffffffcULL);
  EXPECT_EQ(window.infer(6), 0x100000006ULL);          // A9: ahead, across the wrap
  EXPECT_EQ(window.infer(0), 0x100000000ULL);          // low half 0 is valid after the wrap
  EXPECT_EQ(window.infer(0xffffffc0), 0xffffffc0ULL);  // in the window
  EXPECT_EQ(window.commit(0x100000006ULL), Verdict::good);
  EXPECT_EQ(window.infer(0xfffffffd), 0xfffffffdULL);  // A10: late, before the wrap
  EXPECT_EQ(window.commit(0xfffffffdULL), Verdict::good);
  EXPECT_EQ(window.infer(0x80000000), 0x180000000ULL);  // A13: a jump ahead
}

// A slow reference, checked after each call.
TEST(ReplayWindow, AgreesWithASetOfNumbers) {
  std::mt19937_64 random(7);
  for (const std::uint32_t bits : {32U, 64U, 1024U, 4096U}) {
    ReplayWindow window(bits);
    std::set<std::uint64_t> seen;
    std::uint64_t top = 0;
    for (int i = 0; i < 200000; ++i) {
      const std::uint64_t jump = random() % 100 == 0 ? random() % (4ULL * bits) : random() % 8;
      const std::uint64_t back = random() % (bits + 16ULL);
      const std::uint64_t seq = random() % 2 == 0 ? top + jump : (top > back ? top - back : 1);
      const bool late = seq == 0 || (seq <= top && top - seq >= bits);
      const Verdict expected = late                   ? Verdict::late
                               : seen.count(seq) != 0 ? Verdict::duplicate
                                                      : Verdict::good;
      ASSERT_EQ(window.check(seq), expected) << i;
      ASSERT_EQ(window.commit(seq), expected) << i;
      if (expected == Verdict::good) seen.insert(seq);
      top = std::max(top, expected == Verdict::good ? seq : top);
    }
  }
}

// A3: W-1 behind the edge is accepted once, W behind is late, wherever the edge is.
TEST_P(Sizes, A3TheEdges) {
  const std::uint64_t w = GetParam();
  for (const std::uint64_t top :
       {w, w + 1, 3 * w + 17, std::uint64_t{1} << 32, (std::uint64_t{7} << 32) + 31}) {
    ReplayWindow window(GetParam());
    ASSERT_EQ(window.bits(), w);
    ASSERT_EQ(window.commit(top), Verdict::good);
    EXPECT_EQ(window.commit(top - w + 1), Verdict::good) << top;
    EXPECT_EQ(window.commit(top - w + 1), Verdict::duplicate) << top;
    EXPECT_EQ(window.commit(top - w), Verdict::late) << top;
  }
}

// Jumps of every length about the size of the window forget just what they pass.
TEST_P(Sizes, JumpsForgetNothingElse) {
  const std::uint64_t w = GetParam();
  for (std::uint64_t jump = w - std::min<std::uint64_t>(w, 70); jump < w + 70; ++jump) {
    ReplayWindow window(GetParam(), 5 * w + 13);
    const std::uint64_t top = window.top() + jump + 1;
    ASSERT_EQ(window.commit(top), Verdict::good);
    for (std::uint64_t n = top; n + w > top; --n) {
      const bool seen = n == top || n <= 5 * w + 13;
      ASSERT_EQ(window.check(n), seen ? Verdict::duplicate : Verdict::good) << jump << " " << n;
    }
  }
}

TEST(ReplayWindow, SizesAreRoundedUpAndBounded) {
  EXPECT_EQ(ReplayWindow(1).bits(), 32U);
  EXPECT_EQ(ReplayWindow(33).bits(), 64U);
  EXPECT_EQ(ReplayWindow(4097).bits(), 8192U);
  EXPECT_EQ(ReplayWindow(~0U).bits(), 65536U);  // T29
}

// 4303-4: off by its name; every number is taken, and the highest is still known.
TEST(ReplayWindow, ZeroBitsIsOff) {
  ReplayWindow window(0, 100);
  for (int i = 0; i < 3; ++i)
    for (const std::uint64_t n : {0ULL, 1ULL, 100ULL, 500ULL, 0xffffffffULL})
      EXPECT_EQ(window.commit(n), Verdict::good);
  EXPECT_EQ(window.top(), 0xffffffffULL);
}

// A number that was accepted is never accepted again, whatever the window is made to; one that is
// within both windows and was not seen still is.
TEST(ReplayWindow, ResizingForgetsNothing) {
  std::mt19937_64 random(3);
  ReplayWindow window(1024);
  std::set<std::uint64_t> seen;
  std::uint64_t bottom = 1;  // numbers below count as seen
  for (int i = 0; i < 100000; ++i) {
    if (i % 500 == 0) {
      ReplayWindow next(32U << random() % 9);
      next.take_over(window);
      ASSERT_EQ(next.top(), window.top());
      std::swap(window, next);
    }
    const std::uint64_t top = window.top();
    bottom = std::max(bottom, top - std::min<std::uint64_t>(top, window.bits()) + 1);
    const std::uint64_t back = random() % (2ULL * window.bits());
    const std::uint64_t seq = random() % 3 == 0 ? top + random() % 40 : top - std::min(top, back);
    const bool good = seq > top || (seq >= bottom && seen.count(seq) == 0);
    ASSERT_EQ(window.commit(seq) == Verdict::good, good) << i << " " << seq << " of " << top;
    if (good) seen.insert(seq);
    bottom =
        std::max(bottom, window.top() - std::min<std::uint64_t>(window.top(), window.bits()) + 1);
  }
}

TEST(ReplayWindow, OffAndOnAgainTakesNothingOld) {
  ReplayWindow off(0);
  (void)off.commit(50);
  ReplayWindow window(64);
  window.take_over(off);
  for (std::uint64_t n = 1; n <= 50; ++n) EXPECT_NE(window.commit(n), Verdict::good);
  EXPECT_EQ(window.commit(51), Verdict::good);
}

// The place of a window that goes is the next one's, which has seen nothing.
TEST(ReplayWindow, KnowsNothingOfTheOneBefore) {
  for (const std::uint32_t bits : {32U, 64U, 4096U, kMaxWindowBits}) {
    {
      ReplayWindow used(bits);
      for (std::uint64_t n = 1; n <= 2ULL * bits; ++n) ASSERT_EQ(used.commit(n), Verdict::good);
      const ReplayWindow full(bits, 1);
    }
    std::vector<ReplayWindow> fresh;
    for (int i = 0; i < 3; ++i) fresh.emplace_back(bits);
    for (ReplayWindow& window : fresh) {
      ASSERT_EQ(window.commit(bits), Verdict::good);
      for (std::uint64_t n = 1; n < bits; ++n) ASSERT_EQ(window.check(n), Verdict::good) << n;
    }
  }
}

// A11: where the window lies in the 32-bit number space decides the high half (RFC 4303 A2.2).
TEST(ReplayWindow, A11CasesAAndB) {
  struct Row {
    std::uint64_t top;
    std::uint32_t seq;
    std::uint64_t expected;
  };
  constexpr std::uint32_t kBits = 64;
  const std::uint64_t a = (std::uint64_t{5} << 32) + 1000;  // case A: within one subspace
  const std::uint64_t b =
      (std::uint64_t{5} << 32) + 10;  // case B: it reaches back into the one before
  for (const Row& row : {
           Row{a, 1001, (5ULL << 32) + 1001},              // ahead
           Row{a, 1000, (5ULL << 32) + 1000},              // the top
           Row{a, 937, (5ULL << 32) + 937},                // the bottom
           Row{a, 936, (6ULL << 32) + 936},                // below it: after the next wrap
           Row{a, 0, (6ULL << 32)},                        //
           Row{a, 0xffffffff, (5ULL << 32) + 0xffffffff},  // far ahead
           Row{b, 11, (5ULL << 32) + 11},                  //
           Row{b, 0, (5ULL << 32)},                        // 0 after the wrap
           Row{b, 0xffffffff, (4ULL << 32) + 0xffffffff},  // the last before it
           Row{b, 0xffffffcb, (4ULL << 32) + 0xffffffcb},  // the bottom
           Row{b, 0xffffffca, (5ULL << 32) + 0xffffffca},  // below it: far ahead
       }) {
    const ReplayWindow window(kBits, row.top);
    EXPECT_EQ(window.infer(row.seq), row.expected) << row.top << " " << row.seq;
  }
}

// A13: the longest jumps that the low half can tell.
TEST(ReplayWindow, A13JumpOf2to31) {
  for (const std::uint64_t jump : {1ULL << 31, (1ULL << 32) - 2ULL * 4096}) {
    for (const std::uint64_t top : {5000ULL, 0xfffffff0ULL, 0x1000000ffULL}) {
      ReplayWindow window(4096, top);
      const std::uint64_t seq = window.infer(static_cast<std::uint32_t>(top + jump));
      EXPECT_EQ(seq, top + jump);
      EXPECT_EQ(window.commit(seq), Verdict::good);
      EXPECT_EQ(window.top(), top + jump);
    }
  }
}

}  // namespace
}  // namespace espalier::dataplane
