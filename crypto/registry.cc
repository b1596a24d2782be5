#include "crypto/registry.h"

#include <algorithm>
#include <array>
#include <exception>
#include <stdexcept>

#include "crypto/backends.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

struct Candidate {
  std::string_view name;
  Probe (*probe)();
};

// In order of preference: by speed, then by how many suites it has.
constexpr std::array kCandidates = {Candidate{"ipsec-mb", &probe_ipsec_mb},
                                    Candidate{"openssl", &probe_openssl},
                                    Candidate{"sodium", &probe_sodium}};

const Candidate* find(std::string_view name) {
  const auto* it = std::find_if(kCandidates.begin(), kCandidates.end(),
                                [name](const Candidate& c) { return c.name == name; });
  return it == kCandidates.end() ? nullptr : it;
}

// A backend that cannot even be asked counts as absent.
Probe probe(const Candidate& candidate) {
  try {
    initialise();
    return candidate.probe();
  } catch (const std::exception& e) {
    return {nullptr, std::string("does not start: ") + e.what()};
  }
}

std::string join(const std::vector<BackendReport>& reports) {
  std::string text;
  for (const BackendReport& r : reports) {
    if (!text.empty()) text += "; ";
    text.append(r.name).append(": ").append(r.detail);
  }
  return text;
}

}  // namespace

Registry::Registry(std::string_view choice) {
  const bool any = choice == "auto";
  if (!any && find(choice) == nullptr)
    throw std::runtime_error("crypto '" + std::string(choice) +
                             "' is unknown: write auto, ipsec-mb, openssl or sodium");

  for (const Candidate& candidate : kCandidates) {
    if (!any && candidate.name != choice) continue;
    Probe found = probe(candidate);
    if (found.backend && !known_answers_hold(*found.backend)) {
      found.backend.reset();
      found.detail = "failed its known-answer test (" + found.detail + ")";
    }
    reports_.push_back({std::string(candidate.name), found.backend != nullptr, found.detail});
    if (found.backend) backends_.push_back(std::move(found.backend));
  }

  if (!backends_.empty()) return;
  if (any) throw std::runtime_error("no crypto backend is usable here: " + join(reports_));
  throw std::runtime_error("crypto '" + std::string(choice) + "' is not usable here, " +
                           reports_.front().detail + ": write auto");
}

const Backend* Registry::backend(Suite suite) const noexcept {
  const auto it = std::find_if(backends_.begin(), backends_.end(),
                               [suite](const auto& b) { return b->supports(suite); });
  return it == backends_.end() ? nullptr : it->get();
}

std::unique_ptr<Backend> make_backend(std::string_view name) {
  const Candidate* candidate = find(name);
  return candidate == nullptr ? nullptr : probe(*candidate).backend;
}

}  // namespace espalier::crypto
