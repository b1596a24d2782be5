// AES-256-GCM and ChaCha20-Poly1305 by libsodium, which verifies before it decrypts.
#include <sodium.h>

#include "crypto/backends.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

// What the library may leave of round keys behind on the stack.
constexpr std::size_t kStack = 4096;

class AesKey final : public AeadKey {
 public:
  explicit AesKey(std::span<const std::uint8_t> key)
      : schedule_(sizeof(crypto_aead_aes256gcm_state)) {
    static_assert(alignof(crypto_aead_aes256gcm_state) <= SecretBytes::kAlignment);
    crypto_aead_aes256gcm_beforenm(new (schedule_.bytes().data()) crypto_aead_aes256gcm_state,
                                   key.data());
    sodium_stackzero(kStack);
  }

  void seal(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops)
      op.good = crypto_aead_aes256gcm_encrypt_detached_afternm(
                    op.text, op.icv, nullptr, op.plaintext(), op.text_len, op.aad.data(),
                    op.aad_len, nullptr, op.nonce.data(), schedule()) == 0;
    sodium_stackzero(kStack);
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops) {
      op.good = crypto_aead_aes256gcm_decrypt_detached_afternm(
                    op.text, nullptr, op.text, op.text_len, op.icv, op.aad.data(), op.aad_len,
                    op.nonce.data(), schedule()) == 0;
      if (!op.good) [[unlikely]]
        wipe({op.text, op.text_len});
    }
    sodium_stackzero(kStack);
  }

  [[nodiscard]] bool shareable() const noexcept override { return true; }

 private:
  [[nodiscard]] const crypto_aead_aes256gcm_state* schedule() const noexcept {
    return reinterpret_cast<const crypto_aead_aes256gcm_state*>(schedule_.bytes().data());
  }

  SecretBytes schedule_;
};

class ChachaKey final : public AeadKey {
 public:
  explicit ChachaKey(std::span<const std::uint8_t> key) : key_(key) {}

  void seal(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops)
      op.good = crypto_aead_chacha20poly1305_ietf_encrypt_detached(
                    op.text, op.icv, nullptr, op.text, op.text_len, op.aad.data(), op.aad_len,
                    nullptr, op.nonce.data(), key_.bytes().data()) == 0;
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops) {
      op.good = crypto_aead_chacha20poly1305_ietf_decrypt_detached(
                    op.text, nullptr, op.text, op.text_len, op.icv, op.aad.data(), op.aad_len,
                    op.nonce.data(), key_.bytes().data()) == 0;
      if (!op.good) [[unlikely]]
        wipe({op.text, op.text_len});
    }
  }

  [[nodiscard]] bool shareable() const noexcept override { return true; }

 private:
  SecretBytes key_;
};

class Sodium final : public Backend {
 public:
  explicit Sodium(bool has_aes) : has_aes_(has_aes) {}

  [[nodiscard]] std::string_view name() const noexcept override { return "sodium"; }

  [[nodiscard]] bool supports(Suite suite) const noexcept override {
    return suite == Suite::chacha20_poly1305 || (suite == Suite::aes_gcm256 && has_aes_);
  }

  [[nodiscard]] std::unique_ptr<AeadKey> expand(Suite suite,
                                                std::span<const std::uint8_t> key) const override {
    check_key(*this, suite, key);
    if (suite == Suite::chacha20_poly1305) return std::make_unique<ChachaKey>(key);
    return std::make_unique<AesKey>(key);
  }

 private:
  bool has_aes_;
};

}  // namespace

Probe probe_sodium() {
  initialise();
  // libsodium has AES in hardware only, so that its timing tells nothing of the key.
  const bool has_aes = crypto_aead_aes256gcm_is_available() != 0;
  return {std::make_unique<Sodium>(has_aes),
          std::string(has_aes ? "AES-256-GCM and " : "no AES on this processor, ") +
              "ChaCha20-Poly1305, version " + sodium_version_string()};
}

}  // namespace espalier::crypto
