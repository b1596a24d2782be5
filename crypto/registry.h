// Which backend seals and opens: found, tested and chosen at start.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "crypto/aead.h"

namespace espalier::crypto {

// What became of one backend at start, for logs and `espalier doctor`.
struct BackendReport {
  std::string name;
  bool usable;
  std::string detail;  // "VAES + AVX-512", or why it is not usable
};

// The backends that were chosen: for each suite the first in order of preference (ipsec-mb,
// openssl, sodium) that is built in, runs on this processor and passed its known-answer test.
class Registry {
 public:
  // `choice` is auto, ipsec-mb, openssl or sodium. A forced backend is the only one used. Throws
  // std::runtime_error, with what to write instead, if the choice is unknown or not usable.
  explicit Registry(std::string_view choice);

  // Null if no chosen backend has the suite.
  [[nodiscard]] const Backend* backend(Suite suite) const noexcept;

  [[nodiscard]] const std::vector<BackendReport>& reports() const noexcept { return reports_; }

 private:
  std::vector<std::unique_ptr<Backend>> backends_;
  std::vector<BackendReport> reports_;
};

// One backend by name, whether or not it would be chosen; null if it is not built in or does not
// run here. For tests and benchmarks.
[[nodiscard]] std::unique_ptr<Backend> make_backend(std::string_view name);

// Seals and opens a fixed message for every suite that `backend` supports, and opens a damaged one.
// False if one byte differs from the published answer.
[[nodiscard]] bool known_answers_hold(const Backend& backend) noexcept;

}  // namespace espalier::crypto
