// T15: IVs of CBC have no relation to each other.
#include "crypto/iv_source.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <set>
#include <vector>

namespace espalier::crypto {
namespace {

using Block = std::array<std::uint8_t, IvSource::kBlock>;

std::vector<Block> draw(IvSource& source, std::size_t count) {
  std::vector<Block> blocks(count);
  for (Block& b : blocks) source.draw(b.data());
  return blocks;
}

TEST(IvSource, T15NoBlockComesTwice) {
  IvSource source;
  std::vector<Block> blocks = draw(source, 100'000);
  std::sort(blocks.begin(), blocks.end());
  EXPECT_EQ(std::adjacent_find(blocks.begin(), blocks.end()), blocks.end());
}

TEST(IvSource, T15NeighboursDifferInHalfOfTheirBits) {
  IvSource source;
  const std::vector<Block> blocks = draw(source, 100'000);
  std::uint64_t differing = 0;
  std::array<std::uint64_t, 128> ones{};
  for (std::size_t i = 1; i < blocks.size(); ++i)
    for (std::size_t bit = 0; bit < 128; ++bit) {
      const unsigned mask = 1U << bit % 8;
      differing += ((blocks[i][bit / 8] ^ blocks[i - 1][bit / 8]) & mask) != 0 ? 1U : 0U;
      ones[bit] += (blocks[i][bit / 8] & mask) != 0 ? 1U : 0U;
    }
  // Ten standard deviations: sqrt(n) / 2 each.
  EXPECT_NEAR(static_cast<double>(differing), 100'000 * 64.0, 10 * 1789.0);
  for (const std::uint64_t count : ones) EXPECT_NEAR(static_cast<double>(count), 50'000, 1581);
}

TEST(IvSource, TwoSourcesHaveNothingInCommon) {
  IvSource a;
  IvSource b;
  const std::vector<Block> from_a = draw(a, 1000);
  const std::set<Block> seen(from_a.begin(), from_a.end());
  for (const Block& block : draw(b, 1000)) EXPECT_FALSE(seen.contains(block));
}

// Across refills too, whatever is next to the block stays as it was.
TEST(IvSource, WritesOneBlock) {
  IvSource source;
  for (int i = 0; i < 200; ++i) {
    std::array<std::uint8_t, 48> memory{};
    memory.fill(0xC5);
    source.draw(memory.data() + 16);
    for (std::size_t at = 0; at < 16; ++at) {
      ASSERT_EQ(memory[at], 0xC5);
      ASSERT_EQ(memory[32 + at], 0xC5);
    }
  }
}

}  // namespace
}  // namespace espalier::crypto
