#include "crypto/suite.h"

#include <algorithm>
#include <array>

namespace espalier::crypto {
namespace {

constexpr std::array<SuiteInfo, kSuiteCount> kSuites = {{
    {Suite::aes_gcm128, "aes_gcm128", 16, 4, 8, 16, 4},
    {Suite::aes_gcm192, "aes_gcm192", 24, 4, 8, 16, 4},
    {Suite::aes_gcm256, "aes_gcm256", 32, 4, 8, 16, 4},
}};

struct Alias {
  std::string_view name;
  Suite suite;
};
// libreswan writes aes_gcm_c-256 and aes_gcm_16_256, strongSwan aes256gcm16 or aes256gcm128 (bits).
constexpr std::array kAliases = {
    Alias{"aes_gcm", Suite::aes_gcm256},        Alias{"aes_gcm-128", Suite::aes_gcm128},
    Alias{"aes_gcm_16_128", Suite::aes_gcm128}, Alias{"aes128gcm16", Suite::aes_gcm128},
    Alias{"aes128gcm128", Suite::aes_gcm128},   Alias{"aes_gcm-192", Suite::aes_gcm192},
    Alias{"aes_gcm_16_192", Suite::aes_gcm192}, Alias{"aes192gcm16", Suite::aes_gcm192},
    Alias{"aes192gcm128", Suite::aes_gcm192},   Alias{"aes_gcm-256", Suite::aes_gcm256},
    Alias{"aes_gcm_16_256", Suite::aes_gcm256}, Alias{"aes256gcm16", Suite::aes_gcm256},
    Alias{"aes256gcm128", Suite::aes_gcm256},   Alias{"aes_gcm_c-128", Suite::aes_gcm128},
    Alias{"aes_gcm_c-256", Suite::aes_gcm256},
};

}  // namespace

const SuiteInfo& info(Suite suite) noexcept {
  return kSuites[static_cast<std::size_t>(suite)];
}

std::span<const SuiteInfo> suites() noexcept {
  return kSuites;
}

std::optional<Suite> parse_suite(std::string_view name) noexcept {
  for (const SuiteInfo& s : kSuites)
    if (s.name == name) return s.suite;
  const auto* alias = std::find_if(kAliases.begin(), kAliases.end(),
                                   [name](const Alias& a) { return a.name == name; });
  if (alias == kAliases.end()) return std::nullopt;
  return alias->suite;
}

}  // namespace espalier::crypto
