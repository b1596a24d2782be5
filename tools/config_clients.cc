// Road warriors: one conn of the file stands for many peers, each with a key file of its own that
// is named by the client's address.

#include <algorithm>
#include <cstring>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "tools/config_conn.h"

namespace espalier::tools {
namespace {

namespace fs = std::filesystem;
using ifaces::IpAddress;

constexpr std::size_t kMaxClients = 10000;
constexpr std::string_view kKeysEnding = ".keys";

[[noreturn]] void fail(const fs::path& path, const std::string& what) {
  throw ConfigError(path.string() + ": " + what);
}

// The addresses that have a key file, in their order.
std::vector<IpAddress> addresses_in(const fs::path& folder, const Subnet& pool) {
  std::vector<IpAddress> out;
  try {
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
      const fs::path& file = entry.path();
      if (file.extension() != kKeysEnding) continue;
      const auto address = IpAddress::parse(file.stem().string());
      if (!address || address->str() != file.stem().string())
        fail(file, "is not named by an address; rename it to ADDRESS.keys, the client's address");
      if (!pool.contains(*address))
        fail(file,
             "is for an address outside the pool " + pool.str() + "; remove it, or widen the pool");
      out.push_back(*address);
    }
  } catch (const fs::filesystem_error& e) {
    fail(folder, std::string("cannot be read (") + e.code().message() +
                     "); with an address pool, keys= is a folder of key files, which `espalier "
                     "keygen --clients` makes");
  }
  if (out.size() > kMaxClients)
    fail(folder, "has more than " + std::to_string(kMaxClients) + " clients; make two conns");
  std::sort(out.begin(), out.end());
  return out;
}

Draft client_of(const Draft& draft, const IpAddress& address) {
  Draft out = draft;
  Conn& c = out.conn;
  c.name += "/" + address.str();
  c.keys = draft.conn.keys / (address.str() + std::string(kKeysEnding));
  c.pool.reset();
  c.is_client = true;
  const ifaces::Prefix host{address, static_cast<std::uint8_t>(address.bits())};
  auto& subnets = draft.has("leftaddresspool") ? c.leftsubnet : c.rightsubnet;
  subnets.assign(1, Subnet(host));
  return out;
}

}  // namespace

std::vector<Draft> with_clients(std::vector<Draft> drafts) {
  std::vector<Draft> out;
  for (Draft& draft : drafts) {
    if (!draft.conn.pool) {
      out.push_back(std::move(draft));
      continue;
    }
    for (const IpAddress& address : addresses_in(draft.conn.keys, *draft.conn.pool))
      out.push_back(client_of(draft, address));
  }
  return out;
}

}  // namespace espalier::tools
