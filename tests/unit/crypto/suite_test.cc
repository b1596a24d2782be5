#include "crypto/suite.h"

#include <gtest/gtest.h>

namespace espalier::crypto {
namespace {

TEST(Suite, InfoIsThatOfTheSuite) {
  ASSERT_EQ(suites().size(), kSuiteCount);
  for (const SuiteInfo& s : suites()) {
    EXPECT_EQ(&info(s.suite), &s);
    EXPECT_LE(s.key, kMaxKeyBytes);
    EXPECT_LE(s.salt, kMaxSaltBytes);
    EXPECT_LE(s.iv, kMaxIvBytes);
    EXPECT_LE(s.icv, kMaxIcvBytes);
  }
  EXPECT_EQ(info(Suite::aes_gcm128).keymat(), 20U);  // RFC 4106 §8.1
  EXPECT_EQ(info(Suite::aes_gcm192).keymat(), 28U);
  EXPECT_EQ(info(Suite::aes_gcm256).keymat(), 36U);
}

TEST(Suite, IsParsedFromWhatUsersWrite) {
  for (const SuiteInfo& s : suites()) EXPECT_EQ(parse_suite(s.name), s.suite);
  for (const char* name : {"aes_gcm_16_256", "aes256gcm16", "aes_gcm-256", "aes_gcm_c-256"})
    EXPECT_EQ(parse_suite(name), Suite::aes_gcm256) << name;
  EXPECT_EQ(parse_suite("aes192gcm16"), Suite::aes_gcm192);
  EXPECT_EQ(parse_suite("aes128gcm128"), Suite::aes_gcm128);
}

TEST(Suite, IsNotGuessed) {
  // The 8- and 12-byte ICVs and CBC are other suites: never quietly the nearest one.
  for (const char* name : {"", "aes", "aes256", "aes_gcm_8_256", "aes256gcm8", "aes256gcm64",
                           "AES_GCM256", "aes_gcm256 ", "aes_gcm2566", "aes256-sha1"})
    EXPECT_EQ(parse_suite(name), std::nullopt) << name;
}

}  // namespace
}  // namespace espalier::crypto
