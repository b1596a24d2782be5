// One ESP packet around an inner packet (RFC 4303 §3.3, RFC 4106 §3–6).
#pragma once

#include <cstdint>

#include "crypto/aead.h"
#include "dataplane/sa.h"

namespace espalier::dataplane {

// Writes the ESP header, the IV where it is the sequence number (a random one is drawn when the
// packet is sealed), padding and trailer around the `length` bytes of inner packet that
// stand at out + kEspHeader + iv, and describes the sealing in `op`. The packet is
// esp_length(suite, length) bytes from `out` once the op is sealed.
void esp_frame(const OutboundSa& sa, const crypto::SuiteInfo& suite, std::uint64_t seq,
               std::uint8_t* out, std::size_t length, std::uint8_t next_header,
               crypto::AeadOp& op) noexcept;

}  // namespace espalier::dataplane
