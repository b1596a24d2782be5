// CBC with HMAC, and HMAC alone, by OpenSSL: one packet after the other.
#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/err.h>

#include <algorithm>
#include <array>
#include <limits>
#include <new>
#include <stdexcept>

#include "crypto/backends.h"
#include "crypto/openssl_handles.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

constexpr std::uint32_t kBlock = 16;
constexpr std::uint32_t kLongest = std::numeric_limits<int>::max() / 2;

const char* digest_name(Hash hash) {
  switch (hash) {
    case Hash::none:
      break;
    case Hash::sha1:
      return "SHA1";
    case Hash::sha256:
      return "SHA256";
    case Hash::sha384:
      return "SHA384";
    case Hash::sha512:
      return "SHA512";
  }
  throw std::invalid_argument("a suite of HMAC has a hash");
}

CipherContext cbc_context(const EVP_CIPHER* cipher, std::span<const std::uint8_t> key, bool seal) {
  if (cipher == nullptr) return nullptr;
  CipherContext context = openssl_context(*cipher, key, seal);
  EVP_CIPHER_CTX_set_padding(context.get(), 0);  // ESP has its own
  return context;
}

class HmacKey final : public AeadKey {
 public:
  HmacKey(const SuiteInfo& suite, const EVP_CIPHER* cipher, EVP_MAC& hmac,
          std::span<const std::uint8_t> keys)
      : seal_(cbc_context(cipher, keys.first(suite.key), true)),
        open_(cbc_context(cipher, keys.first(suite.key), false)),
        mac_(EVP_MAC_CTX_new(&hmac)),
        iv_(suite.iv),
        icv_(suite.icv) {
    if (!mac_) throw std::bad_alloc();
    std::array<char, 8> digest{};
    std::string_view(digest_name(suite.hash)).copy(digest.data(), digest.size());
    const std::array params = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest.data(), 0),
        OSSL_PARAM_construct_end()};
    const std::span<const std::uint8_t> key = keys.subspan(suite.key);
    if (EVP_MAC_init(mac_.get(), key.data(), key.size(), params.data()) != 1) {
      ERR_clear_error();
      throw std::runtime_error("OpenSSL refuses the key: EVP_MAC_init failed");
    }
  }

  // RFC 4303 §3.3.2: encrypt, then authenticate.
  void seal(std::span<AeadOp> ops) const noexcept override {
    std::array<std::uint8_t, EVP_MAX_MD_SIZE> tag{};
    for (AeadOp& op : ops) {
      op.good = fits(op) && crypt(seal_.get(), op) && authenticate(op, tag);
      if (op.good) std::copy_n(tag.begin(), icv_, op.icv);
    }
  }

  // Nothing of an unauthenticated packet reaches the cipher (RFC 4303 §3.4.4.1).
  void open(std::span<AeadOp> ops) const noexcept override {
    std::array<std::uint8_t, EVP_MAX_MD_SIZE> tag{};
    for (AeadOp& op : ops) {
      op.good = fits(op) && authenticate(op, tag) && CRYPTO_memcmp(tag.data(), op.icv, icv_) == 0 &&
                crypt(open_.get(), op);
      if (!op.good) [[unlikely]]
        wipe({op.text, op.text_len});
    }
    wipe(tag);  // the tag of a forged packet is what the forger lacks
  }

  [[nodiscard]] bool shareable() const noexcept override { return false; }

 private:
  [[nodiscard]] bool fits(const AeadOp& op) const noexcept {
    return op.text_len <= kLongest && (!seal_ || (op.text_len > 0 && op.text_len % kBlock == 0));
  }

  [[nodiscard]] bool crypt(EVP_CIPHER_CTX* context, AeadOp& op) const noexcept {
    if (context == nullptr) return true;
    int length = 0;
    const auto text_len = static_cast<int>(op.text_len);
    return EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, op.text - iv_, -1) == 1 &&
           EVP_CipherUpdate(context, op.text, &length, op.text, text_len) == 1 &&
           length == text_len;
  }

  // Header, IV and ciphertext, as they lie; with ESN the high half behind them (RFC 4303 §2.2.1).
  [[nodiscard]] bool authenticate(const AeadOp& op,
                                  std::array<std::uint8_t, EVP_MAX_MD_SIZE>& tag) const noexcept {
    EVP_MAC_CTX* mac = mac_.get();
    std::size_t length = 0;
    return EVP_MAC_init(mac, nullptr, 0, nullptr) == 1 &&
           EVP_MAC_update(mac, op.text - iv_ - kEspHeaderBytes,
                          kEspHeaderBytes + iv_ + op.text_len) == 1 &&
           (!op.esn() || EVP_MAC_update(mac, op.seq_hi(), kSeqHi) == 1) &&
           EVP_MAC_final(mac, tag.data(), &length, tag.size()) == 1 && length >= icv_;
  }

  CipherContext seal_;  // null: NULL encryption
  CipherContext open_;
  MacContext mac_;
  std::size_t iv_;
  std::size_t icv_;
};

}  // namespace

std::unique_ptr<AeadKey> openssl_hmac_key(const SuiteInfo& suite, const EVP_CIPHER* cipher,
                                          EVP_MAC& hmac, std::span<const std::uint8_t> keys) {
  return std::make_unique<HmacKey>(suite, cipher, hmac, keys);
}

}  // namespace espalier::crypto
