#include "crypto/suite.h"

#include <gmock/gmock.h>

#include <string>
#include <vector>

namespace espalier::crypto {
namespace {

using ::testing::HasSubstr;

TEST(Suite, InfoIsThatOfTheSuite) {
  ASSERT_EQ(suites().size(), kSuiteCount);
  for (const SuiteInfo& s : suites()) {
    EXPECT_EQ(&info(s.suite), &s);
    EXPECT_LE(s.key, kMaxKeyBytes);
    EXPECT_LE(s.auth_key, kMaxAuthKeyBytes);
    EXPECT_LE(s.salt, kMaxSaltBytes);
    EXPECT_LE(s.iv, kMaxIvBytes);
    EXPECT_LE(s.icv, kMaxIcvBytes);
  }
  EXPECT_EQ(info(Suite::aes_gcm128).keymat(), 20U);  // RFC 4106 §8.1
  EXPECT_EQ(info(Suite::aes_gcm192).keymat(), 28U);
  EXPECT_EQ(info(Suite::aes_gcm256).keymat(), 36U);
  EXPECT_EQ(info(Suite::aes_ccm_8_128).keymat(), 19U);      // RFC 4309 §7.1
  EXPECT_EQ(info(Suite::aes_gmac256).keymat(), 36U);        // RFC 4543 §5.3
  EXPECT_EQ(info(Suite::chacha20_poly1305).keymat(), 36U);  // RFC 7634 §2
  EXPECT_EQ(info(Suite::aes256_sha1).keymat(), 52U);        // RFC 3602, RFC 2404
  EXPECT_EQ(info(Suite::aes256_sha512).keymat(), 96U);      // RFC 4868 §2.1
}

TEST(Suite, IsParsedFromWhatUsersWrite) {
  for (const SuiteInfo& s : suites()) EXPECT_EQ(parse_suite(s.name), s.suite) << s.name;
  struct Spelling {
    Suite suite;
    std::vector<std::string_view> names;
  };
  const std::vector<Spelling> spellings = {
      {Suite::aes_gcm256,
       {"aes_gcm",
        "aes_gcm256",
        "aes_gcm-256",
        "aes_gcm_256",
        "aes_gcm_c",
        "aes_gcm_c-256",
        "aes_gcm_c256",
        "aes-gcm_c256",
        "aes_gcm_16",
        "aes_gcm_16_256",
        "aes_gcm_16-256",
        "aes256gcm16",
        "aes256gcm128",
        "aes256gcm",
        "aes_gcm256-null",
        "aes_gcm_c-256-none",
        "aes256gcm16-ecp384",
        "aes256gcm16-modp2048",
        "aes_gcm256;modp2048",
        "aes_gcm256;dh19",
        "aes_gcm256-curve25519",
        "aes256gcm16-x25519",
        "aes_gcm256;none",
        "aes_gcm256-none;modp2048"}},
      {Suite::aes_gcm128,
       {"aes_gcm128", "aes_gcm_128", "aes_gcm-128", "aes128gcm16", "aes128gcm128", "aes_gcm_16_128",
        "aes_gcm_c-128"}},
      {Suite::aes_gcm192, {"aes_gcm_192", "aes192gcm16", "aes_gcm_16_192", "aes_gcm_c_192"}},
      {Suite::aes_gcm_12_128, {"aes_gcm_12_128", "aes128gcm12", "aes128gcm96", "aes_gcm_b-128"}},
      {Suite::aes_gcm_12_256, {"aes_gcm_12", "aes_gcm_12_256", "aes_gcm_12256"}},
      {Suite::aes_gcm_8_256,
       {"aes_gcm_8_256", "aes256gcm8", "aes256gcm64", "aes_gcm_a", "aes_gcm_8"}},
      {Suite::chacha20_poly1305,
       {"chacha20_poly1305", "chacha20poly1305", "chacha20_poly1305-none",
        "chacha20poly1305-curve25519"}},
      {Suite::aes256_sha1,
       {"aes256-sha1", "aes256-sha", "aes_cbc256-hmac_sha1", "aes_cbc_256-sha1_96", "aes-256-sha1",
        "aes256-sha1;modp2048", "aes256-sha1-modp2048", "aes256-sha1!",
        "aes256-sha1-modp2048-noesn!", "aes256-sha1-prfsha256-ecp256", "AES_CBC_256-HMAC_SHA1_96",
        "AES256-SHA1-ESN"}},
      {Suite::aes128_sha1, {"aes-sha1", "aes_cbc-sha1", "aes128-sha1"}},
      {Suite::aes128_sha256,
       {"aes128-sha256", "aes128-sha2", "aes128-sha2_256", "aes-sha2_256_128",
        "aes-cbc128-hmac_sha2_256_128"}},
      {Suite::aes192_sha384, {"aes192-sha384", "aes_cbc_192-hmac_sha2_384_192"}},
      {Suite::aes256_sha512,
       {"aes256-sha512", "aes256-sha2_512", "aes_cbc256-hmac_sha2_512_256",
        "aes256-sha512-modp4096"}},
      {Suite::aes_ccm_16_256,
       {"aes_ccm", "aes_ccm256", "aes_ccm_c-256", "aes256ccm16", "aes256ccm"}},
      {Suite::aes_ccm_8_256, {"aes256ccm8", "aes_ccm_8_256", "aes_ccm_a256", "aes256ccm64"}},
      {Suite::aes_ccm_12_192, {"aes192ccm12", "aes192ccm96", "aes_ccm_12_192", "aes_ccm_b_192"}},
      {Suite::aes_gmac256,
       {"null_auth_aes_gmac_256", "null_auth_aes_gmac", "aes256gmac", "null_auth_aes_gmac-256",
        "aes_gmac256"}},
      {Suite::aes_gmac128, {"aes128gmac", "null_auth_aes_gmac_128"}},
      {Suite::null_sha256, {"null-sha256", "null-sha2_256", "null-hmac_sha2_256"}},
      {Suite::null_sha1, {"null-sha1", "null-sha1-modp2048"}},
  };
  for (const Spelling& spelling : spellings)
    for (const std::string_view name : spelling.names)
      EXPECT_EQ(parse_suite(name), spelling.suite) << name;
}

TEST(Suite, IsNotGuessed) {
  for (const char* name : {"",
                           "-",
                           "_",
                           ";",
                           "aes",
                           "aes_",
                           "aes_gcm_",
                           "aes-",
                           "aes_gcm_8_",
                           "aes_gcm_9_256",
                           "aes_gcm_24_256",
                           "aes512-sha1",
                           "aes256gcm10",
                           "aes256gcm4",
                           "aes256gcm32",
                           "aes_gcm256 ",
                           "aes_gcm2566",
                           "aes256gcm16x",
                           "aes256-sha3",
                           "aes256-sha224",
                           "aes256-sha1_",
                           "aes256-md5",
                           "3des-sha1",
                           "aes256-aesxcbc",
                           "aes256ctr-sha1",
                           "modp2048",
                           "aes256-modp2048",
                           "aes_gcm256-modp",
                           "aes256-sha1,aes128-sha1",
                           "aes256-sha256_96",
                           "chacha20",
                           "chacha20_poly1305_128",
                           "null_auth_aes_gmac_8_256"})
    EXPECT_EQ(parse_suite(name), std::nullopt) << name;
}

// T14 of the checklist: encryption without authentication is refused, and so is neither of both.
TEST(Suite, T14EncryptionOnlyIsRefusedWithAdvice) {
  const auto why = [](std::string_view name) {
    std::string_view reason;
    EXPECT_EQ(parse_suite(name, &reason), std::nullopt) << name;
    EXPECT_EQ(reason.find('\n'), std::string_view::npos);
    return std::string(reason);
  };
  for (const char* name : {"aes256", "aes", "aes_cbc256", "aes_cbc_128", "aes256-none",
                           "aes256-null", "aes256-modp2048", "aes128;modp2048"})
    EXPECT_THAT(why(name), HasSubstr("without authentication")) << name;
  EXPECT_THAT(why("aes256"), HasSubstr("write aes256-sha256"));
  EXPECT_THAT(why("null"), HasSubstr("neither encrypts nor authenticates"));
  EXPECT_THAT(why("null-none"), HasSubstr("write null-sha256"));
  EXPECT_THAT(why("null-null"), HasSubstr("write null-sha256"));
  EXPECT_THAT(why("aes_gcm256-sha1"), HasSubstr("without the hash"));
  EXPECT_THAT(why("chacha20_poly1305-sha256"), HasSubstr("without the hash"));
  EXPECT_THAT(why("3des-sha1"), HasSubstr("too weak"));
  EXPECT_THAT(why("aes128-md5"), HasSubstr("too weak"));
  EXPECT_THAT(why("nonsense"), HasSubstr("write aes_gcm256"));
}

// T13: 16, 12 and 8 bytes, and no other length.
TEST(Suite, T13NoOtherIcvLengths) {
  for (int icv = 0; icv <= 40; ++icv) {
    const bool bytes = icv == 16 || icv == 12 || icv == 8;
    for (const std::string cipher : {"gcm", "ccm"}) {
      EXPECT_EQ(parse_suite("aes_" + cipher + "_" + std::to_string(icv) + "_256").has_value(),
                bytes);
      std::string_view why;
      EXPECT_EQ(parse_suite("aes256" + cipher + std::to_string(icv), &why).has_value(), bytes);
      if (!bytes) {
        EXPECT_THAT(std::string(why), HasSubstr("16, 12 or 8 bytes"));
      }
    }
  }
  for (const SuiteInfo& s : suites()) EXPECT_GE(s.icv, 8);
}

}  // namespace
}  // namespace espalier::crypto
