#include "crypto/secret.h"

#include <sodium.h>
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>

namespace espalier::crypto {
namespace {

constexpr std::size_t kStep = SecretBytes::kAlignment;
constexpr std::size_t kChunk = std::size_t{64} << 10;  // what is mapped and locked at a time
constexpr std::size_t kLargest = 4096;                 // larger runs have a mapping of their own

constexpr std::size_t rounded(std::size_t size) {
  return (size + kStep - 1) / kStep * kStep;
}

// mlock works on whole pages and does not nest, so a secret on a page of the heap would lose its
// lock when a neighbour is freed. Secrets therefore have pages of their own, shared only among
// themselves. Chunks stay mapped: what is freed is wiped and serves the next key.
class Arena {
 public:
  std::uint8_t* allocate(std::size_t size) {
    const std::scoped_lock lock(mutex_);
    if (size > kLargest) return map(size);
    FreeRun*& head = free_[size / kStep];
    if (head != nullptr) {
      FreeRun* run = std::exchange(head, head->next);
      sodium_memzero(run, sizeof *run);
      return reinterpret_cast<std::uint8_t*>(run);
    }
    if (left_ < size) {
      next_ = map(kChunk);
      left_ = kChunk;
    }
    left_ -= size;
    return std::exchange(next_, next_ + size);
  }

  void release(std::uint8_t* data, std::size_t size) noexcept {
    sodium_memzero(data, size);
    if (size > kLargest) {
      munmap(data, size);  // drops the lock too
      return;
    }
    const std::scoped_lock lock(mutex_);
    FreeRun*& head = free_[size / kStep];
    head = new (data) FreeRun{head};
  }

  [[nodiscard]] bool locked() noexcept {
    const std::scoped_lock lock(mutex_);
    return locked_;
  }

 private:
  struct FreeRun {
    FreeRun* next;
  };

  std::uint8_t* map(std::size_t size) {
    void* pages =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    // Not left to sodium_mlock: this has to hold where locking fails, too.
    static_cast<void>(madvise(pages, size, MADV_DONTDUMP));
    if (sodium_mlock(pages, size) != 0) locked_ = false;
    return static_cast<std::uint8_t*>(pages);
  }

  std::mutex mutex_;
  std::array<FreeRun*, kLargest / kStep + 1> free_{};
  std::uint8_t* next_ = nullptr;
  std::size_t left_ = 0;
  bool locked_ = true;
};

// One for the process, because the limit on locked pages is the process's. Never destroyed: a
// secret in static storage may be freed after every other destructor has run.
Arena& arena() {
  alignas(Arena) static std::array<std::byte, sizeof(Arena)> storage;
  static Arena* const instance = new (storage.data()) Arena;
  return *instance;
}

}  // namespace

void initialise() {
  if (sodium_init() < 0)
    throw std::runtime_error("libsodium cannot be initialised: it finds no source of randomness");
}

SecretBytes::SecretBytes(std::size_t size) {
  if (size == 0) return;
  data_ = {arena().allocate(rounded(size)), Free{rounded(size)}};
  size_ = size;
}

SecretBytes::SecretBytes(std::span<const std::uint8_t> bytes) : SecretBytes(bytes.size()) {
  if (!bytes.empty()) std::memcpy(data_.get(), bytes.data(), bytes.size());
}

SecretBytes::SecretBytes(SecretBytes&& other) noexcept
    : data_(std::move(other.data_)), size_(std::exchange(other.size_, 0)) {}

SecretBytes& SecretBytes::operator=(SecretBytes&& other) noexcept {
  data_ = std::move(other.data_);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

bool SecretBytes::equals(const SecretBytes& other) const noexcept {
  // A length is no secret: it follows from the suite.
  return size_ == other.size_ &&
         (size_ == 0 || sodium_memcmp(data_.get(), other.data_.get(), size_) == 0);
}

SecretBytes SecretBytes::random(std::size_t size) {
  initialise();  // randombytes_buf would abort the process where there is no randomness
  SecretBytes secret(size);
  if (size != 0) randombytes_buf(secret.data_.get(), size);
  return secret;
}

void SecretBytes::Free::operator()(std::uint8_t* data) const noexcept {
  arena().release(data, size);
}

void wipe(std::span<std::uint8_t> bytes) noexcept {
  sodium_memzero(bytes.data(), bytes.size());
}

bool secrets_are_locked() noexcept {
  return arena().locked();
}

}  // namespace espalier::crypto
