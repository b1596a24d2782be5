#include "crypto/secret.h"

#include <sodium.h>
#include <sys/mman.h>

#include <array>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

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
// secrets of the same size: room that nobody has written to takes no memory. A chunk goes when its
// last secret does.
class Arena {
 public:
  std::uint8_t* allocate(std::size_t size) {
    const std::scoped_lock lock(mutex_);
    if (size > kLargest) return map(size);
    std::vector<std::uint8_t*>& roomy = roomy_[size / kStep];
    if (roomy.empty()) {
      std::uint8_t* base = map(kChunk);
      chunks_.emplace(base, Chunk{});
      roomy.push_back(base);
    }
    std::uint8_t* base = roomy.back();
    Chunk& chunk = chunks_.at(base);
    // Room in the lists now, so that release() cannot fail.
    if (chunk.freed.capacity() <= chunk.live) chunk.freed.reserve(2 * chunk.live + 8);
    if (roomy.capacity() <= chunks_.size()) roomy.reserve(2 * chunks_.size() + 8);
    ++chunk.live;
    std::uint8_t* data = nullptr;
    if (chunk.freed.empty()) {
      data = base + chunk.used;
      chunk.used += size;
    } else {
      data = chunk.freed.back();
      chunk.freed.pop_back();
    }
    if (chunk.freed.empty() && chunk.used + size > kChunk) roomy.pop_back();
    return data;
  }

  // The bytes are zero.
  void release(std::uint8_t* data, std::size_t size) noexcept {
    if (size > kLargest) {
      munmap(data, size);  // drops the lock too
      return;
    }
    const std::scoped_lock lock(mutex_);
    const auto found = std::prev(chunks_.upper_bound(data));
    std::uint8_t* base = found->first;
    Chunk& chunk = found->second;
    std::vector<std::uint8_t*>& roomy = roomy_[size / kStep];
    if (--chunk.live == 0) {
      std::erase(roomy, base);
      chunks_.erase(found);
      munmap(base, kChunk);
      return;
    }
    if (chunk.freed.empty() && chunk.used + size > kChunk) roomy.push_back(base);
    chunk.freed.push_back(data);
  }

  [[nodiscard]] bool locked() noexcept {
    const std::scoped_lock lock(mutex_);
    return locked_;
  }

 private:
  struct Chunk {
    std::size_t used = 0;  // bytes that were ever handed out
    std::size_t live = 0;  // secrets
    std::vector<std::uint8_t*> freed;
  };

  std::uint8_t* map(std::size_t size) {
    void* pages =
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    static_cast<void>(madvise(pages, size, MADV_DONTDUMP));
    // On fault: room that is never written to is not there to be swapped.
    if (mlock2(pages, size, MLOCK_ONFAULT) != 0) locked_ = false;
    return static_cast<std::uint8_t*>(pages);
  }

  std::mutex mutex_;
  std::map<std::uint8_t*, Chunk> chunks_;  // by their first byte
  // By size, in steps: the chunks that have room.
  std::array<std::vector<std::uint8_t*>, kLargest / kStep + 1> roomy_;
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
  data_ = {arena().allocate(rounded(size)), Free{rounded(size), false}};
  size_ = size;
}

SecretBytes::SecretBytes(std::span<const std::uint8_t> bytes) : SecretBytes(bytes.size()) {
  if (!bytes.empty()) std::memcpy(this->bytes().data(), bytes.data(), bytes.size());
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
  if (size != 0) randombytes_buf(secret.bytes().data(), size);
  return secret;
}

void SecretBytes::Free::operator()(std::uint8_t* data) const noexcept {
  if (written) sodium_memzero(data, size);
  arena().release(data, size);
}

void wipe(std::span<std::uint8_t> bytes) noexcept {
  sodium_memzero(bytes.data(), bytes.size());
}

bool secrets_are_locked() noexcept {
  return arena().locked();
}

}  // namespace espalier::crypto
