#include "crypto/openssl_memory.h"

#include <openssl/crypto.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <utility>

#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

// In front of every allocation: free() is not told where it came from.
struct alignas(std::max_align_t) Head {
  std::size_t size;    // of what follows
  SecretBytes* pages;  // null: of the heap
};

thread_local unsigned scopes = 0;

void* allocate_secret(std::size_t size) {
  try {
    auto pages = std::make_unique<SecretBytes>(sizeof(Head) + size);
    auto* const head = new (pages->bytes().data()) Head{size, pages.get()};
    static_cast<void>(pages.release());  // the head has it
    return head + 1;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}

void* allocate_plain(std::size_t size) {
  void* const memory = std::malloc(sizeof(Head) + size);
  if (memory == nullptr) return nullptr;
  return new (memory) Head{size, nullptr} + 1;
}

void* allocate(std::size_t size, const char* /*file*/, int /*line*/) {
  if (size == 0 || size > std::numeric_limits<std::size_t>::max() - sizeof(Head)) return nullptr;
  return scopes > 0 ? allocate_secret(size) : allocate_plain(size);
}

Head* head_of(void* memory) {
  return static_cast<Head*>(memory) - 1;
}

void release(void* memory, const char* /*file*/, int /*line*/) {
  if (memory == nullptr) return;
  Head* const head = head_of(memory);
  if (head->pages == nullptr) return std::free(head);
  const std::unique_ptr<SecretBytes> pages(head->pages);  // wiped
}

void* reallocate(void* memory, std::size_t size, const char* file, int line) {
  if (memory == nullptr) return allocate(size, file, line);
  if (size == 0) {
    release(memory, file, line);
    return nullptr;
  }
  const Head* const head = head_of(memory);
  void* const moved = head->pages != nullptr ? allocate_secret(size) : allocate(size, file, line);
  if (moved == nullptr) return nullptr;
  std::memcpy(moved, memory, std::min(size, head->size));
  release(memory, file, line);
  return moved;
}

}  // namespace

void divert_openssl_memory() noexcept {
  static_cast<void>(CRYPTO_set_mem_functions(&allocate, &reallocate, &release));
}

OpensslSecrets::OpensslSecrets() noexcept {
  ++scopes;
}
OpensslSecrets::~OpensslSecrets() {
  --scopes;
}

}  // namespace espalier::crypto
