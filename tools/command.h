// One subcommand of `espalier`: how it reads its words, and where it is listed.
#pragma once

#include <boost/program_options.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace espalier::tools {

inline constexpr int kDone = 0, kFailed = 1, kWrongUsage = 2;  // exit status

struct Command {
  std::string_view name;
  std::string_view summary;
  // Throws UsageError for wrong words, any other std::exception where it failed.
  int (*run)(const std::vector<std::string>& words);
};

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What --help prints.
struct Usage {
  std::string_view line;  // espalier check [OPTIONS] FILE
  std::string_view text;
  std::string_view example;
};

// Reads `words`. Empty if --help was among them: it has been printed. `positional` names the option
// that takes the one word without a name, if there is one. Throws UsageError.
[[nodiscard]] std::optional<boost::program_options::variables_map> parse_words(
    const std::vector<std::string>& words, const Usage& usage,
    boost::program_options::options_description options, const char* positional = nullptr);

// The same for commands whose words are mostly no options: those are in "words", in order.
struct CommandWords {
  boost::program_options::variables_map options;
  std::vector<std::string> words;
  [[nodiscard]] bool has(const char* option) const { return options.count(option) != 0; }
  [[nodiscard]] std::string control() const { return options["control"].as<std::string>(); }
};
[[nodiscard]] std::optional<CommandWords> parse_free_words(
    const std::vector<std::string>& words, const Usage& usage,
    boost::program_options::options_description options);

// --control, and --json if there is anything to print, for commands that ask the daemon.
enum class Prints : std::uint8_t { nothing, data };
[[nodiscard]] boost::program_options::options_description daemon_options(Prints prints);

int run_keygen(const std::vector<std::string>& words);   // cmd_keygen.cc
int run_check(const std::vector<std::string>& words);    // cmd_check.cc
int run_status(const std::vector<std::string>& words);   // cmd_status.cc
int run_top(const std::vector<std::string>& words);      // cmd_top.cc
int run_explain(const std::vector<std::string>& words);  // cmd_explain.cc
int run_doctor(const std::vector<std::string>& words);   // cmd_doctor.cc
int run_exec(const std::vector<std::string>& words);     // cmd_exec.cc
int run_sa(const std::vector<std::string>& words);       // cmd_sa.cc
int run_policy(const std::vector<std::string>& words);   // cmd_policy.cc
int run_vti(const std::vector<std::string>& words);      // cmd_vti.cc
int run_batch(const std::vector<std::string>& words);    // cmd_batch.cc
int run_monitor(const std::vector<std::string>& words);  // cmd_monitor.cc
int run_conn(const std::vector<std::string>& words);     // cmd_conn.cc
int run_bench(const std::vector<std::string>& words);    // cmd_bench.cc

}  // namespace espalier::tools
