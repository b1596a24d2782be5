#include "crypto/suite.h"

#include <algorithm>
#include <array>

namespace espalier::crypto {
namespace {

constexpr SuiteInfo gcm(Suite suite, std::string_view name, std::uint8_t key, std::uint8_t icv) {
  return {suite, name, Mode::gcm, Hash::none, IvKind::counter, key, 0, 4, 8, icv, 4};
}
// RFC 4309 §4: three bytes of salt, for the nonce has eleven.
constexpr SuiteInfo ccm(Suite suite, std::string_view name, std::uint8_t key, std::uint8_t icv) {
  return {suite, name, Mode::ccm, Hash::none, IvKind::counter, key, 0, 3, 8, icv, 4};
}
constexpr SuiteInfo gmac(Suite suite, std::string_view name, std::uint8_t key) {
  return {suite, name, Mode::gmac, Hash::none, IvKind::counter, key, 0, 4, 8, 16, 4};
}
constexpr SuiteInfo chacha20(Suite suite, std::string_view name) {
  return {suite, name, Mode::chacha20, Hash::none, IvKind::counter, 32, 0, 4, 8, 16, 4};
}

// RFC 2404 §2–3, RFC 4868 §2.1: the key is as long as the hash.
constexpr std::uint8_t hash_bytes(Hash hash) {
  switch (hash) {
    case Hash::none:
      return 0;
    case Hash::sha1:
      return 20;
    case Hash::sha256:
      return 32;
    case Hash::sha384:
      return 48;
    case Hash::sha512:
      return 64;
  }
  return 0;
}
constexpr std::uint8_t hmac_icv(Hash hash) {
  return hash == Hash::sha1 ? std::uint8_t{12} : static_cast<std::uint8_t>(hash_bytes(hash) / 2);
}
constexpr SuiteInfo cbc(Suite suite, std::string_view name, std::uint8_t key, Hash hash) {
  return {suite, name, Mode::cbc_hmac, hash, IvKind::random, key, hash_bytes(hash),
          0,     16,   hmac_icv(hash), 16};
}
constexpr SuiteInfo null(Suite suite, std::string_view name, Hash hash) {
  return {suite, name, Mode::hmac,     hash, IvKind::none, 0, hash_bytes(hash),
          0,     0,    hmac_icv(hash), 4};
}

constexpr std::array<SuiteInfo, kSuiteCount> kSuites = {{
    gcm(Suite::aes_gcm128, "aes_gcm128", 16, 16),
    gcm(Suite::aes_gcm192, "aes_gcm192", 24, 16),
    gcm(Suite::aes_gcm256, "aes_gcm256", 32, 16),
    gcm(Suite::aes_gcm_12_128, "aes_gcm_12_128", 16, 12),
    gcm(Suite::aes_gcm_12_192, "aes_gcm_12_192", 24, 12),
    gcm(Suite::aes_gcm_12_256, "aes_gcm_12_256", 32, 12),
    gcm(Suite::aes_gcm_8_128, "aes_gcm_8_128", 16, 8),
    gcm(Suite::aes_gcm_8_192, "aes_gcm_8_192", 24, 8),
    gcm(Suite::aes_gcm_8_256, "aes_gcm_8_256", 32, 8),
    chacha20(Suite::chacha20_poly1305, "chacha20_poly1305"),
    cbc(Suite::aes128_sha1, "aes128-sha1", 16, Hash::sha1),
    cbc(Suite::aes192_sha1, "aes192-sha1", 24, Hash::sha1),
    cbc(Suite::aes256_sha1, "aes256-sha1", 32, Hash::sha1),
    cbc(Suite::aes128_sha256, "aes128-sha256", 16, Hash::sha256),
    cbc(Suite::aes192_sha256, "aes192-sha256", 24, Hash::sha256),
    cbc(Suite::aes256_sha256, "aes256-sha256", 32, Hash::sha256),
    cbc(Suite::aes128_sha384, "aes128-sha384", 16, Hash::sha384),
    cbc(Suite::aes192_sha384, "aes192-sha384", 24, Hash::sha384),
    cbc(Suite::aes256_sha384, "aes256-sha384", 32, Hash::sha384),
    cbc(Suite::aes128_sha512, "aes128-sha512", 16, Hash::sha512),
    cbc(Suite::aes192_sha512, "aes192-sha512", 24, Hash::sha512),
    cbc(Suite::aes256_sha512, "aes256-sha512", 32, Hash::sha512),
    ccm(Suite::aes_ccm_16_128, "aes_ccm_16_128", 16, 16),
    ccm(Suite::aes_ccm_16_192, "aes_ccm_16_192", 24, 16),
    ccm(Suite::aes_ccm_16_256, "aes_ccm_16_256", 32, 16),
    ccm(Suite::aes_ccm_12_128, "aes_ccm_12_128", 16, 12),
    ccm(Suite::aes_ccm_12_192, "aes_ccm_12_192", 24, 12),
    ccm(Suite::aes_ccm_12_256, "aes_ccm_12_256", 32, 12),
    ccm(Suite::aes_ccm_8_128, "aes_ccm_8_128", 16, 8),
    ccm(Suite::aes_ccm_8_192, "aes_ccm_8_192", 24, 8),
    ccm(Suite::aes_ccm_8_256, "aes_ccm_8_256", 32, 8),
    gmac(Suite::aes_gmac128, "null_auth_aes_gmac_128", 16),
    gmac(Suite::aes_gmac192, "null_auth_aes_gmac_192", 24),
    gmac(Suite::aes_gmac256, "null_auth_aes_gmac_256", 32),
    null(Suite::null_sha1, "null-sha1", Hash::sha1),
    null(Suite::null_sha256, "null-sha256", Hash::sha256),
    null(Suite::null_sha384, "null-sha384", Hash::sha384),
    null(Suite::null_sha512, "null-sha512", Hash::sha512),
}};

constexpr bool in_order() {
  for (std::size_t i = 0; i < kSuites.size(); ++i)
    if (static_cast<std::size_t>(kSuites[i].suite) != i) return false;
  return true;
}
static_assert(in_order(), "info() takes the enumerator as the index");

}  // namespace

const SuiteInfo& info(Suite suite) noexcept {
  return kSuites[static_cast<std::size_t>(suite)];
}

std::span<const SuiteInfo> suites() noexcept {
  return kSuites;
}

}  // namespace espalier::crypto
