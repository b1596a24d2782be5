// Every backend with every suite that it has, as the parameter of a test.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <string>

#include "crypto/backends.h"
#include "crypto/registry.h"
#include "crypto/secret.h"

namespace espalier::crypto::testing {

struct BackendCase {
  std::string_view backend;
  Suite suite;
};

inline constexpr std::array kBackendCases = {
    BackendCase{"ipsec-mb", Suite::aes_gcm128}, BackendCase{"ipsec-mb", Suite::aes_gcm192},
    BackendCase{"ipsec-mb", Suite::aes_gcm256}, BackendCase{"openssl", Suite::aes_gcm128},
    BackendCase{"openssl", Suite::aes_gcm192},  BackendCase{"openssl", Suite::aes_gcm256},
    BackendCase{"sodium", Suite::aes_gcm256},
};

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
    if (backend_) return;
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
