#include "crypto/page_arena.h"

#include <sys/mman.h>

#include <iterator>
#include <new>

namespace espalier::crypto {

// A chunk goes when its last run does.
std::uint8_t* PageArena::allocate(std::size_t size) {
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

void PageArena::release(std::uint8_t* data, std::size_t size) noexcept {
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

bool PageArena::locked() noexcept {
  const std::scoped_lock lock(mutex_);
  return locked_;
}

std::uint8_t* PageArena::map(std::size_t size) {
  void* pages =
      mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, /*fd=*/-1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  if (pages_ == Pages::secret) {
    static_cast<void>(madvise(pages, size, MADV_DONTDUMP));
    // On fault: room that is never written to is not there to be swapped.
    if (mlock2(pages, size, MLOCK_ONFAULT) != 0) locked_ = false;
  }
  return static_cast<std::uint8_t*>(pages);
}

}  // namespace espalier::crypto
