// The cost of cutting and joining: checksums, super-packets to segments, segments to super-packets.
#include <benchmark/benchmark.h>

#include <cstring>
#include <vector>

#include "dataplane/checksum.h"

namespace espalier::dataplane {
namespace {

void throughput(benchmark::State& state) {
  state.SetBytesProcessed(state.iterations() * state.range(0));
}

void sum(benchmark::State& state) {
  const std::vector<std::uint8_t> from(static_cast<std::size_t>(state.range(0)), 0x5a);
  while (state.KeepRunning()) benchmark::DoNotOptimize(sum_bytes(from.data(), from.size()));
  throughput(state);
}

// 52 bytes in: where a payload lands behind IPv4 and TCP headers.
constexpr std::size_t kHeaders = 52;

void copy_sum(benchmark::State& state) {
  const std::vector<std::uint8_t> from(static_cast<std::size_t>(state.range(0)), 0x5a);
  std::vector<std::uint8_t> to(from.size() + kHeaders);
  while (state.KeepRunning())
    benchmark::DoNotOptimize(copy_and_sum(to.data() + kHeaders, from.data(), from.size()));
  throughput(state);
}

void copy_only(benchmark::State& state) {
  const std::vector<std::uint8_t> from(static_cast<std::size_t>(state.range(0)), 0x5a);
  std::vector<std::uint8_t> to(from.size() + kHeaders);
  while (state.KeepRunning()) {
    std::memcpy(to.data() + kHeaders, from.data(), from.size());
    benchmark::ClobberMemory();
  }
  throughput(state);
}

// The n-th best implementation for this processor, by itself.
const ChecksumKernel& kernel(benchmark::State& state) {
  const ChecksumKernel& k = checksum_kernels()[static_cast<std::size_t>(state.range(1))];
  state.SetLabel(k.name);
  return k;
}

void kernel_sum(benchmark::State& state) {
  const std::vector<std::uint8_t> from(static_cast<std::size_t>(state.range(0)), 0x5a);
  const auto sum_of = kernel(state).sum;
  while (state.KeepRunning()) benchmark::DoNotOptimize(sum_of(from.data(), from.size()));
  throughput(state);
}

void kernel_copy(benchmark::State& state) {
  const std::vector<std::uint8_t> from(static_cast<std::size_t>(state.range(0)), 0x5a);
  std::vector<std::uint8_t> to(from.size() + kHeaders);
  const auto copy = kernel(state).copy;
  while (state.KeepRunning())
    benchmark::DoNotOptimize(copy(to.data() + kHeaders, from.data(), from.size()));
  throughput(state);
}

void sizes(benchmark::internal::Benchmark* b) {
  for (const int n : {20, 40, 64, 100, 1400, 65536}) b->Arg(n);
}

void kernel_sizes(benchmark::internal::Benchmark* b) {
  for (std::size_t i = 0; i < checksum_kernels().size(); ++i)
    for (const int n : {64, 1400, 65536}) b->Args({n, static_cast<std::int64_t>(i)});
}

BENCHMARK(sum)->Apply(sizes);
BENCHMARK(copy_sum)->Apply(sizes);
BENCHMARK(copy_only)->Name("memcpy")->Apply(sizes);
BENCHMARK(kernel_sum)->Apply(kernel_sizes);
BENCHMARK(kernel_copy)->Apply(kernel_sizes);

}  // namespace
}  // namespace espalier::dataplane

BENCHMARK_MAIN();
