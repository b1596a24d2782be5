#include <iostream>

#include "tools/command.h"
#include "tools/control_client.h"

namespace espalier::tools {
namespace {

constexpr Usage kUsage{
    "espalier conn up|down NAME [--control PATH]",
    "Takes a conn of the configuration down, or brings it up again. One that was taken down stays\n"
    "down when the configuration is read again.",
    "espalier conn down routed-vpn"};

// Waits for a device or port that another process is just giving back.
constexpr std::chrono::seconds kPatienceForConn{30};

}  // namespace

int run_conn(const std::vector<std::string>& all) {
  const auto parsed = parse_free_words(all, kUsage, daemon_options(Prints::nothing));
  if (!parsed) return kDone;
  const std::vector<std::string>& words = parsed->words;
  if (words.size() != 2 || (words[0] != "up" && words[0] != "down"))
    throw UsageError("write conn up NAME or conn down NAME");
  const nlohmann::json reply =
      ask(parsed->control(), {{"op", "conn-" + words[0]}, {"name", words[1]}}, kPatienceForConn);
  if (!reply.value("changed", true))
    std::cout << "conn " << words[1] << " is " << words[0] << " already\n";
  return kDone;
}

}  // namespace espalier::tools
