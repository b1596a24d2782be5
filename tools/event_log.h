// What the data plane tells, as lines of the log: few enough that nobody outside can fill it.
//
// Thread safety: the control thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "dataplane/event.h"
#include "tools/log.h"

namespace espalier::tools {

// One line. Of a packet that was refused it has what is to be audited: SPI, addresses and number
// (RFC 4303 §3.4.2 to §3.4.4, RFC 4301 §5.2); the time is the log's, the flow label of IPv6 is
// nothing that a socket shows. `conn` may be empty.
[[nodiscard]] std::string event_text(const dataplane::Event& event, const std::string& conn);

class EventLog {
 public:
  // Lines a second, and as many errors: no flood of others keeps them back. What comes beyond them
  // is counted, and told at the next line. Of one SA and kind the data plane tells once a second
  // (EventLimiter).
  static constexpr unsigned kLines = 10;
  // Of the conn that an SA belongs to; empty: it has none.
  using NameOf = std::function<std::string(dataplane::SaId)>;

  EventLog(const Log& log, NameOf name_of) : log_(log), name_of_(std::move(name_of)) {}

  void tell(const dataplane::Event& event, std::chrono::steady_clock::time_point now);

 private:
  const Log& log_;
  NameOf name_of_;
  std::chrono::steady_clock::time_point second_;
  unsigned lines_ = 0, errors_ = 0;
  std::uint64_t left_out_ = 0;
};

}  // namespace espalier::tools
