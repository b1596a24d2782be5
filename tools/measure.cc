#include "tools/measure.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <functional>
#include <memory>

#include "crypto/registry.h"
#include "crypto/secret.h"
#include "tools/memory_path.h"

namespace espalier::tools {
namespace {

constexpr int kRuns = 5;
constexpr std::size_t kVerdictSize = 1400;
// One of each family, and the key lengths of the commonest.
constexpr std::array kSuites = {
    crypto::Suite::aes_gcm128,    crypto::Suite::aes_gcm192,        crypto::Suite::aes_gcm256,
    crypto::Suite::aes_gcm_8_256, crypto::Suite::chacha20_poly1305, crypto::Suite::aes256_sha1,
    crypto::Suite::aes128_sha256, crypto::Suite::aes256_sha256,     crypto::Suite::aes256_sha512,
    crypto::Suite::aes_ccm_8_256, crypto::Suite::aes_gmac256,       crypto::Suite::null_sha256};

double cpu_ns() {
  timespec ts{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
  return static_cast<double>(ts.tv_sec) * 1e9 + static_cast<double>(ts.tv_nsec);
}

// `step` handles MemoryPath::kBatch packets and returns the nanoseconds of the part that counts.
double median_ns(std::chrono::milliseconds budget, const std::function<double()>& step) {
  std::array<double, kRuns> runs{};
  const double per_run = static_cast<double>(budget.count()) * 1e6 / kRuns;
  (void)step();  // warm
  for (double& run : runs) {
    double spent = 0;
    std::size_t batches = 0;
    const double start = cpu_ns();
    while (cpu_ns() - start < per_run) {
      spent += step();
      ++batches;
    }
    run = spent / static_cast<double>(batches * MemoryPath::kBatch);
  }
  std::nth_element(runs.begin(), runs.begin() + kRuns / 2, runs.end());
  return runs[kRuns / 2];
}

double timed(const std::function<void()>& work) {
  const double start = cpu_ns();
  work();
  return cpu_ns() - start;
}

void measure_cipher(const crypto::Backend& backend, std::chrono::milliseconds each,
                    Measurement& row) {
  const crypto::SuiteInfo& suite = crypto::info(row.suite);
  const auto key = backend.expand(row.suite, crypto::SecretBytes::random(suite.keys()).bytes());
  // Header, IV, text in whole blocks, ICV: as on the wire.
  const std::size_t before = crypto::kEspHeaderBytes + suite.iv;
  const std::size_t text_len = (row.size + suite.align - 1) / suite.align * suite.align;
  const std::size_t stride = before + text_len + suite.icv;
  std::vector<std::uint8_t> memory(stride * MemoryPath::kBatch);
  std::array<crypto::AeadOp, MemoryPath::kBatch> ops{};
  for (std::size_t i = 0; i < ops.size(); ++i) {
    ops[i].text = &memory[i * stride + before];
    ops[i].text_len = static_cast<std::uint32_t>(text_len);
    ops[i].icv = ops[i].text + text_len;
    ops[i].aad_len = 12;
    ops[i].nonce[0] = static_cast<std::uint8_t>(i);
  }
  row.seal_ns = median_ns(each / 4, [&] { return timed([&] { key->seal(ops); }); });
  row.open_ns = median_ns(each / 4, [&] {
    key->seal(ops);
    return timed([&] { key->open(ops); });
  });
}

void measure_path(const crypto::Backend& backend, std::chrono::milliseconds each,
                  Measurement& row) {
  MemoryPath path(backend, row.suite, row.size);
  row.encap_ns = median_ns(each / 4, [&] { return timed([&] { path.encap(); }); });
  row.decap_ns = median_ns(each / 4, [&] {
    path.encap();
    return timed([&] { (void)path.decap(); });
  });
}

double gbps(std::size_t size, double ns) {
  return ns > 0 ? static_cast<double>(size) * 8 / ns : 0;
}

std::string verdict(const BenchResult& result) {
  const Measurement* best = nullptr;
  const Measurement* second = nullptr;
  for (const Measurement& row : result.rows) {
    if (row.suite != crypto::Suite::aes_gcm256 || row.size != kVerdictSize) continue;
    if (best == nullptr || row.encap_ns < best->encap_ns) {
      second = best;
      best = &row;
    } else if (second == nullptr || row.encap_ns < second->encap_ns) {
      second = &row;
    }
  }
  if (best == nullptr) return "No backend has AES-256-GCM here: tunnels cannot run.\n";
  std::array<char, 300> text{};
  std::snprintf(text.data(), text.size(),
                "Verdict: %s is the backend to use: one core encapsulates %.0f Gb/s of %zu-byte "
                "packets (AES-256-GCM)",
                best->backend.c_str(), gbps(best->size, best->encap_ns), best->size);
  std::string out = text.data();
  if (second != nullptr) {
    std::snprintf(text.data(), text.size(), ", %.1f times what %s does",
                  second->encap_ns / best->encap_ns, second->backend.c_str());
    out += text.data();
  }
  out +=
      ".\nThe kernel's share (copies, wake-ups) is not in these figures; bench/compare measures "
      "it.\n";
  for (const std::string& why : result.missing) out += "Not used here: " + why + ".\n";
  return out;
}

}  // namespace

BenchResult measure_machine(const std::vector<std::size_t>& sizes, std::chrono::milliseconds each) {
  crypto::initialise();
  BenchResult result;
  for (const char* name : {"ipsec-mb", "openssl", "sodium"}) {
    const std::unique_ptr<crypto::Backend> backend = crypto::make_backend(name);
    if (!backend) continue;
    for (const crypto::Suite suite : kSuites) {
      if (!backend->supports(suite)) continue;
      for (const std::size_t size : sizes) {
        Measurement row;
        row.backend = name;
        row.suite = suite;
        row.size = size;
        measure_cipher(*backend, each, row);
        measure_path(*backend, each, row);
        result.rows.push_back(row);
      }
    }
  }
  const crypto::Registry registry("auto");
  for (const crypto::BackendReport& report : registry.reports())
    if (!report.usable) result.missing.push_back(report.name + ", " + report.detail);
  return result;
}

nlohmann::json bench_json(const BenchResult& result) {
  nlohmann::json rows = nlohmann::json::array();
  for (const Measurement& row : result.rows)
    rows.push_back({{"backend", row.backend},
                    {"suite", crypto::info(row.suite).name},
                    {"bytes", row.size},
                    {"seal_ns", row.seal_ns},
                    {"open_ns", row.open_ns},
                    {"encap_ns", row.encap_ns},
                    {"decap_ns", row.decap_ns}});
  return {{"batch", MemoryPath::kBatch}, {"missing", result.missing}, {"measurements", rows}};
}

std::string bench_text(const BenchResult& result) {
  std::string out =
      "nanoseconds a packet on one core, in batches of 64 (Gb/s of encapsulation behind)\n\n"
      "backend    suite                    bytes     seal     open    encap    decap     Gb/s\n";
  for (const Measurement& row : result.rows) {
    std::array<char, 120> line{};
    std::snprintf(line.data(), line.size(), "%-10s %-22s %7zu %8.0f %8.0f %8.0f %8.0f %8.1f\n",
                  row.backend.c_str(), std::string(crypto::info(row.suite).name).c_str(), row.size,
                  row.seal_ns, row.open_ns, row.encap_ns, row.decap_ns,
                  gbps(row.size, row.encap_ns));
    out += line.data();
  }
  return out + "\n" + verdict(result);
}

}  // namespace espalier::tools
