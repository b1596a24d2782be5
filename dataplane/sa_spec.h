// What is asked of an SA: checked, and made into one. Errors: std::invalid_argument, with what to
// write instead.
#pragma once

#include <string>

#include "crypto/registry.h"
#include "dataplane/sa.h"
#include "dataplane/tables.h"

namespace espalier::dataplane {

[[nodiscard]] std::string hex(Spi spi);  // "0x00000100"

void check(const SaSpec& spec, const Tables& tables, const crypto::Registry& registry);
void check_window(bool esn, std::uint32_t bits);
void check_lifetime(const Lifetime& lifetime);

// All of `sa` that both directions have, but for its socket. `spec` has been checked. `workers`:
// how many will use it at once.
void fill(SaCommon& sa, SaId id, const SaSpec& spec, const crypto::Registry& registry,
          const Tables& tables, std::size_t workers);

// The last number that may ever be used (RFC 4303 §3.3.3: it never cycles). With ESN a batch may
// reserve past it; the last 2^32 are the room for that.
[[nodiscard]] std::uint64_t last_seq(const SaCommon& sa) noexcept;
// Numbers up to `limit` may be used, unless the SA has expired.
void set_limit(OutboundSa& sa, std::uint64_t limit) noexcept;
// Without ESN there are 2^32 numbers; the last 2^28 of them are time to replace the SA. In packets
// of its count; Limits::kNever with ESN.
[[nodiscard]] std::uint64_t margin_packets(const OutboundSa& sa) noexcept;

}  // namespace espalier::dataplane
