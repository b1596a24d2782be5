#include "dataplane/checksum.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

namespace espalier::dataplane {
namespace {

std::vector<std::uint8_t> random_bytes(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::uint8_t> bytes(n);
  for (auto& b : bytes) b = static_cast<std::uint8_t>(random());
  return bytes;
}

// RFC 1071 §1, word by word; network order, made native at the end.
std::uint16_t reference(const std::uint8_t* p, std::size_t n) {
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    sum += i % 2 == 0 ? std::uint32_t{p[i]} << 8 : p[i];
    sum = (sum & 0xffff) + (sum >> 16);
  }
  const std::uint8_t bytes[] = {static_cast<std::uint8_t>(sum >> 8),
                                static_cast<std::uint8_t>(sum)};
  std::uint16_t native;
  std::memcpy(&native, bytes, 2);
  return native;
}

// What a reference for all lengths would cost if each started anew.
std::vector<std::uint16_t> reference_of_every_length(const std::vector<std::uint8_t>& bytes) {
  std::vector<std::uint16_t> sums{0};
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    sum += i % 2 == 0 ? std::uint32_t{bytes[i]} << 8 : bytes[i];
    sum = (sum & 0xffff) + (sum >> 16);
    sums.push_back(
        static_cast<std::uint16_t>(std::endian::native == std::endian::little
                                       ? __builtin_bswap16(static_cast<std::uint16_t>(sum))
                                       : sum));
  }
  return sums;
}

class Kernels : public testing::TestWithParam<ChecksumKernel> {};
INSTANTIATE_TEST_SUITE_P(Checksum, Kernels,
                         testing::ValuesIn(checksum_kernels().begin(), checksum_kernels().end()),
                         [](const auto& param_info) {
                           std::string name = param_info.param.name;
                           std::erase(name, '-');
                           return name;
                         });

TEST(Checksum, ExampleOfRfc1071) {
  const std::uint8_t bytes[] = {0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7};
  const std::uint8_t sum[] = {0xdd, 0xf2};
  std::uint16_t native;
  std::memcpy(&native, sum, 2);
  EXPECT_EQ(fold(sum_bytes(bytes, sizeof bytes)), native);
}

TEST_P(Kernels, EveryLength) {
  const auto bytes = random_bytes(65536, 1);
  const auto expected = reference_of_every_length(bytes);
  ASSERT_EQ(expected[60001], reference(bytes.data(), 60001));
  std::vector<std::uint8_t> to(bytes.size() + 1);
  for (std::size_t n = 0; n <= bytes.size(); n += n < 5000 || n > 65000 ? 1 : 97) {
    ASSERT_EQ(fold(GetParam().sum(bytes.data(), n)), expected[n]) << n;
    to[n] = 0xa5;
    ASSERT_EQ(fold(GetParam().copy(to.data(), bytes.data(), n)), expected[n]) << n;
    ASSERT_EQ(std::memcmp(to.data(), bytes.data(), n), 0) << n;
    ASSERT_EQ(to[n], 0xa5) << "wrote behind " << n;
  }
}

TEST_P(Kernels, EveryAlignment) {
  const auto bytes = random_bytes(1024, 2);
  for (std::size_t from = 0; from < 65; ++from) {
    for (std::size_t to = 0; to < 65; ++to) {
      for (const std::size_t n : {20U, 31U, 64U, 100U, 255U, 300U, 513U}) {
        std::vector<std::uint8_t> out(1024, 0xa5);
        ASSERT_EQ(fold(GetParam().copy(&out[to], &bytes[from], n)), reference(&bytes[from], n));
        ASSERT_EQ(std::memcmp(&out[to], &bytes[from], n), 0);
        ASSERT_TRUE(to == 0 || out[to - 1] == 0xa5);
        ASSERT_EQ(out[to + n], 0xa5);
        ASSERT_EQ(fold(GetParam().sum(&bytes[from], n)), reference(&bytes[from], n));
      }
    }
  }
}

// All ones: each counter at its highest.
TEST_P(Kernels, NothingOverflows) {
  const std::vector<std::uint8_t> ones(65536, 0xff);
  EXPECT_EQ(fold(GetParam().sum(ones.data(), ones.size())), 0xffff);
  EXPECT_LT(GetParam().sum(ones.data(), ones.size()), std::uint64_t{1} << 34);
  std::vector<std::uint8_t> to(ones.size());
  EXPECT_EQ(GetParam().copy(to.data(), ones.data(), ones.size()),
            GetParam().sum(ones.data(), ones.size()));
  EXPECT_EQ(to, ones);
}

// Each length in a block of its own, so that ASan sees a byte too many.
TEST_P(Kernels, ReadsNothingBehind) {
  for (std::size_t n = 0; n < 600; ++n) {
    const auto bytes = random_bytes(n, 3);
    std::vector<std::uint8_t> to(n);
    EXPECT_EQ(fold(GetParam().copy(to.data(), bytes.data(), n)), reference(bytes.data(), n));
    EXPECT_EQ(to, bytes);
  }
}

TEST(Checksum, LongerThanABlock) {
  const auto bytes = random_bytes(300001, 4);
  std::vector<std::uint8_t> to(bytes.size());
  EXPECT_EQ(fold(sum_bytes(bytes.data(), bytes.size())), reference(bytes.data(), bytes.size()));
  EXPECT_EQ(fold(copy_and_sum(to.data(), bytes.data(), bytes.size())),
            reference(bytes.data(), bytes.size()));
  EXPECT_EQ(to, bytes);
}

TEST(Checksum, PartsAddUp) {
  const auto bytes = random_bytes(4000, 5);
  for (std::size_t cut = 0; cut <= bytes.size(); cut += 2) {
    const std::uint64_t sum =
        sum_bytes(bytes.data(), cut) + sum_bytes(&bytes[0] + cut, bytes.size() - cut);
    ASSERT_EQ(fold(sum), reference(bytes.data(), bytes.size()));
  }
}

TEST(Checksum, FoldsEveryCarry) {
  EXPECT_EQ(fold(0), 0);
  EXPECT_EQ(fold(0x1ffff), 1);
  EXPECT_EQ(fold(~std::uint64_t{0}), 0xffff);
  EXPECT_EQ(fold(0xffff'ffff'0000'0001), 1);
}

// Before main(), where the chosen function is not yet there.
const std::uint64_t kSummedEarly = [] {
  const std::vector<std::uint8_t> ones(128, 1);
  return sum_bytes(ones.data(), ones.size());
}();

TEST(Checksum, WorksInStaticInitialisation) {
  EXPECT_EQ(fold(kSummedEarly), 64 * 0x0101);
}

}  // namespace
}  // namespace espalier::dataplane
