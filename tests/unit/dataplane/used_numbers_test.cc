#include "dataplane/used_numbers.h"

#include <gtest/gtest.h>

#include "crypto/secret.h"

namespace espalier::dataplane {
namespace {

crypto::Fingerprint key(std::uint64_t number) {
  crypto::initialise();
  return crypto::fingerprint({reinterpret_cast<const std::uint8_t*>(&number), sizeof number});
}

TEST(UsedNumbers, T1AKeyGoesOnBehindWhatItHasUsed) {
  UsedNumbers used(100);
  EXPECT_EQ(used.next(key(1)), 1U);
  used.remember(key(1), 70);
  used.remember(key(1), 20);  // an SA that got less far
  EXPECT_EQ(used.next(key(1)), 70U);
  EXPECT_EQ(used.next(key(2)), 1U);
}

TEST(UsedNumbers, T1TheLastOnesAreAllKnown) {
  constexpr std::uint64_t kKeys = 1000;
  UsedNumbers used(kKeys);
  for (std::uint64_t i = 0; i < 10 * kKeys; ++i) {
    used.remember(key(i), i + 2);
    const std::uint64_t oldest = i < kKeys ? 0 : i - kKeys + 1;
    ASSERT_EQ(used.next(key(oldest)), oldest + 2) << i;
  }
  for (std::uint64_t i = 9 * kKeys; i < 10 * kKeys; ++i) EXPECT_EQ(used.next(key(i)), i + 2);
}

// One that is remembered again while the tables change places keeps its number.
TEST(UsedNumbers, T1NoNumberGoesBack) {
  constexpr std::uint64_t kKeys = 10;
  UsedNumbers used(kKeys);
  used.remember(key(0), 500);
  for (std::uint64_t i = 1; i < 100; ++i) {
    used.remember(key(i), 2);
    used.remember(key(0), 3);
    ASSERT_EQ(used.next(key(0)), 500U) << i;
  }
}

}  // namespace
}  // namespace espalier::dataplane
