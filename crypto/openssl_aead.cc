// GCM, CCM, GMAC and ChaCha20-Poly1305 by OpenSSL's EVP: several calls a packet.
#include <openssl/err.h>

#include <array>
#include <limits>
#include <new>
#include <stdexcept>

#include "crypto/backends.h"
#include "crypto/openssl_handles.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

constexpr int kSeal = 1;
constexpr int kOpen = 0;
constexpr std::uint32_t kLongest = std::numeric_limits<int>::max();

[[noreturn]] void refuse_key() {
  ERR_clear_error();
  throw std::runtime_error("OpenSSL refuses the key: EVP_CipherInit_ex failed");
}

// The key schedules are in memory that OpenSSL asks for (OpensslSecrets).
class StreamKey : public AeadKey {
 public:
  StreamKey(const SuiteInfo& suite, const EVP_CIPHER& cipher, std::span<const std::uint8_t> key)
      : context_(openssl_context(cipher, key, true)), icv_(suite.icv) {}

  void seal(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops) {
      int length = 0;
      op.good = start(op, kSeal) && EVP_CipherFinal_ex(context(), op.icv, &length) == 1 &&
                EVP_CIPHER_CTX_ctrl(context(), EVP_CTRL_AEAD_GET_TAG, icv_, op.icv) == 1;
    }
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops) {
      int length = 0;
      std::array<std::uint8_t, kMaxIcvBytes> unused{};
      op.good = start(op, kOpen) &&
                EVP_CIPHER_CTX_ctrl(context(), EVP_CTRL_AEAD_SET_TAG, icv_, op.icv) == 1 &&
                EVP_CipherFinal_ex(context(), unused.data(), &length) == 1;
      if (!op.good) [[unlikely]] {
        wipe({op.text, op.text_len});
        ERR_clear_error();  // the peer's error, no fault of this thread
      }
    }
  }

  [[nodiscard]] bool shareable() const noexcept override { return false; }

 protected:
  [[nodiscard]] EVP_CIPHER_CTX* context() const noexcept { return context_.get(); }

  // Up to the ICV. One schedule serves both directions, so a change of direction costs nothing.
  [[nodiscard]] virtual bool start(AeadOp& op, int direction) const noexcept {
    int length = 0;
    const std::uint8_t* from = direction == kSeal ? op.plaintext() : op.text;
    return op.text_len <= kLongest && begin(op, direction) &&
           EVP_CipherUpdate(context(), op.text, &length, from, static_cast<int>(op.text_len)) == 1;
  }

  [[nodiscard]] bool begin(const AeadOp& op, int direction) const noexcept {
    int length = 0;
    return EVP_CipherInit_ex(context(), nullptr, nullptr, nullptr, op.nonce.data(), direction) ==
               1 &&
           EVP_CipherUpdate(context(), nullptr, &length, op.aad.data(), op.aad_len) == 1;
  }

 private:
  CipherContext context_;
  int icv_;
};

// RFC 4543 §3.3: IV and payload are authenticated with the header, and nothing is encrypted.
class GmacKey final : public StreamKey {
 public:
  using StreamKey::StreamKey;

 private:
  [[nodiscard]] bool start(AeadOp& op, int direction) const noexcept override {
    int length = 0;
    return op.text_len <= kLongest - kCounterIvBytes && begin(op, direction) &&
           EVP_CipherUpdate(context(), nullptr, &length, op.text - kCounterIvBytes,
                            static_cast<int>(op.text_len + kCounterIvBytes)) == 1;
  }
};

// CCM wants the lengths of ICV and text first, and has to be told the ICV before it opens.
class CcmKey final : public AeadKey {
 public:
  CcmKey(const SuiteInfo& suite, const EVP_CIPHER& cipher, std::span<const std::uint8_t> key)
      : seal_(make(suite, cipher, key, kSeal)),
        open_(make(suite, cipher, key, kOpen)),
        icv_(suite.icv) {}

  void seal(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops)
      op.good = run(seal_.get(), op, kSeal) &&
                EVP_CIPHER_CTX_ctrl(seal_.get(), EVP_CTRL_AEAD_GET_TAG, icv_, op.icv) == 1;
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops) {
      op.good = EVP_CIPHER_CTX_ctrl(open_.get(), EVP_CTRL_AEAD_SET_TAG, icv_, op.icv) == 1 &&
                run(open_.get(), op, kOpen);
      if (!op.good) [[unlikely]] {
        wipe({op.text, op.text_len});
        ERR_clear_error();
      }
    }
  }

  [[nodiscard]] bool shareable() const noexcept override { return false; }

 private:
  static constexpr int kNonce = 11;  // RFC 4309 §4

  static CipherContext make(const SuiteInfo& suite, const EVP_CIPHER& cipher,
                            std::span<const std::uint8_t> key, int direction) {
    CipherContext context(EVP_CIPHER_CTX_new());
    if (!context) throw std::bad_alloc();
    EVP_CIPHER_CTX* c = context.get();
    if (EVP_CipherInit_ex(c, &cipher, nullptr, nullptr, nullptr, direction) != 1 ||
        EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_IVLEN, kNonce, nullptr) != 1 ||
        EVP_CIPHER_CTX_ctrl(c, EVP_CTRL_AEAD_SET_TAG, suite.icv, nullptr) != 1 ||
        EVP_CipherInit_ex(c, nullptr, nullptr, key.data(), nullptr, direction) != 1)
      refuse_key();
    return context;
  }

  [[nodiscard]] static bool run(EVP_CIPHER_CTX* c, AeadOp& op, int direction) noexcept {
    int length = 0;
    const auto text_len = static_cast<int>(op.text_len);
    return op.text_len <= kLongest &&
           EVP_CipherInit_ex(c, nullptr, nullptr, nullptr, op.nonce.data(), direction) == 1 &&
           EVP_CipherUpdate(c, nullptr, &length, nullptr, text_len) == 1 &&
           EVP_CipherUpdate(c, nullptr, &length, op.aad.data(), op.aad_len) == 1 &&
           EVP_CipherUpdate(c, op.text, &length, op.text, text_len) == 1;
  }

  CipherContext seal_;
  CipherContext open_;
  int icv_;
};

}  // namespace

CipherContext openssl_context(const EVP_CIPHER& cipher, std::span<const std::uint8_t> key,
                              bool seal) {
  CipherContext context(EVP_CIPHER_CTX_new());
  if (!context) throw std::bad_alloc();
  if (EVP_CipherInit_ex(context.get(), &cipher, nullptr, key.data(), nullptr,
                        seal ? kSeal : kOpen) != 1)
    refuse_key();
  return context;
}

std::unique_ptr<AeadKey> openssl_aead_key(const SuiteInfo& suite, const EVP_CIPHER& cipher,
                                          std::span<const std::uint8_t> key) {
  if (suite.mode == Mode::ccm) return std::make_unique<CcmKey>(suite, cipher, key);
  if (suite.mode == Mode::gmac) return std::make_unique<GmacKey>(suite, cipher, key);
  return std::make_unique<StreamKey>(suite, cipher, key);
}

}  // namespace espalier::crypto
