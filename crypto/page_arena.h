// Small runs of zero bytes from pages of their own, for what may never be written to: a page that
// nobody writes to takes no memory. Runs of one size share pages; the heap would put a header
// between them, and with it touch every page.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace espalier::crypto {

// Any thread.
class PageArena {
 public:
  static constexpr std::size_t kStep = 64;  // sizes are multiples of it, runs aligned to it

  enum class Pages : std::uint8_t {
    plain,
    secret,  // locked as far as RLIMIT_MEMLOCK reaches, and left out of core files
  };
  explicit PageArena(Pages pages) noexcept : pages_(pages) {}

  static constexpr std::size_t rounded(std::size_t size) {
    return (size + kStep - 1) / kStep * kStep;
  }

  // `size`: rounded(). Throws std::bad_alloc.
  [[nodiscard]] std::uint8_t* allocate(std::size_t size);
  // The bytes are zero again.
  void release(std::uint8_t* data, std::size_t size) noexcept;

  // False once some secret pages could not be locked.
  [[nodiscard]] bool locked() noexcept;

 private:
  static constexpr std::size_t kChunk = std::size_t{64} << 10;  // what is mapped at a time
  static constexpr std::size_t kLargest = 4096;  // larger runs have a mapping of their own

  struct Chunk {
    std::size_t used = 0;  // bytes that were ever handed out
    std::size_t live = 0;  // runs
    std::vector<std::uint8_t*> freed;
  };

  std::uint8_t* map(std::size_t size);

  Pages pages_;
  std::mutex mutex_;
  std::map<std::uint8_t*, Chunk> chunks_;  // by their first byte
  // By size, in steps: the chunks that have room.
  std::array<std::vector<std::uint8_t*>, kLargest / kStep + 1> roomy_;
  bool locked_ = true;
};

}  // namespace espalier::crypto
