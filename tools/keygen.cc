#include "tools/keygen.h"

#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <set>
#include <string_view>
#include <system_error>
#include <utility>

#include "ifaces/unique_fd.h"
#include "tools/compile.h"
#include "tools/config.h"
#include "tools/keys.h"
#include "tools/parallel.h"

namespace espalier::tools {
namespace {

using crypto::SecretBytes;
using std::filesystem::path;

[[noreturn]] void throw_errno(const std::string& call, const path& file) {
  throw std::system_error(errno, std::generic_category(), call + " " + file.string());
}

std::string_view side_name(Side side) {
  return side == Side::left ? "left" : "right";
}

// What `end` is called in the file of the gateway `reader`: one's own address may be found by the
// route, the other's may be unknown, never the other way round.
std::string end_for(Side reader, Side end, const std::string& value) {
  if (reader == end && value == "%any") return "%defaultroute";
  if (reader != end && value == "%defaultroute") return "%any";
  return value;
}

std::string config_for(const KeygenRequest& r, Side reader) {
  std::string text = "# Made by `espalier keygen` for the gateway " +
                     std::string(side_name(reader)) + ".\n\n[conn " + r.conn + "]\n";
  const auto put = [&text](std::string_view name, const std::string& value) {
    text.append(name).append(" = ").append(value).append("\n");
  };
  const auto put_if = [&put](std::string_view name, const std::optional<std::string>& value) {
    if (value) put(name, *value);
  };
  put("left", end_for(reader, Side::left, r.left));
  put("right", end_for(reader, Side::right, r.right));
  put_if("leftaddresspool", r.leftaddresspool);
  put_if("rightaddresspool", r.rightaddresspool);
  put_if("leftsubnet", r.leftsubnet);
  put_if("rightsubnet", r.rightsubnet);
  put_if("mark", r.mark);
  put_if("vti-interface", r.vti_interface);
  put_if("vti-routing", r.vti_routing);
  put_if("leftvti", r.leftvti);
  put_if("rightvti", r.rightvti);
  put_if("encapsulation", r.encapsulation);
  put("esp", r.esp);
  put("keys", r.conn + (r.leftaddresspool || r.rightaddresspool ? ".clients" : ".keys"));
  return text;
}

// A line break in a value would be another setting; everything else the reader of the file refuses.
void check_lines(const KeygenRequest& r) {
  for (const std::optional<std::string>& value :
       {std::optional(r.conn), std::optional(r.left), std::optional(r.right), r.leftsubnet,
        r.rightsubnet, r.mark, r.vti_interface, r.vti_routing, r.leftvti, r.rightvti,
        r.encapsulation, r.leftaddresspool, r.rightaddresspool, std::optional(r.esp)})
    if (value && value->find_first_of("\n\r#") != std::string::npos)
      throw ConfigError("a value has a line break or '#' in it; write it without");
}

// Line numbers would be those of a file that is not there.
Conn check_text(const std::string& text, Side reader) {
  constexpr std::string_view kName = "keygen";
  try {
    Conn conn = parse_config(text, path(kName), CheckKeys::no).conns.at(0);
    if (const auto route = looping_route(conn, reader))
      throw ConfigError("seen from " + std::string(side_name(reader)) + ": " +
                        loop_text(conn, reader, *route));
    return conn;
  } catch (const ConfigError& e) {
    std::string_view what = e.what();
    if (what.starts_with(std::string(kName) + ":"))
      what.remove_prefix(what.find(": ") + std::string_view(": ").size());
    throw ConfigError(std::string(what));
  }
}

dataplane::Spi random_spi() {
  // From 256 to the last (RFC 4303 §2.1).
  return dataplane::Spi{dataplane::kFirstSpi +
                        randombytes_uniform(0xffffffff - dataplane::kFirstSpi)};
}

StaticKeys random_keys(crypto::Suite suite) {
  StaticKeys keys;
  keys.suite = suite;
  keys.spi_in = random_spi();
  keys.spi_out = random_spi();
  keys.keymat_in = SecretBytes::random(crypto::info(suite).keymat());
  keys.keymat_out = SecretBytes::random(crypto::info(suite).keymat());
  return keys;
}

// Exchanges the directions: what one gateway sends the other receives.
void mirror(StaticKeys& keys) {
  std::swap(keys.spi_in, keys.spi_out);
  std::swap(keys.keymat_in, keys.keymat_out);
}

void write_new(const path& file, std::string_view bytes, mode_t mode) {
  const ifaces::UniqueFd fd(
      ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, mode));
  if (!fd) throw_errno("open", file);
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd.get(), bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("write", file);
    bytes.remove_prefix(static_cast<std::size_t>(n));
  }
  if (::fsync(fd.get()) != 0) throw_errno("fsync", file);
}

