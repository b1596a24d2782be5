// OpenSSL's objects as values. Private to crypto/.
#pragma once

#include <openssl/evp.h>

#include <memory>
#include <span>

#include "crypto/aead.h"

namespace espalier::crypto {

template <auto kFree>
struct OpensslDeleter {
  template <typename T>
  void operator()(T* object) const noexcept {
    kFree(object);
  }
};
using Cipher = std::unique_ptr<EVP_CIPHER, OpensslDeleter<&EVP_CIPHER_free>>;
using CipherContext = std::unique_ptr<EVP_CIPHER_CTX, OpensslDeleter<&EVP_CIPHER_CTX_free>>;
using Mac = std::unique_ptr<EVP_MAC, OpensslDeleter<&EVP_MAC_free>>;
using MacContext = std::unique_ptr<EVP_MAC_CTX, OpensslDeleter<&EVP_MAC_CTX_free>>;

// Keys as AeadKey. The algorithms are fetched once, by the backend; a key holds a reference of its
// own to each.
[[nodiscard]] std::unique_ptr<AeadKey> openssl_aead_key(const SuiteInfo& suite,
                                                        const EVP_CIPHER& cipher,
                                                        std::span<const std::uint8_t> key);
// `cipher` is null for NULL encryption.
[[nodiscard]] std::unique_ptr<AeadKey> openssl_hmac_key(const SuiteInfo& suite,
                                                        const EVP_CIPHER* cipher, EVP_MAC& hmac,
                                                        std::span<const std::uint8_t> keys);

// A context that has `key` in it; the nonce comes with each packet.
[[nodiscard]] CipherContext openssl_context(const EVP_CIPHER& cipher,
                                            std::span<const std::uint8_t> key, bool seal);

}  // namespace espalier::crypto
