// Seal and open alone: batches of 64 packets, per backend, suite and size. per_packet is the
// figure: seconds in JSON, with a unit on the screen. The packets lie one behind the other, as in a
// run of UDP segments.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "crypto/registry.h"

namespace espalier::crypto {
namespace {

constexpr std::size_t kBatch = 64;
constexpr std::array<std::size_t, 4> kSizes = {64, 512, 1420, 9000};

struct Batch {
  static constexpr std::size_t kHeader = 16;  // SPI, sequence number, IV: text begins behind it
  static constexpr std::size_t kIcv = 16;

  explicit Batch(std::size_t size) : memory(kBatch * (kHeader + size + kIcv)), ops(kBatch) {
    for (std::size_t i = 0; i < kBatch; ++i) {
      std::uint8_t* text = &memory[i * (kHeader + size + kIcv) + kHeader];
      ops[i] = {text, text + size, static_cast<std::uint32_t>(size), 8, false, {}, {}};
      ops[i].nonce.back() = static_cast<std::uint8_t>(i);
    }
  }

  std::vector<std::uint8_t> memory;
  std::vector<AeadOp> ops;
};

std::unique_ptr<AeadKey> any_key(const Backend& backend, Suite suite) {
  return backend.expand(suite, std::vector<std::uint8_t>(info(suite).key, 0x42));
}

void report(benchmark::State& state, std::size_t size) {
  const auto packets = static_cast<std::int64_t>(kBatch) * state.iterations();
  state.SetItemsProcessed(packets);
  state.SetBytesProcessed(packets * static_cast<std::int64_t>(size));
  state.counters["per_packet"] = benchmark::Counter(
      static_cast<double>(packets), benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

void seal(benchmark::State& state, const Backend& backend, Suite suite, std::size_t size) {
  const auto key = any_key(backend, suite);
  Batch batch(size);
  for (auto _ : state) {
    key->seal(batch.ops);
    benchmark::ClobberMemory();
  }
  report(state, size);
}

// An opened batch would be refused if it were opened again. Counter mode helps: sealing twice gives
// the text t back, so t and its image are ciphertexts of each other. With the ICV of each, opening
// goes to and fro between the two, and nothing else has to be done in the timed loop.
void open(benchmark::State& state, const Backend& backend, Suite suite, std::size_t size) {
  const auto key = any_key(backend, suite);
  Batch batch(size);
  std::array<std::array<std::array<std::uint8_t, Batch::kIcv>, kBatch>, 2> icvs{};
  for (auto& turn : icvs) {
    key->seal(batch.ops);
    for (std::size_t i = 0; i < kBatch; ++i)
      std::copy_n(batch.ops[i].icv, Batch::kIcv, turn[i].begin());
  }
  std::size_t turn = 1;
  bool good = true;
  for (auto _ : state) {
    for (std::size_t i = 0; i < kBatch; ++i) batch.ops[i].icv = icvs[turn][i].data();
    key->open(batch.ops);
    benchmark::ClobberMemory();
    good = good && batch.ops.front().good && batch.ops.back().good;
    turn ^= 1U;
  }
  if (!good) state.SkipWithError("a packet was refused");
  report(state, size);
}

// The Backends outlive the benchmarks, which refer to them.
void register_all(const std::vector<std::unique_ptr<Backend>>& backends) {
  for (const auto& backend : backends)
    for (const SuiteInfo& s : suites())
      for (const std::size_t size : kSizes) {
        if (!backend->supports(s.suite)) continue;
        const std::string what = '/' + std::string(backend->name()) + '/' + std::string(s.name) +
                                 '/' + std::to_string(size);
        benchmark::RegisterBenchmark(("seal" + what).c_str(), seal, std::cref(*backend), s.suite,
                                     size);
        benchmark::RegisterBenchmark(("open" + what).c_str(), open, std::cref(*backend), s.suite,
                                     size);
      }
}

}  // namespace
}  // namespace espalier::crypto

int main(int argc, char** argv) {
  using namespace espalier::crypto;
  std::vector<std::unique_ptr<Backend>> backends;
  const Registry registry("auto");
  for (const BackendReport& r : registry.reports()) {
    benchmark::AddCustomContext(r.name, r.detail);
    if (r.usable) backends.push_back(make_backend(r.name));
  }
  register_all(backends);
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