// Removes what it is told to, unless everything went well.
class Cleanup {
 public:
  Cleanup() = default;
  Cleanup(const Cleanup&) = delete;
  Cleanup& operator=(const Cleanup&) = delete;
  ~Cleanup() {
    std::error_code ignored;
    for (auto p = paths_.rbegin(); p != paths_.rend(); ++p)
      std::filesystem::remove_all(*p, ignored);
  }
  void add(path p) { paths_.push_back(std::move(p)); }
  void keep_all() { paths_.clear(); }

 private:
  std::vector<path> paths_;
};

void write_side(const path& folder, const KeygenRequest& r, Side side, const StaticKeys& keys) {
  if (::mkdir(folder.c_str(), S_IRWXU) != 0) throw_errno("mkdir", folder);
  write_new(folder / "espalier.conf", config_for(r, side), S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH);
  const SecretBytes text =
      render_keys(keys, "# Made by `espalier keygen`: conn " + r.conn + ", for the gateway " +
                            std::string(side_name(side)) + " and for no other machine.\n");
  write_new(folder / (r.conn + ".keys"),
            {reinterpret_cast<const char*>(text.bytes().data()), text.size()}, S_IRUSR | S_IWUSR);
  SequenceState::create(folder / (r.conn + ".state"), fingerprint_of(keys));
}

// The first folder on the way to `folder` that is not there yet; empty if all are.
path first_missing(const path& folder) {
  path missing;
  for (path p = std::filesystem::absolute(folder).lexically_normal();
       !p.empty() && !std::filesystem::exists(p); p = p.parent_path())
    missing = p;
  return missing;
}

// ---------------------------------------------------------------------------------- clients

// The addresses of a pool that clients may have: those of hosts, and not the server's own.
std::vector<ifaces::IpAddress> free_addresses(const Subnet& pool, const Conn& server,
                                              unsigned wanted) {
  const dataplane::AddressRange range = pool.addresses();
  // RFC 919: of an IPv4 prefix, the first address and the last are no host's.
  const bool edges = !pool.range && pool.family() == ifaces::Family::v4 && pool.prefix.length < 31;
  const std::uint32_t total = count(range);
  std::vector<ifaces::IpAddress> out;
  for (std::uint32_t i = edges ? 1 : 0; i + (edges ? 1 : 0) < total && out.size() < wanted; ++i) {
    const ifaces::IpAddress address = nth(range, i);
    const auto is_own = [&address](const ifaces::Prefix& p) { return p.address == address; };
    if (std::none_of(server.leftvti.begin(), server.leftvti.end(), is_own) &&
        std::none_of(server.rightvti.begin(), server.rightvti.end(), is_own))
      out.push_back(address);
  }
  if (out.size() < wanted)
    throw ConfigError("the pool " + pool.str() + " has addresses for " +
                      std::to_string(out.size()) +
                      " clients; write a larger one, or fewer clients");
  return out;
}

// What one client's configuration says; `side` is the clients' end.
KeygenRequest request_of(const KeygenRequest& r, Side side, const Subnet& pool,
                         const ifaces::IpAddress& address) {
  KeygenRequest out = r;
  out.leftaddresspool.reset();
  out.rightaddresspool.reset();
  const bool left = side == Side::left;
  (left ? out.leftsubnet : out.rightsubnet) = address.str();
  // With the length of the pool, so that the other clients are found through the tunnel.
  if (r.vti_interface)
    (left ? out.leftvti : out.rightvti) = address.str() + "/" + std::to_string(pool.prefix.length);
  (left ? out.rightvti : out.leftvti).reset();
  return out;
}

// A client that reaches everything through the tunnel makes its routes by hand.
std::string client_text(KeygenRequest& request, Side side) {
  try {
    static_cast<void>(check_text(config_for(request, side), side));
  } catch (const ConfigError&) {
    request.vti_routing = "no";
    static_cast<void>(check_text(config_for(request, side), side));
  }
  return config_for(request, side);
}

void write_keys(const path& folder, const std::string& name, const std::string& comment,
                const StaticKeys& keys) {
  const SecretBytes text = render_keys(keys, comment);
  write_new(folder / (name + ".keys"),
            {reinterpret_cast<const char*>(text.bytes().data()), text.size()}, S_IRUSR | S_IWUSR);
  SequenceState::create(folder / (name + ".state"), fingerprint_of(keys));
}

