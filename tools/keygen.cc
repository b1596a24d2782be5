#include "tools/keygen.h"

#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string_view>
#include <system_error>
#include <utility>

#include "ifaces/unique_fd.h"
#include "tools/compile.h"
#include "tools/config.h"
#include "tools/keys.h"

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
  put_if("leftsubnet", r.leftsubnet);
  put_if("rightsubnet", r.rightsubnet);
  put_if("mark", r.mark);
  put_if("vti-interface", r.vti_interface);
  put_if("vti-routing", r.vti_routing);
  put_if("leftvti", r.leftvti);
  put_if("rightvti", r.rightvti);
  put_if("encapsulation", r.encapsulation);
  put("esp", r.esp);
  put("keys", r.conn + ".keys");
  return text;
}

// A line break in a value would be another setting; everything else the reader of the file refuses.
void check_lines(const KeygenRequest& r) {
  for (const std::optional<std::string>& value :
       {std::optional(r.conn), std::optional(r.left), std::optional(r.right), r.leftsubnet,
        r.rightsubnet, r.mark, r.vti_interface, r.vti_routing, r.leftvti, r.rightvti,
        r.encapsulation, std::optional(r.esp)})
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

}  // namespace

std::vector<path> keygen(const KeygenRequest& request) {
  crypto::initialise();
  check_lines(request);
  if (request.left.starts_with('%') && request.right.starts_with('%'))
    throw ConfigError("neither left nor right is an address; write one that the other can find");
  const Conn conn = check_text(config_for(request, Side::left), Side::left);
  static_cast<void>(check_text(config_for(request, Side::right), Side::right));
  if (request.out.empty()) throw ConfigError("no folder for the result; write one");
  for (const Side side : {Side::left, Side::right})
    if (std::filesystem::exists(std::filesystem::symlink_status(request.out / side_name(side))))
      throw ConfigError((request.out / side_name(side)).string() +
                        " exists and is not overwritten; write another folder");

  // Made under a name of its own and moved when complete. The order of clean-up is the reverse.
  Cleanup cleanup;
  if (const path missing = first_missing(request.out); !missing.empty()) cleanup.add(missing);
  std::filesystem::create_directories(request.out);
  std::string work = (request.out / ".keygen-XXXXXX").string();
  if (::mkdtemp(work.data()) == nullptr) throw_errno("mkdtemp", work);
  cleanup.add(work);

  StaticKeys keys = random_keys(conn.esp);
  for (const Side side : {Side::left, Side::right}) {
    write_side(path(work) / side_name(side), request, side, keys);
    mirror(keys);
  }
  std::vector<path> files;
  for (const Side side : {Side::left, Side::right}) {
    const path from = path(work) / side_name(side), to = request.out / side_name(side);
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) != 0)
      throw_errno("rename", to);
    cleanup.add(to);
    for (const char* extension : {"", ".keys", ".state"})
      files.push_back(to / (*extension == '\0' ? "espalier.conf" : request.conn + extension));
  }
  cleanup.keep_all();
  std::error_code ignored;
  std::filesystem::remove_all(work, ignored);
  return files;
}

}  // namespace espalier::tools
