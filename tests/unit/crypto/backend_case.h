// Every backend with every suite that it has, as the parameter of a test.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "crypto/backends.h"
#include "crypto/registry.h"
#include "crypto/secret.h"

namespace espalier::crypto::testing {

struct BackendCase {
  std::string_view backend;
  Suite suite;
};

// What each backend must have, whatever it says of itself.
inline bool must_have(std::string_view backend, const SuiteInfo& suite) {
  if (backend == "openssl") return true;
  if (backend == "ipsec-mb") return suite.mode != Mode::ccm || suite.key != 24;
  return suite.suite == Suite::aes_gcm256 || suite.suite == Suite::chacha20_poly1305;
}

template <typename Wanted>
std::vector<BackendCase> backend_cases(Wanted wanted) {
  std::vector<BackendCase> cases;
  for (const std::string_view backend : {"ipsec-mb", "openssl", "sodium"})
    for (const SuiteInfo& s : suites())
      if (must_have(backend, s) && wanted(s)) cases.push_back({backend, s.suite});
  return cases;
}

inline std::vector<BackendCase> all_backend_cases() {
  return backend_cases([](const SuiteInfo&) { return true; });
}

// One of each family, and the shortest and longest ICVs.
inline std::vector<BackendCase> representative_cases() {
  return backend_cases([](const SuiteInfo& s) {
    switch (s.suite) {
      case Suite::aes_gcm256:
      case Suite::aes_gcm_8_128:
      case Suite::chacha20_poly1305:
      case Suite::aes256_sha1:
      case Suite::aes128_sha256:
      case Suite::aes192_sha512:
      case Suite::aes_ccm_8_128:
      case Suite::aes_ccm_16_256:
      case Suite::aes_gmac256:
      case Suite::null_sha384:
        return true;
      default:
        return false;
    }
  });
}

inline void PrintTo(const BackendCase& c, std::ostream* out) {
  *out << c.backend << ' ' << info(c.suite).name;
}

// Why make_backend gives nothing. A backend that is not built in or does not run on the processor
// is skipped for that reason; OpenSSL is never missing.
inline std::string why_missing(std::string_view backend) {
  if (backend == "ipsec-mb") return probe_ipsec_mb().detail;
  if (backend == "sodium") return probe_sodium().detail;
  return "must be there";
}

class OnEveryBackend : public ::testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    initialise();
    backend_ = make_backend(GetParam().backend);
    if (backend_) {
      // A processor without AES leaves libsodium with ChaCha20 alone.
      if (backend_->supports(GetParam().suite)) return;
      ASSERT_EQ(GetParam().backend, "sodium");
      GTEST_SKIP() << "sodium: " << why_missing("sodium");
    }
    ASSERT_NE(GetParam().backend, "openssl");
    GTEST_SKIP() << GetParam().backend << ": " << why_missing(GetParam().backend);
  }

  [[nodiscard]] static Suite suite() { return GetParam().suite; }
  [[nodiscard]] const Backend& backend() const { return *backend_; }

 private:
  std::unique_ptr<Backend> backend_;
};

inline std::string case_name(const ::testing::TestParamInfo<BackendCase>& test) {
  std::string name =
      std::string(test.param.backend) + '_' + std::string(info(test.param.suite).name);
  for (char& c : name)
    if (c == '-') c = '_';
  return name;
}

}  // namespace espalier::crypto::testing
