// The kernel's structures and the data plane's words for the same.
#pragma once

#include <linux/xfrm.h>

#include <cstdint>

#include "dataplane/types.h"
#include "ifaces/address.h"

namespace espalier::tools::xfrm {

// `family`: AF_INET or AF_INET6; anything else gives no address.
[[nodiscard]] ifaces::IpAddress to_address(const xfrm_address_t& address,
                                           std::uint16_t family) noexcept;
[[nodiscard]] xfrm_address_t from_address(const ifaces::IpAddress& address) noexcept;
[[nodiscard]] std::uint16_t family_of(const ifaces::IpAddress& address) noexcept;

// Throws Refused if its prefixes or port masks are none.
[[nodiscard]] dataplane::Selector to_selector(const xfrm_selector& selector);
// Ranges come back as the prefix that covers them, ports that are neither one nor all as the first.
[[nodiscard]] xfrm_selector from_selector(const dataplane::Selector& selector) noexcept;

// Without "since the first use", which the data plane does not know.
[[nodiscard]] dataplane::Lifetime to_lifetime(const xfrm_lifetime_cfg& lifetime) noexcept;
[[nodiscard]] xfrm_lifetime_cfg from_lifetime(const dataplane::Lifetime& lifetime) noexcept;

[[nodiscard]] std::uint32_t host_order(std::uint32_t be32) noexcept;
[[nodiscard]] std::uint16_t host_order16(std::uint16_t be16) noexcept;

}  // namespace espalier::tools::xfrm
