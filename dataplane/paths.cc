#include "dataplane/paths.h"

#include <system_error>

#include "ifaces/esp_socket.h"

namespace espalier::dataplane {

bool is_about(const TooBig& report, const OutboundSa& sa) noexcept {
  if (sa.spi != report.spi || sa.encapsulation != report.encapsulation) return false;
  const ifaces::Endpoint peer = sa.peer->get();
  const ifaces::Endpoint& local = sa.socket->local;
  if (report.peer.address != peer.address) return false;
  if (!local.address.is_any() && report.local.address != local.address) return false;
  return sa.encapsulation == Encapsulation::esp ||
         (report.peer.port == peer.port && report.local.port == local.port);
}

bool learn(const TooBig& report, const OutboundSa& sa, std::int64_t now_ns) noexcept {
  const bool ipv6 = report.peer.address.family == ifaces::Family::v6;
  return sa.peer->path().learn(report.mtu, report.length, ipv6, now_ns);
}

void ask_link(const OutboundSa& sa, bool hears_reports, std::optional<ifaces::Netlink>& netlink) {
  const ifaces::Endpoint peer = sa.peer->get();
  if (peer.address.is_any()) return;
  try {
    if (!hears_reports)
      return sa.peer->path().set_link(ifaces::outer_mtu(sa.socket->local.address, peer.address));
    if (!netlink) netlink.emplace();
    sa.peer->path().set_link(netlink->link_mtu(peer.address, sa.outer_mark));
  } catch (const std::system_error&) {
    // No route now: nothing can be sent, so nothing is too long.
  }
}

}  // namespace espalier::dataplane