void make_folder(const path& folder) {
  if (::mkdir(folder.c_str(), S_IRWXU) != 0) throw_errno("mkdir", folder);
}

// Everything below `work`; what is there in the end is moved to its place by the caller.
void write_clients(const path& work, const KeygenRequest& request, const Conn& server, Side side) {
  const Side other = side == Side::left ? Side::right : Side::left;
  const path home = work / side_name(other), folder = home / (request.conn + ".clients");
  make_folder(home);
  make_folder(folder);
  make_folder(work / "clients");
  write_new(home / "espalier.conf", config_for(request, other),
            S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH);
  const std::vector<ifaces::IpAddress> addresses =
      free_addresses(*server.pool, server, request.clients);
  // At the server's one address every client needs an SPI of its own.
  std::set<dataplane::Spi> drawn;
  while (drawn.size() < addresses.size()) drawn.insert(random_spi());
  const std::vector<dataplane::Spi> spis(drawn.begin(), drawn.end());
  in_parallel(addresses.size(), [&](std::size_t i) {
    const ifaces::IpAddress& address = addresses[i];
    KeygenRequest client = request_of(request, side, *server.pool, address);
    const path own = work / "clients" / address.str();
    make_folder(own);
    write_new(own / "espalier.conf", client_text(client, side),
              S_IRUSR | S_IWUSR | S_IRGRP | S_IROTH);
    StaticKeys keys = random_keys(server.esp);
    keys.spi_in = spis[i];
    const std::string comment = "# Made by `espalier keygen`: conn " + request.conn + ", client " +
                                address.str() + ", for ";
    write_keys(folder, address.str(), comment + "the server and for no other machine.\n", keys);
    mirror(keys);
    write_keys(own, request.conn, comment + "the client and for no other machine.\n", keys);
  });
}

}  // namespace

std::vector<path> keygen(const KeygenRequest& request) {
  crypto::initialise();
  check_lines(request);
  if (request.left.starts_with('%') && request.right.starts_with('%'))
    throw ConfigError("neither left nor right is an address; write one that the other can find");
  const bool pool = request.leftaddresspool || request.rightaddresspool;
  const Side clients = request.leftaddresspool ? Side::left : Side::right;
  if (pool != (request.clients > 0))
    throw ConfigError(
        "clients need a pool of addresses, and a pool clients; write both "
        "rightaddresspool and clients");
  const Side reader = pool && clients == Side::left ? Side::right : Side::left;
  const Conn conn = check_text(config_for(request, reader), reader);
  if (!pool) static_cast<void>(check_text(config_for(request, Side::right), Side::right));
  if (request.out.empty()) throw ConfigError("no folder for the result; write one");
  const std::array<std::string, 2> folders = {pool && clients == Side::left ? "clients" : "left",
                                              pool && clients == Side::right ? "clients" : "right"};
  for (const std::string& folder : folders)
    if (std::filesystem::exists(std::filesystem::symlink_status(request.out / folder)))
      throw ConfigError((request.out / folder).string() +
                        " exists and is not overwritten; write another folder");

  // Made under a name of its own and moved when complete. The order of clean-up is the reverse.
  Cleanup cleanup;
  if (const path missing = first_missing(request.out); !missing.empty()) cleanup.add(missing);
  std::filesystem::create_directories(request.out);
  std::string work = (request.out / ".keygen-XXXXXX").string();
  if (::mkdtemp(work.data()) == nullptr) throw_errno("mkdtemp", work);
  cleanup.add(work);

  if (pool) {
    write_clients(work, request, conn, clients);
  } else {
    StaticKeys keys = random_keys(conn.esp);
    for (const Side side : {Side::left, Side::right}) {
      write_side(path(work) / side_name(side), request, side, keys);
      mirror(keys);
    }
  }
  std::vector<path> files;
  for (const std::string& folder : folders) {
    const path from = path(work) / folder, to = request.out / folder;
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) != 0)
      throw_errno("rename", to);
    cleanup.add(to);
    if (pool) {
      files.push_back(to);
      continue;
    }
    for (const char* extension : {"", ".keys", ".state"})
      files.push_back(to / (*extension == '\0' ? "espalier.conf" : request.conn + extension));
  }
  cleanup.keep_all();
  std::error_code ignored;
  std::filesystem::remove_all(work, ignored);
  return files;
}

}  // namespace espalier::tools
