// Seal and open alone: batches of 64 packets, per backend, suite and size. per_packet is the
// figure: seconds in JSON, with a unit on the screen. The packets lie one behind the other, as in a
// run of UDP segments.
#include <benchmark/benchmark.h>
#include <time.h>

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

// As on the wire: header, IV, text in whole blocks, ICV.
struct Batch {
  Batch(const SuiteInfo& suite, std::size_t size) : ops(kBatch) {
    const std::size_t before = kEspHeaderBytes + suite.iv;
    const std::size_t text = (size + suite.align - 1) / suite.align * suite.align;
    const std::size_t stride = before + text + suite.icv;
    memory.resize(kBatch * stride);
    for (std::size_t i = 0; i < kBatch; ++i) {
      std::uint8_t* start = &memory[i * stride + before];
      ops[i] = {start, start + text, static_cast<std::uint32_t>(text), 8, false, {}, {}, nullptr};
      ops[i].nonce.back() = static_cast<std::uint8_t>(i);
    }
  }

  std::vector<std::uint8_t> memory;
  std::vector<AeadOp> ops;
};

std::unique_ptr<AeadKey> any_key(const Backend& backend, Suite suite) {
  return backend.expand(suite, std::vector<std::uint8_t>(info(suite).keys(), 0x42));
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
  Batch batch(info(suite), size);
  for (auto _ : state) {
    key->seal(batch.ops);
    benchmark::ClobberMemory();
  }
  report(state, size);
}

// Of this thread: what else runs on the machine does not count.
double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

// An opened batch would be refused if it were opened again, so each is sealed anew, untimed.
void open(benchmark::State& state, const Backend& backend, Suite suite, std::size_t size) {
  const auto key = any_key(backend, suite);
  Batch batch(info(suite), size);
  bool good = true;
  for (auto _ : state) {
    key->seal(batch.ops);
    const double start = cpu_seconds();
    key->open(batch.ops);
    benchmark::ClobberMemory();
    state.SetIterationTime(cpu_seconds() - start);
    good = good && batch.ops.front().good && batch.ops.back().good;
  }
  if (!good) state.SkipWithError("a packet was refused");
  report(state, size);
}

// One of each family, and the key lengths of the commonest.
bool is_shown(Suite suite) {
  constexpr std::array kShown = {
      Suite::aes_gcm128,       Suite::aes_gcm192,    Suite::aes_gcm256,    Suite::aes_gcm_8_256,
      Suite::aes256_sha1,      Suite::aes128_sha256, Suite::aes256_sha256, Suite::aes256_sha384,
      Suite::aes256_sha512,    Suite::aes_ccm_8_256, Suite::aes_gmac256,   Suite::null_sha256,
      Suite::chacha20_poly1305};
  return std::find(kShown.begin(), kShown.end(), suite) != kShown.end();
}

// The Backends outlive the benchmarks, which refer to them.
void register_all(const std::vector<std::unique_ptr<Backend>>& backends) {
  for (const auto& backend : backends)
    for (const SuiteInfo& s : suites())
      for (const std::size_t size : kSizes) {
        if (!backend->supports(s.suite) || !is_shown(s.suite)) continue;
        const std::string what = '/' + std::string(backend->name()) + '/' + std::string(s.name) +
                                 '/' + std::to_string(size);
        benchmark::RegisterBenchmark(("seal" + what).c_str(), seal, std::cref(*backend), s.suite,
                                     size);
        benchmark::RegisterBenchmark(("open" + what).c_str(), open, std::cref(*backend), s.suite,
                                     size)
            ->UseManualTime();
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
