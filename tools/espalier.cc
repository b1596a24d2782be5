// espalier: the command line. One subcommand a file: cmd_*.cc.
#include <algorithm>
#include <array>
#include <iostream>

#include "tools/command.h"
#include "tools/log.h"

namespace {

using espalier::tools::Command;

constexpr std::array kCommands = {
    Command{"keygen", "make fresh keys and the configurations of two gateways",
            espalier::tools::run_keygen},
    Command{"check", "validate a configuration and say what it would make",
            espalier::tools::run_check},
    Command{"status", "what the running daemon does", espalier::tools::run_status},
    Command{"monitor", "events of the running daemon as they come", espalier::tools::run_monitor},
    Command{"top", "rates of devices and SAs, live", espalier::tools::run_top},
    Command{"explain", "what would happen to a packet", espalier::tools::run_explain},
    Command{"conn", "bring a conn up or take it down", espalier::tools::run_conn},
    Command{"sa", "add, change and list SAs, as ip xfrm state", espalier::tools::run_sa},
    Command{"policy", "add and list policies, as ip xfrm policy", espalier::tools::run_policy},
    Command{"vti", "add and show devices, as ip tunnel", espalier::tools::run_vti},
    Command{"batch", "many of these at once, all or none", espalier::tools::run_batch},
    Command{"doctor", "what this machine offers and refuses", espalier::tools::run_doctor},
    Command{"exec", "run a command that finds espalierd in the place of kernel IPsec",
            espalier::tools::run_exec},
    Command{"bench", "measure what this machine's processor does with packets",
            espalier::tools::run_bench},
};

void print_usage(std::ostream& out) {
  out << "usage: espalier COMMAND [OPTIONS]\n\n";
  for (const Command& command : kCommands)
    out << "  " << command.name << std::string(10 - command.name.size(), ' ') << command.summary
        << "\n";
  out << "  --version\n  --help    also behind a command, with an example\n"
         "\nexample:\n  espalier keygen --left 192.0.2.1 --right 198.51.100.1 --out keys\n";
}

int run(const std::vector<std::string>& words) {
  using namespace espalier::tools;
  if (words.empty()) {
    print_usage(std::cerr);
    return kWrongUsage;
  }
  if (words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    print_usage(std::cout);
    return kDone;
  }
  if (words[0] == "--version") {
    std::cout << "espalier " << ESPALIER_VERSION << "\n";
    return kDone;
  }
  const auto command = std::find_if(kCommands.begin(), kCommands.end(),
                                    [&](const Command& c) { return c.name == words[0]; });
  if (command == kCommands.end())
    throw UsageError("no command '" + printable(words[0]) + "'; espalier --help lists them");
  return command->run({words.begin() + 1, words.end()});
}

}  // namespace

int main(int argc, char** argv) {
  using namespace espalier::tools;
  try {
    const int status = run({argv + 1, argv + argc});
    std::cout.flush();
    return std::cout ? status : kFailed;
  } catch (const UsageError& e) {
    std::cerr << "espalier: " << printable(e.what()) << "\n";
    return kWrongUsage;
  } catch (const std::exception& e) {
    std::cerr << "espalier: " << printable(e.what()) << "\n";
    return kFailed;
  }
}
