// The ESP transforms: their names, lengths and limits. Pure data.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace espalier::crypto {

// The ICV of an AEAD is 16 bytes long where the name does not say otherwise.
enum class Suite : std::uint8_t {
  aes_gcm128,
  aes_gcm192,
  aes_gcm256,
  aes_gcm_12_128,
  aes_gcm_12_192,
  aes_gcm_12_256,
  aes_gcm_8_128,
  aes_gcm_8_192,
  aes_gcm_8_256,
  chacha20_poly1305,
  aes128_sha1,
  aes192_sha1,
  aes256_sha1,
  aes128_sha256,
  aes192_sha256,
  aes256_sha256,
  aes128_sha384,
  aes192_sha384,
  aes256_sha384,
  aes128_sha512,
  aes192_sha512,
  aes256_sha512,
  aes_ccm_16_128,
  aes_ccm_16_192,
  aes_ccm_16_256,
  aes_ccm_12_128,
  aes_ccm_12_192,
  aes_ccm_12_256,
  aes_ccm_8_128,
  aes_ccm_8_192,
  aes_ccm_8_256,
  aes_gmac128,
  aes_gmac192,
  aes_gmac256,
  null_sha1,
  null_sha256,
  null_sha384,
  null_sha512,
};

inline constexpr std::size_t kSuiteCount = 38;
inline constexpr std::size_t kMaxKeyBytes = 32;      // of the cipher
inline constexpr std::size_t kMaxAuthKeyBytes = 64;  // of the integrity algorithm
inline constexpr std::size_t kMaxKeysBytes = kMaxKeyBytes + kMaxAuthKeyBytes;
inline constexpr std::size_t kMaxSaltBytes = 4;
inline constexpr std::size_t kCounterIvBytes = 8;
inline constexpr std::size_t kMaxIvBytes = 16;
inline constexpr std::size_t kMaxIcvBytes = 32;

enum class Mode : std::uint8_t {
  gcm,       // RFC 4106
  chacha20,  // with Poly1305, RFC 7634
  cbc_hmac,  // RFC 3602, encrypt-then-MAC (RFC 4303 §3.3.2)
  ccm,       // RFC 4309
  gmac,      // RFC 4543: no secrecy
  hmac,      // NULL encryption, RFC 2410: no secrecy
};

// Of HMAC; the ICV is half of it, or 12 bytes of SHA-1 (RFC 2404, RFC 4868).
enum class Hash : std::uint8_t { none, sha1, sha256, sha384, sha512 };

enum class IvKind : std::uint8_t {
  counter,  // 8 bytes that must never repeat under a key: the sequence number
  random,   // a block that nobody can foretell (RFC 3602 §3)
  none,
};

// Lengths are in bytes. `align` is what payload + padding + pad length + next header is rounded up
// to (RFC 4303 §2.4). Where there is a nonce, it is the salt, then the IV.
struct SuiteInfo {
  Suite suite;
  std::string_view name;
  Mode mode;
  Hash hash;
  IvKind iv_kind;
  std::uint8_t key;
  std::uint8_t auth_key;
  std::uint8_t salt;
  std::uint8_t iv;
  std::uint8_t icv;
  std::uint8_t align;

  // What a backend expands: the key of the cipher, then that of the integrity algorithm.
  [[nodiscard]] constexpr std::size_t keys() const noexcept { return std::size_t{key} + auth_key; }
  // RFC 4301 §4.5.2, RFC 7296 §2.17, RFC 4106 §8.1: encryption key, integrity key, salt.
  [[nodiscard]] constexpr std::size_t keymat() const noexcept { return keys() + salt; }
  // True if the same number under the same key and salt gives the game away.
  [[nodiscard]] constexpr bool needs_unique_nonce() const noexcept {
    return iv_kind == IvKind::counter;
  }
};

[[nodiscard]] const SuiteInfo& info(Suite suite) noexcept;

// All suites, in the order of the enumeration.
[[nodiscard]] std::span<const SuiteInfo> suites() noexcept;

// Understands libreswan's and strongSwan's spellings: aes_gcm256, aes_gcm_16_256, aes256gcm16,
// aes_gcm_c-256, aes256-sha1, aes_cbc256-hmac_sha2_512_256, null-sha256, null_auth_aes_gmac_256. A
// Diffie-Hellman group behind it (`;modp2048`, `-ecp384`) is IKE's and is skipped. Without a key
// length, aes is 128 bits in CBC, and 256 in GCM, CCM and GMAC.
//
// Empty when the name is none of them, or when it asks for encryption without authentication: `why`
// then says so, and what to write. It never repeats `name`.
[[nodiscard]] std::optional<Suite> parse_suite(std::string_view name,
                                               std::string_view* why = nullptr) noexcept;

}  // namespace espalier::crypto
