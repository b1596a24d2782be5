// Every suite by OpenSSL: everywhere, and with the best code for the processor.
#include <openssl/crypto.h>
#include <openssl/err.h>

#include <algorithm>
#include <array>
#include <vector>

#include "crypto/backends.h"
#include "crypto/openssl_handles.h"
#include "crypto/openssl_memory.h"

namespace espalier::crypto {
namespace {

// The name of the cipher; null for none.
const char* cipher_name(const SuiteInfo& suite) noexcept {
  constexpr std::array kGcm = {"AES-128-GCM", "AES-192-GCM", "AES-256-GCM"};
  constexpr std::array kCcm = {"AES-128-CCM", "AES-192-CCM", "AES-256-CCM"};
  constexpr std::array kCbc = {"AES-128-CBC", "AES-192-CBC", "AES-256-CBC"};
  const std::size_t size = (suite.key - 16U) / 8U;  // of AES
  switch (suite.mode) {
    case Mode::gcm:
    case Mode::gmac:
      return kGcm[size];
    case Mode::ccm:
      return kCcm[size];
    case Mode::cbc_hmac:
      return kCbc[size];
    case Mode::chacha20:
      return "ChaCha20-Poly1305";
    case Mode::hmac:
      break;
  }
  return nullptr;
}

// Algorithms are fetched once: that is a search with a lock.
class Openssl final : public Backend {
 public:
  Openssl() : hmac_(EVP_MAC_fetch(nullptr, "HMAC", nullptr)) {
    for (const SuiteInfo& s : suites()) {
      const char* name = cipher_name(s);
      if (name != nullptr && find(name) == nullptr)
        if (Cipher cipher(EVP_CIPHER_fetch(nullptr, name, nullptr)); cipher)
          ciphers_.push_back({name, std::move(cipher)});
    }
    ERR_clear_error();
  }

  [[nodiscard]] std::string_view name() const noexcept override { return "openssl"; }

  [[nodiscard]] bool supports(Suite suite) const noexcept override {
    const SuiteInfo& s = info(suite);
    const char* name = cipher_name(s);
    return (name == nullptr || find(name) != nullptr) && (s.hash == Hash::none || hmac_ != nullptr);
  }

  [[nodiscard]] std::unique_ptr<AeadKey> expand(Suite suite,
                                                std::span<const std::uint8_t> key) const override {
    check_key(*this, suite, key);
    const SuiteInfo& s = info(suite);
    const char* name = cipher_name(s);
    const EVP_CIPHER* cipher = name == nullptr ? nullptr : find(name);
    const OpensslSecrets here;
    if (s.hash != Hash::none) return openssl_hmac_key(s, cipher, *hmac_, key);
    if (cipher == nullptr) throw std::invalid_argument("a suite has a cipher, or a hash");
    return openssl_aead_key(s, *cipher, key);
  }

 private:
  struct Fetched {
    std::string_view name;
    Cipher cipher;
  };

  [[nodiscard]] const EVP_CIPHER* find(std::string_view name) const noexcept {
    const auto it = std::find_if(ciphers_.begin(), ciphers_.end(),
                                 [name](const Fetched& f) { return f.name == name; });
    return it == ciphers_.end() ? nullptr : it->cipher.get();
  }

  std::vector<Fetched> ciphers_;
  Mac hmac_;
};

}  // namespace

Probe probe_openssl() {
  auto backend = std::make_unique<Openssl>();
  for (const SuiteInfo& s : suites())
    if (backend->supports(s.suite))
      return {std::move(backend),
              std::string("version ") + OpenSSL_version(OPENSSL_VERSION_STRING)};
  return {nullptr, "its providers offer no cipher of ESP: see openssl.cnf"};
}

}  // namespace espalier::crypto
