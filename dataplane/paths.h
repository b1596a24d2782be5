// The control thread's part of path MTU discovery: what routers report is checked against the SAs
// (RFC 4301 §8.2.1), what a link refused is asked of the kernel.
#pragma once

#include <chrono>
#include <optional>
#include <vector>

#include "dataplane/event.h"
#include "dataplane/icmp.h"
#include "dataplane/outer_sockets.h"
#include "dataplane/tables.h"
#include "dataplane/workers.h"
#include "ifaces/netlink.h"

namespace espalier::dataplane {

// Is `report` about a packet of `sa`: its SPI, both addresses, with UDP both ports?
[[nodiscard]] bool is_about(const TooBig& report, const OutboundSa& sa) noexcept;

// Learns from a report that is. True if the path MTU is another now.
bool learn(const TooBig& report, const OutboundSa& sa, std::int64_t now_ns) noexcept;

class PathWatch {
 public:
  PathWatch(const Workers& workers, const OuterSockets& sockets, const Tables& tables)
      : workers_(workers), sockets_(sockets), tables_(tables) {}

  // Learns from what routers report, and adds an event for each SA whose path MTU is another now.
  // A few reports a call, as they may be forged; true if there may be more.
  [[nodiscard]] bool take_reports(std::vector<Event>& events);

  // Asks the kernel what the link to the peer takes. Errors leave what was known.
  void ask(const OutboundSa& sa);
  // Asks about the peers to which a packet was refused for its length, at most every 100 ms.
  void ask_refused();
  // Asks again where ask() has found a limit: it may have grown since. A part of many SAs a call.
  void ask_again();

 private:
  const Workers& workers_;
  const OuterSockets& sockets_;
  const Tables& tables_;
  std::optional<ifaces::Netlink> netlink_;
  std::chrono::steady_clock::time_point asked_;
  bool limited_ = false;  // some PathMtu has a link()
  SaId asked_to_{};       // how far ask_again() has come
};

}  // namespace espalier::dataplane
