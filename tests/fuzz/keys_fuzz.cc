// A key file of any bytes: refused in one line, or taken; and what was taken is written and read
// again as it was.
#include <string>
#include <string_view>

#include "crypto/registry.h"
#include "tests/fuzz/input.h"
#include "tools/config.h"
#include "tools/keys.h"

using namespace espalier::tools;
using espalier::fuzz::require;

extern "C" int LLVMFuzzerInitialize(int* /*argc*/, char*** /*argv*/) {
  espalier::crypto::initialise();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(data, data + size);
  try {
    const StaticKeys keys = parse_keys(text, "/etc/espalier/fuzz.keys");
    const espalier::crypto::SecretBytes rendered = render_keys(keys, "fuzz");
    const auto bytes = rendered.bytes();
    const StaticKeys again =
        parse_keys({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, "again");
    require(again.suite == keys.suite && again.spi_in == keys.spi_in &&
                again.spi_out == keys.spi_out && again.fingerprint == keys.fingerprint &&
                again.keymat_in.equals(keys.keymat_in),
            "keys that change when written");
  } catch (const ConfigError& e) {
    const std::string_view what = e.what();
    require(!what.empty() && what.find('\n') == std::string_view::npos,
            "a refusal of several lines");
  }
  return 0;
}
