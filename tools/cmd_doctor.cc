#include <iostream>

#include "tools/command.h"
#include "tools/machine.h"

namespace espalier::tools {

namespace po = boost::program_options;

int run_doctor(const std::vector<std::string>& words) {
  constexpr Usage kUsage{
      "espalier doctor [--json]",
      "What this machine offers and refuses, found by trying: devices, rights, engines, offloads,\n"
      "crypto. Exit status 1 if the daemon cannot run here.",
      "sudo espalier doctor"};
  po::options_description options("options");
  options.add_options()("json", "print JSON");
  const auto values = parse_words(words, kUsage, options);
  if (!values) return kDone;
  const std::vector<Finding> findings = examine_machine();
  if (values->count("json") != 0)
    std::cout << findings_json(findings).dump(2) << "\n";
  else
    std::cout << findings_text(findings);
  return can_run(findings) ? kDone : kFailed;
}

}  // namespace espalier::tools
