#include <iostream>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/status.h"

namespace espalier::tools {

namespace po = boost::program_options;

int run_status(const std::vector<std::string>& words) {
  constexpr Usage kUsage{
      "espalier status [--json] [--control PATH]",
      "What the running daemon does: engine, conns with their SAs, devices, and what was dropped\n"
      "and why. tools/README.md lists the members of the JSON.",
      "espalier status --json | jq '.sas[] | {conn, spi, bytes}'"};
  po::options_description options("options");
  options.add_options()("json", "print JSON")(
      "control", po::value<std::string>()->default_value(kDefaultControl.string()),
      "the daemon's control socket");
  const auto values = parse_words(words, kUsage, options);
  if (!values) return kDone;
  const nlohmann::json reply = ask((*values)["control"].as<std::string>(), {{"op", "status"}});
  if (values->count("json") != 0)
    std::cout << reply.dump(2) << "\n";
  else
    std::cout << status_text(reply);
  return kDone;
}

}  // namespace espalier::tools
