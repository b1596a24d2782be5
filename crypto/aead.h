// AEAD over batches: what every backend provides. No I/O, no packet format, no table.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "crypto/suite.h"

namespace espalier::crypto {

// One operation on one packet, in place if `from` is null. `text` is `text_len` bytes, plaintext
// before seal and after open; `icv` is info(suite).icv bytes, written by seal, read by open.
// Neither needs any alignment or is ever null, not even for no text. All pointers are owned by the
// caller and live for the call.
//
// An AEAD takes `nonce` and `aad`, and text and icv may be apart, not overlapping. What
// authenticates its packet as it lies in memory (HMAC, GMAC) finds it there: SPI and sequence
// number (8 bytes) and the IV (info(suite).iv bytes) right before `text`, the icv right behind it.
// CBC reads its IV there too, and refuses a text_len that is no positive multiple of 16. With ESN
// the high half of the number is in the middle of `aad` (SPI, high, low) for all of them.
//
// Aligned, so that no field of a batch straddles two cache lines.
struct alignas(64) AeadOp {
  std::uint8_t* text;
  std::uint8_t* icv;
  std::uint32_t text_len;
  std::uint8_t aad_len;                // 8, or 12 with ESN (RFC 4106 §5)
  bool good;                           // set by open and seal
  std::array<std::uint8_t, 12> nonce;  // CCM: the first 11
  std::array<std::uint8_t, 12> aad;
  // GCM, seal: where the plaintext stands, apart from text and icv; null: at `text`. Others do not
  // look at it.
  const std::uint8_t* from;

  [[nodiscard]] bool esn() const noexcept { return aad_len == 12; }
  // The high half, if esn().
  [[nodiscard]] const std::uint8_t* seq_hi() const noexcept { return aad.data() + 4; }
  // What seal is to encrypt, of GCM.
  [[nodiscard]] const std::uint8_t* plaintext() const noexcept {
    return from == nullptr ? text : from;
  }
};
inline constexpr std::size_t kSeqHi = 4;
inline constexpr std::size_t kEspHeaderBytes = 8;

// An expanded key. Wiped when destroyed.
class AeadKey {
 public:
  AeadKey() = default;
  AeadKey(const AeadKey&) = delete;
  AeadKey& operator=(const AeadKey&) = delete;
  virtual ~AeadKey() = default;

  // Encrypts and authenticates every op. An op whose `good` is false afterwards must not be sent.
  virtual void seal(std::span<AeadOp> ops) const noexcept = 0;

  // Authenticates and decrypts every op. Where the ICV is wrong, `good` is false and the text is
  // zeroed: a failed open leaves nothing readable.
  virtual void open(std::span<AeadOp> ops) const noexcept = 0;

  // True if several threads may seal and open with this key at once; otherwise each needs its own.
  [[nodiscard]] virtual bool shareable() const noexcept = 0;
};

class Backend {
 public:
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;
  virtual ~Backend() = default;

  [[nodiscard]] virtual std::string_view name() const noexcept = 0;  // ipsec-mb, openssl, sodium
  [[nodiscard]] virtual bool supports(Suite suite) const noexcept = 0;

  // `key` is info(suite).keys() bytes: cipher's, then integrity's, without the salt. Throws
  // std::invalid_argument for a wrong length or an unsupported suite. The key may outlive the
  // Backend.
  [[nodiscard]] virtual std::unique_ptr<AeadKey> expand(
      Suite suite, std::span<const std::uint8_t> key) const = 0;
};

}  // namespace espalier::crypto
