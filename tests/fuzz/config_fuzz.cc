// A configuration file of any bytes: it is taken, and then compiles at both ends, or it is refused
// in one line.
#include <string>
#include <string_view>

#include "tests/fuzz/input.h"
#include "tools/compile.h"
#include "tools/config.h"

namespace {

using namespace espalier;
using namespace espalier::tools;
using espalier::fuzz::require;

void check_refusal(const ConfigError& e) {
  const std::string_view text = e.what();
  require(!text.empty() && text.find('\n') == std::string_view::npos, "a refusal of several lines");
}

void compile_both(const Conn& conn) {
  const ifaces::IpAddress own = *ifaces::IpAddress::parse("192.0.2.77");
  for (const Side side : {Side::left, Side::right}) {
    const Side other = side == Side::left ? Side::right : Side::left;
    if (!local_is_default_route(conn, side) &&
        remote_address(conn, other).family == ifaces::Family::none)
      continue;  // this end is %any, and that is not this host
    StaticKeys keys;
    keys.suite = conn.esp;
    keys.spi_in = keys.spi_out = dataplane::Spi{4096};
    try {
      const Compiled compiled = compile(conn, side, own, std::move(keys), 1);
      require(!compiled.policies.empty(), "a conn without a policy");
    } catch (const ConfigError& e) {
      check_refusal(e);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(data, data + size);
  try {
    const Config config = parse_config(text, "/etc/espalier/fuzz.conf", CheckKeys::no);
    for (const Conn& conn : config.conns) compile_both(conn);
  } catch (const ConfigError& e) {
    check_refusal(e);
  }
  return 0;
}
