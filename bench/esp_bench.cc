// Encapsulation and decapsulation in memory, lookups, headers and window included; and the lookups
// alone.
#include <benchmark/benchmark.h>

#include <chrono>
#include <memory>
#include <string>

#include "crypto/registry.h"
#include "crypto/secret.h"
#include "tools/memory_path.h"

namespace {

using espalier::crypto::Backend;
using espalier::crypto::Suite;
using espalier::tools::MemoryPath;

bool is_shown(Suite suite) {
  return suite == Suite::aes_gcm128 || suite == Suite::aes_gcm192 || suite == Suite::aes_gcm256 ||
         suite == Suite::chacha20_poly1305 || suite == Suite::aes256_sha1 ||
         suite == Suite::aes256_sha256 || suite == Suite::aes256_sha512;
}

enum class Half : std::uint8_t { encap, decap, lookup };

void run(benchmark::State& state, const Backend& backend, Suite suite, std::size_t size,
         std::size_t flows, Half half) {
  MemoryPath path(backend, suite, size, flows);
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    auto end = start;
    if (half == Half::lookup) {
      if (path.lookup() != 2 * MemoryPath::kBatch) state.SkipWithError("a lookup failed");
      end = std::chrono::steady_clock::now();
    } else {
      path.encap();
      end = std::chrono::steady_clock::now();
      if (half == Half::decap) {
        const auto opened = std::chrono::steady_clock::now();
        const std::size_t good = path.decap();
        state.SetIterationTime(
            std::chrono::duration<double>(std::chrono::steady_clock::now() - opened).count());
        if (good != MemoryPath::kBatch) state.SkipWithError("a packet was lost");
        continue;
      }
    }
    state.SetIterationTime(std::chrono::duration<double>(end - start).count());
  }
  state.counters["per_packet"] =
      benchmark::Counter(static_cast<double>(state.iterations() * MemoryPath::kBatch),
                         benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

// Workers side by side, each with its own SAs as the sockets share them out: what of the machine's
// cores is left when nothing but the data plane runs.
void run_workers(benchmark::State& state, const Backend& backend, Suite suite) {
  MemoryPath path(backend, suite, 1400, 1);
  for (auto _ : state) path.encap();
  state.counters["packets_per_s"] = benchmark::Counter(
      static_cast<double>(state.iterations() * MemoryPath::kBatch), benchmark::Counter::kIsRate);
}

}  // namespace

int main(int argc, char** argv) {
  espalier::crypto::initialise();
  std::vector<std::unique_ptr<Backend>> backends;
  for (const char* name : {"ipsec-mb", "openssl", "sodium"}) {
    auto backend = espalier::crypto::make_backend(name);
    if (backend) backends.push_back(std::move(backend));
  }
  for (const auto& backend : backends) {
    for (const auto& suite : espalier::crypto::suites()) {
      if (!backend->supports(suite.suite) || !is_shown(suite.suite)) continue;
      for (const std::size_t size : {64, 512, 1400, 1420, 9000}) {
        for (const Half half : {Half::encap, Half::decap}) {
          const std::string name = std::string(half == Half::encap ? "encap/" : "decap/") +
                                   std::string(backend->name()) + "/" + std::string(suite.name) +
                                   "/" + std::to_string(size);
          const Backend* b = backend.get();
          const Suite id = suite.suite;
          benchmark::RegisterBenchmark(name.c_str(), [b, id, size, half](benchmark::State& s) {
            run(s, *b, id, size, 1, half);
          })->UseManualTime();
        }
      }
    }
  }
  const Backend* first = backends.front().get();
  for (const std::size_t flows : {1, 100, 10000, 100000})
    benchmark::RegisterBenchmark(("lookup/" + std::to_string(flows)).c_str(),
                                 [first, flows](benchmark::State& s) {
                                   run(s, *first, Suite::aes_gcm128, 64, flows, Half::lookup);
                                 })
        ->UseManualTime();
  for (const std::size_t flows : {1, 100000})
    benchmark::RegisterBenchmark(("encap/flows/" + std::to_string(flows)).c_str(),
                                 [first, flows](benchmark::State& s) {
                                   run(s, *first, Suite::aes_gcm128, 64, flows, Half::encap);
                                 })
        ->UseManualTime();
  benchmark::RegisterBenchmark(
      "workers", [first](benchmark::State& s) { run_workers(s, *first, Suite::aes_gcm128); })
      ->ThreadRange(1, 8)
      ->UseRealTime();
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
