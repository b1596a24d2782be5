#include "crypto/iv_source.h"

#include <sodium.h>

#include <cstring>

namespace espalier::crypto {

IvSource::IvSource() : stream_(kKey + kBlocks * kBlock) {
  initialise();
  randombytes_buf(stream_.bytes().data(), kKey);
  refill();
}

void IvSource::refill() noexcept {
  std::array<std::uint8_t, kKey> key{};
  const std::span<std::uint8_t> stream = stream_.bytes();
  std::memcpy(key.data(), stream.data(), key.size());
  // The nonce may stay the same, for the key does not.
  constexpr std::array<std::uint8_t, crypto_stream_chacha20_NONCEBYTES> kNonce{};
  static_cast<void>(
      crypto_stream_chacha20(stream.data(), stream.size(), kNonce.data(), key.data()));
  wipe(key);
  used_ = kKey;
}

void IvSource::draw(std::uint8_t* out) noexcept {
  if (used_ == stream_.size()) refill();
  std::memcpy(out, stream_.bytes().data() + used_, kBlock);
  used_ += kBlock;
}

}  // namespace espalier::crypto
