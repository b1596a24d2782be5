// One ESP packet around an inner packet (RFC 4303 §3.3, RFC 4106 §3–6).
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "crypto/aead.h"
#include "dataplane/bytes.h"
#include "dataplane/esp.h"
#include "dataplane/sa.h"

namespace espalier::dataplane {

// Writes the ESP header, the IV where it is the sequence number (a random one is drawn when the
// packet is sealed), padding and trailer around the `length` bytes of inner packet that
// stand at out + kEspHeader + iv, and describes the sealing in `op`. The packet is
// esp_length(suite, length) bytes from `out` once the op is sealed.
//
// With GCM the inner packet may stand at `inner` instead (null: it does not). Padding and trailer
// are then written behind it there, up to ifaces::kTunTailroom bytes.
inline void esp_frame(const OutboundSa& sa, const crypto::SuiteInfo& suite, std::uint64_t seq,
                      std::uint8_t* out, std::size_t length, std::uint8_t next_header,
                      crypto::AeadOp& op, std::uint8_t* inner = nullptr) noexcept {
  // In registers: what is read back from where it was just written waits for the store.
  const std::uint32_t spi = big_endian(static_cast<std::uint32_t>(sa.spi));
  const std::uint32_t seq_lo = big_endian(static_cast<std::uint32_t>(seq));
  const std::uint64_t seq_whole = big_endian(seq);
  std::memcpy(out, &spi, sizeof spi);
  std::memcpy(out + 4, &seq_lo, sizeof seq_lo);
  if (suite.iv_kind == crypto::IvKind::counter) [[likely]] {
    // RFC 4106 §3.1: the IV is the sequence number, so it never repeats under one key.
    std::memcpy(out + kEspHeader, &seq_whole, crypto::kCounterIvBytes);
    // Fixed sizes, so that each copy is one load and one store.
    std::memcpy(op.nonce.data(), sa.salt.data(), crypto::kMaxSaltBytes);
    std::memcpy(op.nonce.data() + suite.salt, &seq_whole, crypto::kCounterIvBytes);
  }

  // RFC 4106 §5: SPI and SN; with ESN the 64-bit number, its high half first.
  std::memcpy(op.aad.data(), &spi, sizeof spi);
  if (sa.esn) {
    std::memcpy(op.aad.data() + 4, &seq_whole, sizeof seq_whole);
    op.aad_len = 12;
  } else {
    std::memcpy(op.aad.data() + 4, &seq_lo, sizeof seq_lo);
    op.aad_len = 8;
  }

  std::uint8_t* text = out + kEspHeader + suite.iv;
  std::uint8_t* end = (inner == nullptr ? text : inner) + length;
  const std::size_t padding = esp_padding(suite, length);
  // The first four at once, padding or not: trailer and ICV follow.
  constexpr std::array<std::uint8_t, 4> kFirstPads = {1, 2, 3, 4};
  std::memcpy(end, kFirstPads.data(), kFirstPads.size());
  for (std::size_t i = kFirstPads.size(); i < padding; ++i)
    end[i] = static_cast<std::uint8_t>(i + 1);
  end += padding;
  *end++ = static_cast<std::uint8_t>(padding);
  *end++ = next_header;
  op.text = text;
  op.text_len = static_cast<std::uint32_t>(length + padding + kEspTrailer);
  op.icv = text + op.text_len;
  op.from = inner;
}

}  // namespace espalier::dataplane
