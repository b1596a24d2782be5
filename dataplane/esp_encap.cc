#include "dataplane/esp_encap.h"

#include <cstring>

#include "dataplane/bytes.h"
#include "dataplane/esp.h"

namespace espalier::dataplane {

void esp_frame(const OutboundSa& sa, const crypto::SuiteInfo& suite, std::uint64_t seq,
               std::uint8_t* out, std::size_t length, std::uint8_t next_header,
               crypto::AeadOp& op) noexcept {
  const auto spi = static_cast<std::uint32_t>(sa.spi);
  store_be(out, spi);
  store_be(out + 4, static_cast<std::uint32_t>(seq));
  if (suite.iv_kind == crypto::IvKind::counter) [[likely]] {
    // RFC 4106 §3.1: the IV is the sequence number, so it never repeats under one key.
    store_be(out + kEspHeader, seq);
    // Fixed sizes, so that each copy is one load and one store.
    std::memcpy(op.nonce.data(), sa.salt.data(), crypto::kMaxSaltBytes);
    std::memcpy(op.nonce.data() + suite.salt, out + kEspHeader, crypto::kCounterIvBytes);
  }

  // RFC 4106 §5: SPI and SN; with ESN the 64-bit number, its high half first.
  std::memcpy(op.aad.data(), out, 4);
  if (sa.esn) {
    store_be(op.aad.data() + 4, seq);
    op.aad_len = 12;
  } else {
    std::memcpy(op.aad.data() + 4, out + 4, 4);
    op.aad_len = 8;
  }

  std::uint8_t* text = out + kEspHeader + suite.iv;
  std::uint8_t* end = text + length;
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
  op.text_len = static_cast<std::uint32_t>(end - text);
  op.icv = end;
}

}  // namespace espalier::dataplane
