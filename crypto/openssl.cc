// AES-GCM by OpenSSL's EVP: everywhere, and with the best code for the processor, but several
// calls a packet.
#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>

#include <array>
#include <limits>
#include <new>

#include "crypto/backends.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

template <auto kFree>
struct Deleter {
  template <typename T>
  void operator()(T* object) const noexcept {
    kFree(object);
  }
};
using Cipher = std::unique_ptr<EVP_CIPHER, Deleter<&EVP_CIPHER_free>>;
using CipherContext = std::unique_ptr<EVP_CIPHER_CTX, Deleter<&EVP_CIPHER_CTX_free>>;

constexpr int kSeal = 1;
constexpr int kOpen = 0;
constexpr int kTag = 16;

// The key schedule is OpenSSL's own memory: wiped by it, but on the common heap.
class OpensslKey final : public AeadKey {
 public:
  OpensslKey(const EVP_CIPHER& cipher, std::span<const std::uint8_t> key)
      : context_(EVP_CIPHER_CTX_new()) {
    if (!context_) throw std::bad_alloc();
    if (EVP_CipherInit_ex(context_.get(), &cipher, nullptr, key.data(), nullptr, kSeal) != 1)
      throw std::runtime_error("OpenSSL refuses the key: EVP_CipherInit_ex failed");
  }

  void seal(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops) {
      int length = 0;
      op.good = start(op, kSeal) && EVP_CipherFinal_ex(context_.get(), op.icv, &length) == 1 &&
                EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_GET_TAG, kTag, op.icv) == 1;
    }
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops) {
      int length = 0;
      std::array<std::uint8_t, kTag> unused{};
      op.good = start(op, kOpen) &&
                EVP_CIPHER_CTX_ctrl(context_.get(), EVP_CTRL_AEAD_SET_TAG, kTag, op.icv) == 1 &&
                EVP_CipherFinal_ex(context_.get(), unused.data(), &length) == 1;
      if (!op.good) [[unlikely]] {
        wipe({op.text, op.text_len});
        ERR_clear_error();  // the peer's error, no fault of this thread
      }
    }
  }

  [[nodiscard]] bool shareable() const noexcept override { return false; }

 private:
  // Up to the ICV. AES-GCM uses one schedule in both directions, so a change of direction costs
  // nothing.
  [[nodiscard]] bool start(AeadOp& op, int direction) const noexcept {
    EVP_CIPHER_CTX* context = context_.get();
    int length = 0;
    return op.text_len <= static_cast<unsigned>(std::numeric_limits<int>::max()) &&
           EVP_CipherInit_ex(context, nullptr, nullptr, nullptr, op.nonce.data(), direction) == 1 &&
           EVP_CipherUpdate(context, nullptr, &length, op.aad.data(), op.aad_len) == 1 &&
           EVP_CipherUpdate(context, op.text, &length, op.text, static_cast<int>(op.text_len)) == 1;
  }

  CipherContext context_;
};

class Openssl final : public Backend {
 public:
  Openssl()
      : aes_gcm128_(fetch("AES-128-GCM")),
        aes_gcm192_(fetch("AES-192-GCM")),
        aes_gcm256_(fetch("AES-256-GCM")) {}

  [[nodiscard]] std::string_view name() const noexcept override { return "openssl"; }

  [[nodiscard]] bool supports(Suite suite) const noexcept override {
    return cipher(suite) != nullptr;
  }

  [[nodiscard]] std::unique_ptr<AeadKey> expand(Suite suite,
                                                std::span<const std::uint8_t> key) const override {
    check_key(*this, suite, key);
    return std::make_unique<OpensslKey>(*cipher(suite), key);
  }

 private:
  static Cipher fetch(const char* name) {
    Cipher cipher(EVP_CIPHER_fetch(nullptr, name, nullptr));
    if (!cipher) ERR_clear_error();
    return cipher;
  }

  [[nodiscard]] const EVP_CIPHER* cipher(Suite suite) const noexcept {
    switch (suite) {
      case Suite::aes_gcm128:
        return aes_gcm128_.get();
      case Suite::aes_gcm192:
        return aes_gcm192_.get();
      case Suite::aes_gcm256:
        return aes_gcm256_.get();
    }
    return nullptr;
  }

  Cipher aes_gcm128_;
  Cipher aes_gcm192_;
  Cipher aes_gcm256_;
};

}  // namespace

Probe probe_openssl() {
  auto backend = std::make_unique<Openssl>();
  for (const SuiteInfo& s : suites())
    if (backend->supports(s.suite))
      return {std::move(backend),
              std::string("version ") + OpenSSL_version(OPENSSL_VERSION_STRING)};
  return {nullptr, "its providers offer no AES-GCM: see openssl.cnf"};
}

}  // namespace espalier::crypto
