// The names of suites as libreswan and strongSwan write them: CIPHER[-HASH][-GROUP].
#include <algorithm>
#include <array>

#include "crypto/suite.h"

namespace espalier::crypto {
namespace {

constexpr std::string_view kUnknown =
    "is no suite that Espalier has; write aes_gcm256 or aes_gcm128 (ICV of 16 bytes; "
    "aes_gcm_12_256, aes_gcm_8_256), chacha20_poly1305, aes256-sha256 (or aes128, aes192 with "
    "sha1, sha256, sha384, sha512), aes_ccm_16_256 (or 12, 8; 128, 192), and without encryption "
    "null_auth_aes_gmac_256 or null-sha256";
constexpr std::string_view kNoIntegrity =
    "encrypts without authentication, which anybody can tamper with; write aes256-sha256, or an "
    "AEAD such as aes_gcm256";
constexpr std::string_view kNothing =
    "neither encrypts nor authenticates; write null-sha256, or an AEAD such as aes_gcm256";
constexpr std::string_view kHashOfAead =
    "has a hash behind a cipher that authenticates by itself; write it without the hash";
constexpr std::string_view kShortIcv =
    "has an ICV of a length that no RFC allows; write 16, 12 or 8 bytes, as in aes_gcm_16_256";
constexpr std::string_view kBroken =
    "is too weak for use (RFC 8221); write aes_gcm256 or aes256-sha256";

struct Cipher {
  Mode mode;
  std::uint8_t key;
  std::uint8_t icv;  // 0: the hash's
};

bool take(std::string_view& text, std::string_view prefix) {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

// A key length in bits, to bytes; 0 for none of the three.
std::uint8_t take_key(std::string_view& text) {
  if (take(text, "128")) return 16;
  if (take(text, "192")) return 24;
  if (take(text, "256")) return 32;
  return 0;
}

// What may stand behind "aes_gcm", "aes_ccm": _16_256, _c-256, _c256, _256, 256, -256, _16,
// nothing.
bool parse_tail(std::string_view tail, Cipher& cipher, bool& bad_icv) {
  struct Size {
    std::string_view word;
    std::uint8_t icv;
  };
  // libreswan's a, b and c are those of the IKE registry.
  constexpr std::array kSizes = {Size{"_16", 16}, Size{"_12", 12}, Size{"_8", 8},
                                 Size{"_c", 16},  Size{"_b", 12},  Size{"_a", 8}};
  const auto is_key = [](std::string_view t) {
    return (take(t, "_") || take(t, "-") || !t.empty()) && take_key(t) != 0 && t.empty();
  };
  cipher.icv = 16;
  if (!tail.empty() && !is_key(tail)) {
    const auto* size = std::find_if(kSizes.begin(), kSizes.end(),
                                    [&tail](const Size& s) { return take(tail, s.word); });
    if (size == kSizes.end()) {
      bad_icv = tail.size() > 1 && tail[1] >= '0' && tail[1] <= '9';
      return false;
    }
    cipher.icv = size->icv;
  }
  cipher.key = 32;
  if (tail.empty()) return true;
  if (!is_key(tail)) return false;
  if (tail.front() == '_' || tail.front() == '-') tail.remove_prefix(1);
  cipher.key = take_key(tail);
  return true;
}

// strongSwan's aes256gcm16, in bytes or bits of ICV; without a number 16.
bool parse_icv(std::string_view word, Cipher& cipher, bool& bad_icv) {
  if (word.empty() || word == "16" || word == "128") {
    cipher.icv = 16;
  } else if (word == "12" || word == "96") {
    cipher.icv = 12;
  } else if (word == "8" || word == "64") {
    cipher.icv = 8;
  } else {
    bad_icv = word.find_first_not_of("0123456789") == std::string_view::npos;
    return false;
  }
  return true;
}

bool parse_cipher(std::string_view word, Cipher& cipher, bool& bad_icv) {
  bad_icv = false;
  if (word == "null") {
    cipher = {Mode::hmac, 0, 0};
    return true;
  }
  if (word == "chacha20_poly1305" || word == "chacha20poly1305" ||
      word == "chacha20_poly1305_256" || word == "chacha20_poly1305-256" ||
      word == "chacha20_poly1305256") {
    cipher = {Mode::chacha20, 32, 16};
    return true;
  }
  if (take(word, "null_auth_aes_gmac") || take(word, "aes_gmac") || take(word, "aes-gmac")) {
    cipher.mode = Mode::gmac;
    return parse_tail(word, cipher, bad_icv) && cipher.icv == 16;
  }
  if (take(word, "aes_gcm") || take(word, "aes-gcm")) {
    cipher.mode = Mode::gcm;
    return parse_tail(word, cipher, bad_icv);
  }
  if (take(word, "aes_ccm") || take(word, "aes-ccm")) {
    cipher.mode = Mode::ccm;
    return parse_tail(word, cipher, bad_icv);
  }
  if (!take(word, "aes")) return false;
  const bool named = take(word, "_cbc") || take(word, "-cbc");
  if (word.starts_with('_') || word.starts_with('-')) {
    word.remove_prefix(1);
    if (word.empty()) return false;
  }
  cipher = {Mode::cbc_hmac, 16, 0};
  if (word.empty()) return true;
  cipher.key = take_key(word);
  if (cipher.key == 0) return false;
  if (word.empty()) return true;
  if (named) return false;
  if (take(word, "gcm")) {
    cipher.mode = Mode::gcm;
    return parse_icv(word, cipher, bad_icv);
  }
  if (take(word, "ccm")) {
    cipher.mode = Mode::ccm;
    return parse_icv(word, cipher, bad_icv);
  }
  cipher.mode = Mode::gmac;
  cipher.icv = 16;
  return word == "gmac";
}

Hash parse_hash(std::string_view word) {
  struct Name {
    std::string_view word;
    Hash hash;
  };
  constexpr std::array kNames = {
      Name{"sha", Hash::sha1},          Name{"sha1", Hash::sha1},
      Name{"sha1_96", Hash::sha1},      Name{"sha2", Hash::sha256},
      Name{"sha256", Hash::sha256},     Name{"sha2_256", Hash::sha256},
      Name{"sha256_128", Hash::sha256}, Name{"sha2_256_128", Hash::sha256},
      Name{"sha384", Hash::sha384},     Name{"sha2_384", Hash::sha384},
      Name{"sha384_192", Hash::sha384}, Name{"sha2_384_192", Hash::sha384},
      Name{"sha512", Hash::sha512},     Name{"sha2_512", Hash::sha512},
      Name{"sha512_256", Hash::sha512}, Name{"sha2_512_256", Hash::sha512},
  };
  static_cast<void>(take(word, "hmac_"));
  const auto* name =
      std::find_if(kNames.begin(), kNames.end(), [word](const Name& n) { return n.word == word; });
  return name == kNames.end() ? Hash::none : name->hash;
}

bool is_group(std::string_view word) {
  for (const std::string_view name : {"modp", "dh", "ecp", "mlkem"})
    if (std::string_view rest = word; take(rest, name) && !rest.empty())
      return rest.find_first_not_of("0123456789sbp_") == std::string_view::npos;
  return word == "curve25519" || word == "x25519" || word == "curve448" || word == "x448";
}

// Without strongSwan's "!" (no other proposal), and without what is IKE's or said elsewhere:
// groups, ESN, pseudo-random functions. libreswan writes ";none" where no group is wanted.
std::string_view without_rest(std::string_view name) {
  if (name.ends_with('!')) name.remove_suffix(1);
  for (;;) {
    const std::size_t mark = name.find_last_of(";-+");
    if (mark == std::string_view::npos) return name;
    const std::string_view word = name.substr(mark + 1);
    const bool rest = is_group(word) || word == "esn" || word == "noesn" ||
                      word.starts_with("prf") || word.starts_with("ke1_") ||
                      (name[mark] == ';' && word == "none");
    if (!rest) return name;
    name = name.substr(0, mark);
  }
}

// As libreswan prints them: AES_CBC_256-HMAC_SHA2_512_256.
using Lower = std::array<char, 64>;
std::string_view lower_case(std::string_view name, Lower& buffer) {
  std::transform(name.begin(), name.end(), buffer.begin(), [](char c) {
    return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  return {buffer.data(), name.size()};
}

// Where the hash begins: at the last '-', if what stands behind it is no key length.
std::size_t hash_mark(std::string_view name) {
  const std::size_t mark = name.rfind('-');
  if (mark == std::string_view::npos) return mark;
  const std::string_view word = name.substr(mark + 1);
  const bool cipher = word == "128" || word == "192" || word == "256" || word.starts_with("gcm") ||
                      word.starts_with("ccm") || word.starts_with("cbc") ||
                      word.starts_with("gmac");
  return cipher ? std::string_view::npos : mark;
}

bool is_weak(std::string_view name) {
  for (const std::string_view word : {"3des", "des", "md5", "cast", "blowfish", "twofish", "idea"})
    if (name.starts_with(word) || name.ends_with(word) || name.ends_with("md5_96")) return true;
  return false;
}

std::optional<Suite> find(const Cipher& cipher, Hash hash) {
  for (const SuiteInfo& s : suites())
    if (s.mode == cipher.mode && s.key == cipher.key && s.hash == hash &&
        (cipher.icv == 0 || s.icv == cipher.icv))
      return s.suite;
  return std::nullopt;
}

}  // namespace

std::optional<Suite> parse_suite(std::string_view name, std::string_view* why) noexcept {
  std::string_view unused;
  std::string_view& reason = why != nullptr ? *why : unused;
  Lower buffer;
  if (name.size() > buffer.size()) {
    reason = kUnknown;
    return std::nullopt;
  }
  name = lower_case(name, buffer);
  reason = is_weak(name) ? kBroken : kUnknown;

  name = without_rest(name);
  const std::size_t mark = hash_mark(name);
  const bool has_hash = mark != std::string_view::npos;
  const std::string_view word = has_hash ? name.substr(mark + 1) : std::string_view{};
  Cipher cipher{};
  bool bad_icv = false;
  if (!parse_cipher(name.substr(0, mark), cipher, bad_icv)) {
    if (bad_icv) reason = kShortIcv;
    return std::nullopt;
  }
  const bool none = !has_hash || word == "none" || word == "null";
  const Hash hash = none ? Hash::none : parse_hash(word);
  if (!none && hash == Hash::none) return std::nullopt;
  const bool aead = cipher.mode != Mode::cbc_hmac && cipher.mode != Mode::hmac;
  if (aead && !none) {
    reason = kHashOfAead;
    return std::nullopt;
  }
  if (!aead && none) {
    reason = cipher.mode == Mode::hmac ? kNothing : kNoIntegrity;
    return std::nullopt;
  }
  return find(cipher, hash);
}

}  // namespace espalier::crypto
