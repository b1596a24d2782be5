// Memory for key material: locked, kept out of core files, wiped when freed (libsodium).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace espalier::crypto {

// Must be called once before anything else of crypto/, and before anybody uses OpenSSL, whose
// memory it diverts; safe to call again. Throws std::runtime_error if libsodium cannot be
// initialised.
void initialise();

// A fixed-size run of secret bytes. Move-only; compared in constant time; never printed.
//
// The bytes start on a multiple of kAlignment and lie on pages that hold nothing but secrets: those
// are left out of core files and, as far as RLIMIT_MEMLOCK reaches, never swapped. Beyond that
// limit the memory is only left out of core files and wiped, see secrets_are_locked().
//
// Different objects may be used by different threads at once.
class SecretBytes {
 public:
  static constexpr std::size_t kAlignment = 64;

  SecretBytes() = default;
  explicit SecretBytes(std::size_t size);  // zero-filled; takes memory when it is written to
  explicit SecretBytes(std::span<const std::uint8_t> bytes);
  SecretBytes(SecretBytes&& other) noexcept = default;             // leaves `other` empty
  SecretBytes& operator=(SecretBytes&& other) noexcept = default;  // leaves `other` empty

  [[nodiscard]] std::size_t size() const noexcept {
    return data_ == nullptr ? 0 : data_.get_deleter().size;
  }
  [[nodiscard]] std::span<std::uint8_t> bytes() noexcept {
    data_.get_deleter().written = true;
    return {data_.get(), size()};
  }
  [[nodiscard]] std::span<const std::uint8_t> bytes() const noexcept {
    return {data_.get(), size()};
  }
  [[nodiscard]] bool equals(const SecretBytes& other) const noexcept;

  [[nodiscard]] static SecretBytes random(std::size_t size);

 private:
  struct Free {
    std::uint32_t size;
    bool written;  // somebody could have
    void operator()(std::uint8_t* data) const noexcept;
  };
  std::unique_ptr<std::uint8_t, Free> data_{nullptr, Free{0, false}};
};

void wipe(std::span<std::uint8_t> bytes) noexcept;

// False once some secret had to be placed on pages that could not be locked. For a line in the log.
[[nodiscard]] bool secrets_are_locked() noexcept;

}  // namespace espalier::crypto
