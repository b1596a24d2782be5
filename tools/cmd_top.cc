#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <iostream>
#include <limits>
#include <thread>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/rates.h"

namespace espalier::tools {
namespace {

namespace po = boost::program_options;
using Clock = std::chrono::steady_clock;

constexpr Usage kUsage{
    "espalier top [--interval SECONDS] [--once] [--json] [--control PATH]",
    "What crosses the tunnels now: packets and bits a second of every device, of the busiest SAs,\n"
    "and what is dropped. Until Ctrl-C; with --once one interval, for scripts.",
    "espalier top --once --json | jq '.devices[] | {name, tx_bits}'"};

constexpr const char* kClear = "\x1b[H\x1b[2J";

// What fits the terminal; everything elsewhere.
std::size_t lines_of_terminal() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row < 2)
    return std::numeric_limits<std::size_t>::max();
  return size.ws_row - std::size_t{1};
}

}  // namespace

int run_top(const std::vector<std::string>& all) {
  po::options_description options = daemon_options(Prints::data);
  options.add_options()("interval", po::value<double>()->default_value(1), "seconds")(
      "once", "one interval, then done");
  const auto parsed = parse_free_words(all, kUsage, options);
  if (!parsed) return kDone;
  if (!parsed->words.empty()) throw UsageError("top takes no words");
  const double wanted = parsed->options["interval"].as<double>();
  if (!(wanted >= 0.1 && wanted <= 3600)) throw UsageError("--interval: write 0.1 to 3600 seconds");
  const bool once = parsed->has("once");
  const bool terminal = ::isatty(STDOUT_FILENO) == 1 && !once && !parsed->has("json");
  ControlConnection daemon(parsed->control());
  const auto look = [&daemon] { return std::pair{daemon.ask({{"op", "status"}}), Clock::now()}; };
  auto before = look();
  do {
    std::this_thread::sleep_for(std::chrono::duration<double>(wanted));
    auto after = look();
    const double seconds = std::chrono::duration<double>(after.second - before.second).count();
    const nlohmann::json now = rates(before.first, after.first, seconds);
    if (parsed->has("json"))
      std::cout << now.dump() << std::endl;
    else
      std::cout << (terminal ? kClear : "") << rates_text(now, lines_of_terminal()) << std::flush;
    before = std::move(after);
  } while (!once && std::cout);  // who reads it may have seen enough
  return kDone;
}

}  // namespace espalier::tools
