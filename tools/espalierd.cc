// espalierd: the daemon, in the foreground.
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <csignal>
#include <iostream>
#include <string_view>
#include <system_error>

#include "crypto/secret.h"
#include "tools/command.h"
#include "tools/config_values.h"
#include "tools/daemon.h"
#include "tools/log.h"
#include "tools/service_manager.h"

namespace espalier::tools {
namespace {

namespace po = boost::program_options;

constexpr unsigned kMostWorkers = 256;
constexpr std::array<std::string_view, 3> kEngines = {"auto", "io_uring", "epoll"};
constexpr std::array<std::string_view, 4> kBackends = {"auto", "ipsec-mb", "openssl", "sodium"};
constexpr std::array<std::string_view, 4> kLevels = {"error", "warning", "info", "debug"};

constexpr Usage kUsage{
    "espalierd [--config FILE] [OPTIONS]",
    "Runs the conns of FILE until SIGTERM or SIGINT; SIGHUP reads FILE again, and leaves alone\n"
    "what is the same in it. Options win over the file. Without FILE nothing is there until it "
    "comes\n"
    "over the control socket (espalier sa, policy, vti).",
    "espalierd --config /etc/espalier/espalier.conf --log debug"};

po::options_description option_table() {
  const auto text = [] { return po::value<std::string>(); };
  po::options_description options("options");
  options.add_options()("config", text(), "the configuration file")(
      "io", text(), "engine: auto, io_uring or epoll")(
      "crypto", text(), "backend: auto, ipsec-mb, openssl or sodium")(
      "workers", text(), "threads that move packets, or auto")(
      "offloads", text(), "auto, none, or some of tso4, tso6, uso, gso")(
      "control", text(), "path of the control socket")(
      "group", text(), "who may use it and `espalier exec`, beside root")(
      "log", text(), "error, warning, info or debug")("version", "print the version and end");
  return options;
}

// A value of one of the options above; `parse` throws std::invalid_argument.
template <typename Parse>
auto value_of(const po::variables_map& values, const char* name, Parse parse)
    -> std::optional<decltype(parse(std::string()))> {
  const auto found = values.find(name);
  if (found == values.end()) return std::nullopt;
  try {
    return parse(found->second.as<std::string>());
  } catch (const std::invalid_argument& e) {
    throw UsageError("--" + std::string(name) + ": " + e.what());
  }
}

// Empty: --help or --version, and that is done. Throws UsageError.
std::optional<DaemonOptions> parse(const std::vector<std::string>& words) {
  if (words.size() == 1 && words[0] == "--version") {
    std::cout << "espalierd " << ESPALIER_VERSION << "\n";
    return std::nullopt;
  }
  const auto values = parse_words(words, kUsage, option_table());
  if (!values) return std::nullopt;
  DaemonOptions out;
  if (values->count("config") != 0) out.config = (*values)["config"].as<std::string>();
  out.io = value_of(*values, "io", [](auto v) { return parse_word(v, kEngines); });
  out.crypto = value_of(*values, "crypto", [](auto v) { return parse_word(v, kBackends); });
  out.log = value_of(*values, "log", [](auto v) { return parse_word(v, kLevels); });
  out.workers = value_of(*values, "workers", [](const auto& v) {
    return v == "auto" ? 0U : parse_number(v, 1, kMostWorkers);
  });
  out.offloads = value_of(*values, "offloads", [](const auto& v) { return parse_offloads(v); });
  out.group = value_of(*values, "group", [](const auto& v) { return v; });
  out.control = value_of(*values, "control", [](auto v) { return std::filesystem::path(v); });
  return out;
}

// To the hard limit, and root to `wanted` beyond it.
void raise_limit(int resource, rlim_t wanted) {
  rlimit limit{};
  if (::getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return;
  const rlimit more{std::max(limit.rlim_max, wanted), std::max(limit.rlim_max, wanted)};
  if (::setrlimit(static_cast<__rlimit_resource>(resource), &more) == 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(static_cast<__rlimit_resource>(resource), &limit);
}

// Keys stay in this process: no core file, no debugger of the same user, no program started from
// here with more rights.
void harden() {
  const auto must = [](int result, const char* call) {
    if (result != 0) throw std::system_error(errno, std::generic_category(), call);
  };
  const rlimit none{0, 0};
  must(::setrlimit(RLIMIT_CORE, &none), "setrlimit RLIMIT_CORE");
  must(::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl PR_SET_DUMPABLE");
  must(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl PR_SET_NO_NEW_PRIVS");
  ::umask(S_IRWXG | S_IRWXO);
  // A reader of the log that went away is no reason to stop.
  std::signal(SIGPIPE, SIG_IGN);
  // A queue of each device and a socket of each end point for each worker; rings and keys.
  // Two more for the state of each client of a conn with a pool.
  raise_limit(RLIMIT_NOFILE, 65536);
  raise_limit(RLIMIT_MEMLOCK, 0);
}

int run(const std::vector<std::string>& words, Log& log) {
  std::optional<DaemonOptions> options;
  try {
    options = parse(words);
  } catch (const UsageError& e) {
    log.error(std::string(e.what()) + "; see espalierd --help");
    return kWrongUsage;
  }
  if (!options) return kDone;
  try {
    harden();
    crypto::initialise();  // before a key is read
    const ifaces::UniqueFd signals = block_signals();
    Daemon daemon(std::move(*options), log);
    tell_service_manager("READY=1");
    daemon.run(signals);
    tell_service_manager("STOPPING=1");
  } catch (const std::exception& e) {
    log.error(e.what());
    return kFailed;
  }
  log.info("stopped");
  return kDone;
}

}  // namespace
}  // namespace espalier::tools

int main(int argc, char** argv) {
  espalier::tools::Log log(STDERR_FILENO);
  return espalier::tools::run({argv + 1, argv + argc}, log);
}
