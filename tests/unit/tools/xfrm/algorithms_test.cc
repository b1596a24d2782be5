// The kernel's names of algorithms and our suites.
#include "tools/xfrm/algorithms.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>

#include "tests/unit/tools/xfrm/netlink_message.h"

namespace espalier::tools::xfrm {
namespace {

using crypto::Suite;
using test::algorithm;
using test::Bytes;
using test::Message;
using testing::HasSubstr;

// Bytes that tell where they come from.
Bytes key(std::size_t size, std::uint8_t first = 1) {
  Bytes out(size);
  for (std::size_t i = 0; i < size; ++i) out[i] = static_cast<std::uint8_t>(first + i);
  return out;
}

struct Asked {
  Bytes aead = {}, auth = {}, auth_trunc = {}, crypt = {};
};

struct Outcome {
  int error = 0;
  std::string text;
  Suite suite{};
  Bytes keymat;
};

Outcome read(const Asked& asked) {
  Message message(XFRM_MSG_NEWSA);
  message.fixed(xfrm_usersa_info{});
  if (!asked.aead.empty()) message.put(XFRMA_ALG_AEAD, asked.aead);
  if (!asked.auth.empty()) message.put(XFRMA_ALG_AUTH, asked.auth);
  if (!asked.auth_trunc.empty()) message.put(XFRMA_ALG_AUTH_TRUNC, asked.auth_trunc);
  if (!asked.crypt.empty()) message.put(XFRMA_ALG_CRYPT, asked.crypt);
  Outcome out;
  try {
    Request request(message.header());
    static_cast<void>(request.read<xfrm_usersa_info>());
    const Transform transform = transform_of(read_algorithms(request));
    out.suite = transform.suite;
    const auto bytes = transform.keymat.bytes();
    out.keymat.assign(bytes.begin(), bytes.end());
  } catch (const Refused& e) {
    out.error = e.error();
    out.text = e.what();
  }
  return out;
}

// As `ip xfrm` and IKE daemons write a suite.
Asked asked_for(const crypto::SuiteInfo& suite) {
  const Algorithms names = algorithms_of(suite.suite);
  Asked asked;
  if (names.aead)
    asked.aead = algorithm(names.aead->name, key(suite.keymat()), names.aead->icv_bits);
  if (names.auth)
    asked.auth_trunc = algorithm(names.auth->name, key(suite.auth_key, 100), names.auth->icv_bits);
  if (names.crypt) asked.crypt = algorithm(names.crypt->name, key(suite.key));
  return asked;
}

class XfrmAlgorithms : public testing::Test {
 protected:
  static void SetUpTestSuite() { crypto::initialise(); }
};

TEST_F(XfrmAlgorithms, EverySuiteHasANameThatLeadsBackToIt) {
  for (const crypto::SuiteInfo& suite : crypto::suites()) {
    const Outcome outcome = read(asked_for(suite));
    EXPECT_EQ(outcome.error, 0) << suite.name << ": " << outcome.text;
    EXPECT_EQ(outcome.suite, suite.suite) << suite.name;
    Bytes keymat = key(suite.key);
    const Bytes auth = key(suite.auth_key, 100);
    keymat.insert(keymat.end(), auth.begin(), auth.end());
    if (suite.auth_key == 0) keymat = key(suite.keymat());
    EXPECT_EQ(outcome.keymat, keymat) << suite.name;
  }
}

TEST_F(XfrmAlgorithms, KeysOfAnotherLengthAreRefused) {
  for (const crypto::SuiteInfo& suite : crypto::suites()) {
    const Algorithms names = algorithms_of(suite.suite);
    for (const int more : {-1, 1}) {
      Asked asked = asked_for(suite);
      if (names.aead)
        asked.aead =
            algorithm(names.aead->name, key(suite.keymat() + static_cast<std::size_t>(more)),
                      names.aead->icv_bits);
      else
        asked.auth_trunc =
            algorithm(names.auth->name, key(suite.auth_key + static_cast<std::size_t>(more)),
                      names.auth->icv_bits);
      EXPECT_EQ(read(asked).error, EINVAL) << suite.name << more;
    }
  }
}

TEST_F(XfrmAlgorithms, UnknownOnesLetIkeFallBack) {
  const Bytes cbc = algorithm("cbc(aes)", key(16));
  const Bytes sha256 = algorithm("hmac(sha256)", key(32), 128);
  const auto expect = [](const Asked& asked, const char* what) {
    const Outcome outcome = read(asked);
    EXPECT_EQ(outcome.error, ENOSYS) << what;
    EXPECT_THAT(outcome.text, HasSubstr(std::string("Requested ") + what + " algorithm not found"));
  };
  expect({.aead = algorithm("rfc4106(gcm(camellia))", key(36), 128)}, "AEAD");
  expect({.aead = algorithm("", key(36), 128)}, "AEAD");
  expect({.aead = algorithm(std::string(64, 'x'), key(36), 128)}, "AEAD");
  expect({.auth = algorithm("hmac(md5)", key(16)), .crypt = cbc}, "AUTH");
  expect({.auth_trunc = algorithm("xcbc(aes)", key(16), 96), .crypt = cbc}, "AUTH_TRUNC");
  expect({.auth_trunc = sha256, .crypt = algorithm("cbc(des3_ede)", key(24))}, "CRYPT");
  for (const std::uint32_t bits : {0U, 1U, 32U, 100U, 127U, 129U, 256U, ~0U})
    expect({.aead = algorithm("rfc4106(gcm(aes))", key(36), bits)}, "AEAD");
}

TEST_F(XfrmAlgorithms, NoEncryptionWithoutIntegrity) {
  for (const char* const name : {"cbc(aes)", "aes", "ecb(cipher_null)"}) {
    const Outcome outcome = read({.crypt = algorithm(name, key(16))});
    EXPECT_EQ(outcome.error, ENOSYS) << name;
    EXPECT_THAT(outcome.text, HasSubstr("without integrity"));
  }
}

TEST_F(XfrmAlgorithms, TruncationsThatNoRfcHas) {
  const Bytes cbc = algorithm("cbc(aes)", key(16));
  const Outcome old = read({.auth = algorithm("hmac(sha256)", key(32)), .crypt = cbc});
  EXPECT_EQ(old.error, ENOSYS);
  EXPECT_THAT(old.text, HasSubstr("auth-trunc 'hmac(sha256)' KEY 128"));
  for (const std::uint32_t bits : {96U, 64U, 256U})
    EXPECT_EQ(read({.auth_trunc = algorithm("hmac(sha256)", key(32), bits), .crypt = cbc}).error,
              ENOSYS)
        << bits;
  // Without a length the kernel's own holds, which for SHA-1 is the RFC's.
  EXPECT_EQ(read({.auth = algorithm("hmac(sha1)", key(20)), .crypt = cbc}).suite,
            Suite::aes128_sha1);
  EXPECT_EQ(read({.auth_trunc = algorithm("hmac(sha1)", key(20), 0), .crypt = cbc}).suite,
            Suite::aes128_sha1);
}

TEST_F(XfrmAlgorithms, ShortNamesOfTheKernelAreKnown) {
  EXPECT_EQ(read({.auth = algorithm("sha1", key(20)), .crypt = algorithm("aes", key(32))}).suite,
            Suite::aes256_sha1);
  EXPECT_EQ(
      read({.auth_trunc = algorithm("sha512", key(64), 256), .crypt = algorithm("cipher_null", {})})
          .suite,
      Suite::null_sha512);
}

TEST_F(XfrmAlgorithms, KeyBitsAreNotBelieved) {
  for (const std::uint32_t bits : {36U * 8 + 1, 1U << 16, 1U << 31, ~0U}) {
    const Outcome aead = read({.aead = algorithm("rfc4106(gcm(aes))", key(36), 128, bits)});
    EXPECT_EQ(aead.error, EINVAL);
    EXPECT_EQ(aead.text, "Invalid AEAD attribute length");
    const Bytes cbc = algorithm("cbc(aes)", key(16));
    EXPECT_EQ(
        read({.auth_trunc = algorithm("hmac(sha256)", key(32), 128, bits), .crypt = cbc}).error,
        EINVAL)
        << bits;
    EXPECT_EQ(read({.auth_trunc = algorithm("hmac(sha256)", key(32), 128),
                    .crypt = algorithm("cbc(aes)", key(16), {}, bits)})
                  .error,
              EINVAL)
        << bits;
  }
  // Bytes behind the key are not the key's.
  EXPECT_EQ(read({.aead = algorithm("rfc4106(gcm(aes))", key(40), 128, 36 * 8)}).keymat, key(36));
}

}  // namespace
}  // namespace espalier::tools::xfrm
