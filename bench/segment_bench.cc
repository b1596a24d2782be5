// The cost of cutting and joining: checksums, super-packets to segments, segments to super-packets.
#include <benchmark/benchmark.h>

#include <array>
#include <cstring>
#include <vector>

#include "dataplane/bytes.h"
#include "dataplane/checksum.h"
#include "dataplane/coalesce.h"
#include "dataplane/segment.h"

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

// IPv4, then TCP with timestamps or UDP, all checksums right.
constexpr std::size_t kTcpHeaders = 52, kUdpHeaders = 28;

struct Stream {
  bool tcp;
  std::size_t payload;
  std::uint16_t port;
  [[nodiscard]] std::size_t headers() const { return tcp ? kTcpHeaders : kUdpHeaders; }
};

void store_native(std::uint8_t* p, std::uint16_t v) {
  std::memcpy(p, &v, sizeof v);
}

std::uint64_t pseudo_sum(const std::uint8_t* ip, std::size_t l4_length) {
  std::array<std::uint8_t, 4> rest{0, ip[9]};
  store_be(&rest[2], static_cast<std::uint16_t>(l4_length));
  return sum_bytes(ip + 12, 8) + sum_bytes(rest.data(), rest.size());
}

// The n-th packet of the stream; `partial`: its checksum field holds the pseudo-header's sum.
std::vector<std::uint8_t> packet(const Stream& stream, std::size_t n, bool partial) {
  std::vector<std::uint8_t> p(stream.headers() + stream.payload, 0x5a);
  std::memset(p.data(), 0, stream.headers());
  p[0] = 0x45;
  store_be(&p[2], static_cast<std::uint16_t>(p.size()));
  store_be(&p[4], static_cast<std::uint16_t>(n));
  p[6] = 0x40;
  p[8] = 64;
  p[9] = stream.tcp ? 6 : 17;
  store_be(&p[12], std::uint32_t{0x0a000001});
  store_be(&p[16], std::uint32_t{0x0a000002});
  store_native(&p[10], static_cast<std::uint16_t>(~fold(sum_bytes(p.data(), 20))));
  store_be(&p[20], stream.port);
  store_be(&p[22], std::uint16_t{5201});
  if (stream.tcp) {
    store_be(&p[24], static_cast<std::uint32_t>(n * stream.payload));
    p[32] = 0x80;
    p[33] = 0x10;
    std::memset(&p[40], 1, 12);
  } else {
    store_be(&p[24], static_cast<std::uint16_t>(p.size() - 20));
  }
  std::uint64_t sum = pseudo_sum(p.data(), p.size() - 20);
  if (!partial) sum += sum_bytes(&p[20], p.size() - 20);
  const std::uint16_t folded = fold(sum);
  store_native(&p[stream.tcp ? 36 : 26], partial ? folded : static_cast<std::uint16_t>(~folded));
  return p;
}

// One TUN read of 64 KiB, cut into segments that lie one behind the other as ESP would have them.
void cut(benchmark::State& state) {
  constexpr std::size_t kStride = 1536;
  const auto segment = static_cast<std::uint16_t>(state.range(0));
  const Stream stream{.tcp = state.range(1) != 0, .payload = 65483, .port = 1000};
  const auto whole = packet({stream.tcp, 65535 - stream.headers(), stream.port}, 1, true);
  const ifaces::VnetHdr hdr{.flags = ifaces::kVnetNeedsCsum,
                            .gso_type = stream.tcp ? ifaces::kVnetGsoTcp4 : ifaces::kVnetGsoUdpL4,
                            .hdr_len = 0,
                            .gso_size = segment,
                            .csum_start = 20,
                            .csum_offset = static_cast<std::uint16_t>(stream.tcp ? 16 : 6)};
  std::vector<std::uint8_t> out(kStride * (65535 / segment + 1));
  std::int64_t segments = 0;
  while (state.KeepRunning()) {
    SegmentPlan plan;
    if (!plan_segments(hdr, whole, plan)) return state.SkipWithError("refused");
    for (std::size_t i = 0; i < plan.count; ++i)
      write_segment(plan, whole, i, out.data() + i * kStride);
    segments += plan.count;
    benchmark::ClobberMemory();
  }
  state.SetItemsProcessed(segments);
  state.SetBytesProcessed(state.iterations() * 65535);
}

class Discard final : public TunSink {
 public:
  void write(std::span<const iovec> parts, std::uint16_t packets) noexcept override {
    benchmark::DoNotOptimize(parts.data());
    packets_ += packets;
    ++writes_;
  }
  [[nodiscard]] std::int64_t packets() const { return packets_; }
  [[nodiscard]] std::int64_t writes() const { return writes_; }

 private:
  std::int64_t packets_ = 0;
  std::int64_t writes_ = 0;
};

// A turn: the packets of one receive buffer, in `flows` interleaved flows.
void join(benchmark::State& state) {
  const auto length = static_cast<std::size_t>(state.range(1));
  const auto flows = static_cast<std::size_t>(state.range(2));
  Stream stream{.tcp = state.range(3) != 0, .payload = 0, .port = 0};
  stream.payload = length - stream.headers();
  const auto count = static_cast<std::size_t>(state.range(0));
  const std::size_t stride = length + 64;
  std::vector<std::uint8_t> buffer(stride * count);
  std::vector<std::array<std::uint8_t, 64>> headers(count);  // joining changes those of the first
  for (std::size_t i = 0; i < count; ++i) {
    stream.port = static_cast<std::uint16_t>(1000 + i % flows);
    const auto p = packet(stream, i / flows, false);
    std::memcpy(&buffer[i * stride + 32], p.data(), p.size());
    std::memcpy(headers[i].data(), p.data(), headers[i].size());
  }
  Coalescer coalescer({true, true, true});
  Discard sink;
  while (state.KeepRunning()) {
    for (std::size_t i = 0; i < flows; ++i)
      std::memcpy(&buffer[i * stride + 32], headers[i].data(), headers[i].size());
    for (std::size_t i = 0; i < count; ++i)
      coalescer.add(&buffer[i * stride + 32], static_cast<std::uint32_t>(length), sink);
    coalescer.flush(sink);
  }
  state.SetItemsProcessed(sink.packets());
  state.counters["per_write"] =
      static_cast<double>(sink.packets()) / static_cast<double>(sink.writes());
}

BENCHMARK(cut)->ArgNames({"segment", "tcp"})->Args({1400, 1})->Args({1400, 0})->Args({536, 1});
BENCHMARK(join)
    ->ArgNames({"packets", "bytes", "flows", "tcp"})
    ->Args({45, 1400, 1, 1})
    ->Args({64, 92, 1, 0})
    ->Args({64, 92, 4, 0})
    ->Args({64, 92, 16, 0})
    ->Args({64, 92, 64, 0});
BENCHMARK(sum)->Apply(sizes);
BENCHMARK(copy_sum)->Apply(sizes);
BENCHMARK(copy_only)->Name("memcpy")->Apply(sizes);
BENCHMARK(kernel_sum)->Apply(kernel_sizes);
BENCHMARK(kernel_copy)->Apply(kernel_sizes);

}  // namespace
}  // namespace espalier::dataplane

BENCHMARK_MAIN();
