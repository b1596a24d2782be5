#include <iostream>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/op_text.h"

namespace espalier::tools {
namespace {

constexpr Usage kUsage{
    "espalier monitor [--json] [--control PATH]",
    "Events of the running daemon as they come, one a line, until Ctrl-C: packets that need an SA\n"
    "(acquire), limits of SAs, peers that move, replays and forgeries, path MTUs, conns up and "
    "down.\n"
    "A reader that is too slow is told how many it has lost.",
    "espalier monitor --json | jq 'select(.event == \"acquire\") | .flow'"};

}  // namespace

int run_monitor(const std::vector<std::string>& all) {
  const auto parsed = parse_free_words(all, kUsage, daemon_options(Prints::data));
  if (!parsed) return kDone;
  if (!parsed->words.empty()) throw UsageError("monitor takes no words");
  ControlConnection daemon(parsed->control());
  static_cast<void>(daemon.ask({{"op", "subscribe"}}));
  while (const auto event = daemon.next_event()) {
    std::cout << (parsed->has("json") ? event->dump() + "\n" : event_line(*event)) << std::flush;
    if (!std::cout) return kDone;  // who reads it has seen enough
  }
  throw std::runtime_error(parsed->control() + ": the daemon has ended");
}

}  // namespace espalier::tools
