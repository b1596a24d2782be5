#include "tools/event_log.h"

#include "tools/control_json.h"

namespace espalier::tools {
namespace {

using dataplane::Event;
using dataplane::EventKind;

std::string packets(std::uint64_t count) {
  return std::to_string(count) + (count == 1 ? " packet" : " packets");
}

std::string subject(const Event& event, const std::string& conn) {
  std::string text = "SA " + hex(event.spi) + " " + std::string(name(event.direction));
  if (!conn.empty()) text += " (conn " + conn + ")";
  return text + ": ";
}

// Raw ESP has no ports.
std::string end_text(const ifaces::Endpoint& end) {
  return end.port == 0 ? end.address.str() : end.str();
}

// Where the last of the packets came from and went to.
std::string way(const Event& event) {
  return "the last from " + end_text(event.peer) + " to " + end_text(event.local);
}

std::string flow_text(const dataplane::Flow& flow) {
  return flow.source.str() + " to " + flow.destination.str() + ", protocol " +
         std::to_string(flow.protocol);
}

// Otherwise it is a limit that can be moved (dataplane.h, extend_limit).
bool is_last_number(std::uint64_t seq) {
  constexpr std::uint64_t kLast = 0xffffffff;  // RFC 4303 §3.3.3; with ESN types.h has the last
  return seq == kLast || seq >= ~kLast - 1;
}

LogLevel level_of(const Event& event) {
  switch (event.kind) {
    case EventKind::acquire:
    case EventKind::soft_expire:
    case EventKind::mapping_changed:
    case EventKind::path_mtu:
      return LogLevel::info;
    case EventKind::hard_expire:
    case EventKind::replay:
    case EventKind::integrity:
    case EventKind::selector_mismatch:
    case EventKind::no_spi:
      return LogLevel::warning;
    case EventKind::seq_exhausted:
      // Whoever moves the limit says if he cannot.
      return is_last_number(event.seq) ? LogLevel::error : LogLevel::debug;
  }
  return LogLevel::error;
}

}  // namespace

std::string event_text(const Event& event, const std::string& conn) {
  std::string sa = subject(event, conn);
  switch (event.kind) {
    case EventKind::acquire:
      return "reqid " + std::to_string(event.reqid) + ": no SA for " + packets(event.count) +
             ", the last from " + flow_text(event.flow);
    case EventKind::soft_expire:
      return sa + "a soft limit is reached; it is time to replace it";
    case EventKind::hard_expire:
      return sa + "a hard limit is reached; no packet passes any more";
    case EventKind::seq_exhausted:
      return sa + "the " + (is_last_number(event.seq) ? "sequence numbers" : "reserved numbers") +
             " are used up at " + std::to_string(event.seq) + "; " + packets(event.count) +
             " not sent";
    case EventKind::mapping_changed:
      return sa + "the peer is at " + end_text(event.peer) + " now";
    case EventKind::replay:
      return sa + packets(event.count) + " seen before or too old, " + way(event) +
             " with number " + std::to_string(event.seq);
    case EventKind::integrity:
      return sa + packets(event.count) + " with a wrong ICV, " + way(event) + " with number " +
             std::to_string(event.seq);
    case EventKind::selector_mismatch:
      return sa + packets(event.count) + " that its policies do not allow, " + way(event) +
             ", inside " + flow_text(event.flow);
    case EventKind::no_spi:
      return packets(event.count) + " for no SA, " + way(event) + " with SPI " + hex(event.spi);
    case EventKind::path_mtu:
      return sa + "the path to " + end_text(event.peer) + " takes " +
             std::to_string(event.path_mtu) + " bytes";
  }
  return sa;
}

void EventLog::tell(const Event& event, std::chrono::steady_clock::time_point now) {
  const LogLevel level = level_of(event);
  if (level > log_.level()) return;
  if (now - second_ >= std::chrono::seconds(1)) {
    if (left_out_ > 0)
      log_.warning(std::to_string(left_out_) +
                   " more events were not logged; espalier monitor shows all of them");
    second_ = now;
    lines_ = errors_ = 0;
    left_out_ = 0;
  }
  unsigned& lines = level == LogLevel::error ? errors_ : lines_;
  if (lines == kLines) {
    ++left_out_;
    return;
  }
  ++lines;
  const std::string text =
      event_text(event, event.sa == dataplane::SaId{} ? std::string() : name_of_(event.sa));
  switch (level) {
    case LogLevel::error:
      return log_.error(text);
    case LogLevel::warning:
      return log_.warning(text);
    case LogLevel::info:
      return log_.info(text);
    case LogLevel::debug:
      return log_.debug(text);
  }
}

}  // namespace espalier::tools
