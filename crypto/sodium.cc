// AES-256-GCM by libsodium, which verifies before it decrypts.
#include <sodium.h>

#include "crypto/backends.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

class SodiumKey final : public AeadKey {
 public:
  explicit SodiumKey(std::span<const std::uint8_t> key)
      : schedule_(sizeof(crypto_aead_aes256gcm_state)) {
    static_assert(alignof(crypto_aead_aes256gcm_state) <= SecretBytes::kAlignment);
    crypto_aead_aes256gcm_beforenm(new (schedule_.bytes().data()) crypto_aead_aes256gcm_state,
                                   key.data());
  }

  void seal(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops)
      op.good = crypto_aead_aes256gcm_encrypt_detached_afternm(
                    op.text, op.icv, nullptr, op.text, op.text_len, op.aad.data(), op.aad_len,
                    nullptr, op.nonce.data(), schedule()) == 0;
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    for (AeadOp& op : ops) {
      op.good = crypto_aead_aes256gcm_decrypt_detached_afternm(
                    op.text, nullptr, op.text, op.text_len, op.icv, op.aad.data(), op.aad_len,
                    op.nonce.data(), schedule()) == 0;
      if (!op.good) [[unlikely]]
        wipe({op.text, op.text_len});
    }
  }

  [[nodiscard]] bool shareable() const noexcept override { return true; }

 private:
  [[nodiscard]] const crypto_aead_aes256gcm_state* schedule() const noexcept {
    return reinterpret_cast<const crypto_aead_aes256gcm_state*>(schedule_.bytes().data());
  }

  SecretBytes schedule_;
};

class Sodium final : public Backend {
 public:
  [[nodiscard]] std::string_view name() const noexcept override { return "sodium"; }

  [[nodiscard]] bool supports(Suite suite) const noexcept override {
    return suite == Suite::aes_gcm256;
  }

  [[nodiscard]] std::unique_ptr<AeadKey> expand(Suite suite,
                                                std::span<const std::uint8_t> key) const override {
    check_key(*this, suite, key);
    return std::make_unique<SodiumKey>(key);
  }
};

}  // namespace

Probe probe_sodium() {
  initialise();
  // libsodium has AES in hardware only, so that its timing tells nothing of the key.
  if (crypto_aead_aes256gcm_is_available() == 0)
    return {nullptr, "this processor lacks what libsodium needs for AES-GCM"};
  return {std::make_unique<Sodium>(),
          std::string("AES-256-GCM only, version ") + sodium_version_string()};
}

}  // namespace espalier::crypto
