// The backends as the registry finds them. Private to crypto/.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

#include "crypto/aead.h"

namespace espalier::crypto {

// What one backend says of itself on this machine. It has not passed a known-answer test yet.
struct Probe {
  std::unique_ptr<Backend> backend;  // null if it is not built in or the processor does not fit
  std::string detail;                // what it runs on, or why there is none
};

[[nodiscard]] Probe probe_ipsec_mb();
[[nodiscard]] Probe probe_openssl();
[[nodiscard]] Probe probe_sodium();

// Every Backend::expand starts with this. The message names lengths, never the key.
inline void check_key(const Backend& backend, Suite suite, std::span<const std::uint8_t> key) {
  const SuiteInfo& s = info(suite);
  if (!backend.supports(suite))
    throw std::invalid_argument(std::string(backend.name()) + " has no " + std::string(s.name));
  if (key.size() != s.keys())
    throw std::invalid_argument(std::string(s.name) + " takes a key of " +
                                std::to_string(s.keys()) + " bytes, not " +
                                std::to_string(key.size()));
}

}  // namespace espalier::crypto
