// What this machine's processor does with packets: for `espalier bench`.
#pragma once

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "crypto/suite.h"

namespace espalier::tools {

// Nanoseconds a packet on one core, in batches of 64; the median of several runs, processor time.
struct Measurement {
  std::string backend;
  crypto::Suite suite{};
  std::size_t size = 0;  // of the inner packet (encap, decap) or the text (seal, open), bytes
  double seal_ns = 0, open_ns = 0;    // the cipher alone
  double encap_ns = 0, decap_ns = 0;  // lookup, numbers, headers, window and cipher
};

struct BenchResult {
  std::vector<std::string> missing;  // backends that do not run here, and why
  std::vector<Measurement> rows;
};

// Measures every backend and suite that runs here, about `each` for a row.
[[nodiscard]] BenchResult measure_machine(const std::vector<std::size_t>& sizes,
                                          std::chrono::milliseconds each);

[[nodiscard]] nlohmann::json bench_json(const BenchResult& result);
// A table, and the verdict in words.
[[nodiscard]] std::string bench_text(const BenchResult& result);

}  // namespace espalier::tools
