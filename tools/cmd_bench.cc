#include <iostream>

#include "tools/command.h"
#include "tools/measure.h"

namespace espalier::tools {

namespace po = boost::program_options;

int run_bench(const std::vector<std::string>& words) {
  constexpr Usage kUsage{
      "espalier bench [--quick] [--json]",
      "What this machine's processor does with packets: the cipher alone, and encapsulation and\n"
      "decapsulation in memory, for every crypto backend and suite; then the verdict in words.\n"
      "Needs no rights and touches no network.",
      "espalier bench --quick"};
  po::options_description options("options");
  options.add_options()("quick", "a third of the time and of the precision")("json", "print JSON");
  const auto values = parse_words(words, kUsage, options);
  if (!values) return kDone;
  const bool quick = values->count("quick") != 0;
  const BenchResult result =
      measure_machine({64, 512, 1400, 9000}, std::chrono::milliseconds(quick ? 80 : 240));
  if (values->count("json") != 0)
    std::cout << bench_json(result).dump(2) << "\n";
  else
    std::cout << bench_text(result);
  return result.rows.empty() ? kFailed : kDone;
}

}  // namespace espalier::tools
