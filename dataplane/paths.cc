#include "dataplane/paths.h"

#include <system_error>
#include <unordered_set>

#include "dataplane/reporter.h"
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

bool PathWatch::take_reports(std::vector<Event>& events) {
  constexpr int kMost = 64;
  TooBig report;
  for (int i = 0; i < kMost; ++i) {
    if (!workers_.front().reports().take(report)) return false;
    const std::int64_t now_ns = coarse_now_ns();
    for (const OutboundSa* sa = tables_.outbound(report.spi); sa != nullptr; sa = sa->same_spi) {
      if (!is_about(report, *sa) || !learn(report, *sa, now_ns)) continue;
      Event event = sa_event(EventKind::path_mtu, *sa, Direction::out);
      event.path_mtu = sa->peer->path().get(now_ns);
      event.when = std::chrono::steady_clock::now();
      events.push_back(event);
    }
  }
  return true;
}

void PathWatch::ask(const OutboundSa& sa) {
  const ifaces::Endpoint peer = sa.peer->get();
  if (peer.address.is_any()) return;
  limited_ = true;
  try {
    // The path is known from the reports, where we hear them: then of the device alone.
    if (!sockets_.hears(*sa.socket))
      return sa.peer->path().set_link(ifaces::outer_mtu(sa.socket->local.address, peer.address));
    if (!netlink_) netlink_.emplace();
    sa.peer->path().set_link(netlink_->link_mtu(peer.address, sa.outer_mark));
  } catch (const std::system_error&) {
    // No route now: nothing can be sent, so nothing is too long.
  }
}

void PathWatch::ask_refused() {
  const auto now = std::chrono::steady_clock::now();
  if (now - asked_ < std::chrono::milliseconds(100)) return;  // ask_again() will be called
  bool refused = false;
  for (const auto& worker : workers_) refused = worker->take_refused() || refused;
  if (!refused) return;
  asked_ = now;
  for (const OutboundSa* sa : tables_.all_outbound())
    if (sa->peer->path().take_refused()) ask(*sa);
}

void PathWatch::ask_again() {
  ask_refused();
  if (!limited_) return;
  constexpr std::size_t kPart = 1024;
  const auto part = tables_.outbound_after(asked_to_, kPart);
  asked_to_ = part.size() < kPart ? SaId{} : part.back()->id;
  std::unordered_set<const Peer*> asked;  // the SAs of a reqid have one
  for (const OutboundSa* sa : part)
    if (sa->peer->path().link() != 0 && asked.insert(sa->peer.get()).second) ask(*sa);
}

}  // namespace espalier::dataplane
