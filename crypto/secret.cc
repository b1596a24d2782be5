#include "crypto/secret.h"

#include <sodium.h>

#include <array>
#include <cstring>
#include <limits>
#include <new>
#include <stdexcept>

#include "crypto/openssl_memory.h"
#include "crypto/page_arena.h"

namespace espalier::crypto {
namespace {

// mlock works on whole pages and does not nest, so a secret on a page of the heap would lose its
// lock when a neighbour is freed. Secrets therefore have pages of their own, shared only among
// secrets of the same size.
//
// One for the process, because the limit on locked pages is the process's. Never destroyed: a
// secret in static storage may be freed after every other destructor has run.
PageArena& arena() {
  alignas(PageArena) static std::array<std::byte, sizeof(PageArena)> storage;
  static PageArena* const instance = new (storage.data()) PageArena(PageArena::Pages::secret);
  return *instance;
}

}  // namespace

void initialise() {
  divert_openssl_memory();
  if (sodium_init() < 0)
    throw std::runtime_error("libsodium cannot be initialised: it finds no source of randomness");
}

SecretBytes::SecretBytes(std::size_t size) {
  if (size == 0) return;
  if (size > std::numeric_limits<std::uint32_t>::max()) throw std::bad_alloc();
  data_ = {arena().allocate(PageArena::rounded(size)),
           Free{static_cast<std::uint32_t>(size), false}};
}

SecretBytes::SecretBytes(std::span<const std::uint8_t> bytes) : SecretBytes(bytes.size()) {
  if (!bytes.empty()) std::memcpy(this->bytes().data(), bytes.data(), bytes.size());
}

bool SecretBytes::equals(const SecretBytes& other) const noexcept {
  // A length is no secret: it follows from the suite.
  return size() == other.size() &&
         (size() == 0 || sodium_memcmp(data_.get(), other.data_.get(), size()) == 0);
}

SecretBytes SecretBytes::random(std::size_t size) {
  initialise();  // randombytes_buf would abort the process where there is no randomness
  SecretBytes secret(size);
  if (size != 0) randombytes_buf(secret.bytes().data(), size);
  return secret;
}

void SecretBytes::Free::operator()(std::uint8_t* data) const noexcept {
  if (written) sodium_memzero(data, size);
  arena().release(data, PageArena::rounded(size));
}

void wipe(std::span<std::uint8_t> bytes) noexcept {
  sodium_memzero(bytes.data(), bytes.size());
}

bool secrets_are_locked() noexcept {
  return arena().locked();
}

}  // namespace espalier::crypto
