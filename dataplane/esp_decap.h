// A run of ESP packets of one inbound SA becomes inner packets, in place (RFC 4303 §3.4).
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "dataplane/drop.h"
#include "dataplane/inner.h"
#include "dataplane/sa.h"
#include "ifaces/address.h"

namespace espalier::dataplane {

inline constexpr std::size_t kDecapBatch = 64;

// One packet: `esp` and `len` on the way in, the rest on the way out.
struct InboundPacket {
  std::uint8_t* esp;  // the SPI; the inner packet ends up kEspHeader + iv behind it
  std::uint32_t len;
  std::uint8_t outer_tos;
  const ifaces::Endpoint* peer;  // whom it came from

  Drop reason;  // of a packet that is not good
  std::uint64_t seq;
  std::uint8_t* inner;  // null: a dummy packet, authentic and to be forgotten
  InnerKey key;         // of the inner packet; key.length bytes at `inner`
};

// What became of a run.
struct DecapResult {
  const Binding* binding = nullptr;  // that the good ones were held to; valid until the turn ends
  std::size_t good = 0;              // inner packets, now first in the run, in order
  // The packet with the highest number, if that number is higher than any before: the only one
  // whose sender's address may be believed.
  const ifaces::Endpoint* newest = nullptr;
  std::uint64_t authentic = 0;  // packets whose ICV was right, dummies included
};

// Window check → open → window commit → padding, next header, length, ECN, selector. At most
// kDecapBatch packets. The good ones end up first, in order; the others behind them carry a
// `reason`.
[[nodiscard]] DecapResult esp_decap(InboundSa& sa, unsigned worker,
                                    std::span<InboundPacket> run) noexcept;

// Bytes that an ESP packet of `suite` has at least, from SPI to ICV.
[[nodiscard]] std::size_t esp_minimum(const crypto::SuiteInfo& suite) noexcept;

}  // namespace espalier::dataplane
