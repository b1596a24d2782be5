// The control thread's part of path MTU discovery: what routers report is checked against the SAs
// (RFC 4301 §8.2.1), what a link refused is asked of the kernel.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>

#include "dataplane/icmp.h"
#include "dataplane/sa.h"
#include "ifaces/netlink.h"

namespace espalier::dataplane {

// Is `report` about a packet of `sa`: its SPI, both addresses, with UDP both ports?
[[nodiscard]] bool is_about(const TooBig& report, const OutboundSa& sa) noexcept;

// Learns from a report that is. True if the path MTU is another now.
bool learn(const TooBig& report, const OutboundSa& sa, std::int64_t now_ns) noexcept;

// Asks the kernel what the link to the peer takes. `hears_reports`: of the device alone, as the
// path is known from the reports; else of the path too. Errors leave what was known.
void ask_link(const OutboundSa& sa, bool hears_reports, std::optional<ifaces::Netlink>& netlink);

}  // namespace espalier::dataplane
