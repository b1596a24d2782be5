// What this machine offers and refuses, found by trying.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace espalier::tools {

struct Finding {
  enum class Verdict : std::uint8_t {
    good,     // there, and used
    without,  // not there; it works without, slower or with less
    missing   // not there, and the daemon cannot run
  };
  std::string subject;
  Verdict verdict = Verdict::good;
  std::string detail;  // what was found; or why not, and what to do
};

// Makes nothing that stays: a TUN or a socket lives for a moment.
[[nodiscard]] std::vector<Finding> examine_machine();

[[nodiscard]] bool can_run(const std::vector<Finding>& findings);
[[nodiscard]] nlohmann::json findings_json(const std::vector<Finding>& findings);
[[nodiscard]] std::string findings_text(const std::vector<Finding>& findings);

}  // namespace espalier::tools
