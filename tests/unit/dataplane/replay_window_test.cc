#include "dataplane/replay_window.h"

#include <gtest/gtest.h>

#include <cctype>
#include <fstream>
#include <random>
#include <set>
#include <sstream>
#include <string>

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
INSTANTIATE_TEST_SUITE_P(ReplayWindow, Sizes, testing::Values(64, 128, 1024, 4096, 65536));

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
  for (const std::uint32_t bits : {64U, 1024U, 4096U}) {
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

}  // namespace
}  // namespace espalier::dataplane
