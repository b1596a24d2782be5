// Reading and writing key files. The hex text of a key is looked at only in locked memory: Boost
// gets the line with a placeholder where the value was, because its copies are never wiped.

#include <fcntl.h>
#include <sodium.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/program_options.hpp>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <map>
#include <sstream>
#include <stdexcept>

#include "ifaces/unique_fd.h"
#include "tools/config.h"
#include "tools/config_text.h"
#include "tools/keys.h"
#include "tools/sha256.h"

namespace espalier::tools {
namespace {

namespace po = boost::program_options;
using crypto::SecretBytes;

constexpr std::size_t kMaxKeyFile = 4096;
constexpr std::string_view kSpace = " \t\r";
constexpr std::array<std::string_view, 9> kWords = {"suite",   "spi-in",   "key-in",
                                                    "auth-in", "salt-in",  "spi-out",
                                                    "key-out", "auth-out", "salt-out"};

std::string_view trim(std::string_view s) {
  const auto first = s.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return s.substr(first, s.find_last_not_of(kSpace) - first + 1);
}

// A value, still in the caller's memory.
struct Field {
  std::string_view value;
  unsigned line = 0;
};

class KeyFileReader {
 public:
  explicit KeyFileReader(const std::filesystem::path& file) : file_(file) {
    for (const std::string_view word : kWords)
      description_.add_options()(std::string(word).c_str(), po::value<std::string>(), "");
  }

  StaticKeys read(std::string_view text) {
    while (!text.empty()) {
      const auto end = text.find('\n');
      ++line_;
      const std::string_view line = text.substr(0, end);
      read_line(trim(line.substr(0, line.find('#'))));
      text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    }
    return assemble();
  }

 private:
  // No text of the file is ever repeated: a slip of the pen may have put key material anywhere.
  void read_line(std::string_view line) {
    if (line.empty()) return;
    const auto equals = line.find('=');
    if (equals == std::string_view::npos)
      refuse(file_, line_, "a line that is no setting; write NAME = VALUE");
    const std::string name = known_name(trim(line.substr(0, equals)));
    const Field field{trim(line.substr(equals + 1)), line_};
    if (field.value.empty()) refuse(file_, line_, name + " has no value; write one");
    const auto [before, inserted] = fields_.emplace(name, field);
    if (!inserted)
      refuse(file_, line_,
             name + " is set a second time (first in line " + std::to_string(before->second.line) +
                 "); write it once");
  }

  std::string known_name(std::string_view name) const {
    // Longer than every word: not even Boost needs a copy of it.
    if (name.size() <= std::string_view("salt-out").size()) {
      std::istringstream line(std::string(name) + "=placeholder");
      try {
        const auto parsed = po::parse_config_file(line, description_);
        if (parsed.options.size() == 1) return parsed.options.front().string_key;
      } catch (const po::error&) {  // unknown: said below, without its text
      }
    }
    refuse(file_, line_,
           "an unknown name before '='; write one of suite, spi-in, key-in, auth-in, salt-in, "
           "spi-out, key-out, auth-out, salt-out");
  }

  const Field& field(std::string_view name) const {
    const auto found = fields_.find(name);
    if (found == fields_.end())
      refuse(
          file_, std::max(line_, 1U),
          std::string(name) + " is missing; write it, or make a new file with `espalier keygen`");
    return found->second;
  }

  dataplane::Spi spi(std::string_view name) const {
    const Field& f = field(name);
    std::string_view digits = f.value;
    const bool hex = digits.starts_with("0x") || digits.starts_with("0X");
    if (hex) digits.remove_prefix(2);
    std::uint32_t value = 0;
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, hex ? 16 : 10);
    if (error != std::errc() || end != digits.data() + digits.size())
      refuse(file_, f.line, std::string(name) + " is no 32-bit number; write it as 0x1a2b3c4d");
    if (value < dataplane::kFirstSpi)
      refuse(file_, f.line,
             std::string(name) + " is below 256, which RFC 4303 reserves; write 256 or more");
    return dataplane::Spi{value};
  }

  void hex_into(std::string_view name, std::span<std::uint8_t> out) const {
    const Field& f = field(name);
    std::string_view digits = f.value;
    if (digits.starts_with("0x") || digits.starts_with("0X")) digits.remove_prefix(2);
    const std::string length =
        std::to_string(out.size() * 2) + " hex digits (" + std::to_string(out.size()) + " bytes)";
    if (digits.size() != out.size() * 2)
      refuse(file_, f.line,
             std::string(name) + " has " + std::to_string(digits.size()) + " hex digits; write " +
                 length);
    std::size_t written = 0;
    const char* end = nullptr;
    // Does not branch on the digits (libsodium).
    if (sodium_hex2bin(out.data(), out.size(), digits.data(), digits.size(), nullptr, &written,
                       &end) != 0 ||
        end != digits.data() + digits.size() || written != out.size())
      refuse(file_, f.line,
             std::string(name) + " has characters that are no hex digits; write " + length);
  }

  // Parts that the suite does not have must not be there: they would be a slip of the pen.
  SecretBytes keymat(const crypto::SuiteInfo& suite, const std::string& direction) const {
    SecretBytes result(suite.keymat());
    std::span<std::uint8_t> rest = result.bytes();
    const auto part = [&](const char* what, std::size_t length) {
      const std::string name = what + direction;
      if (length == 0) {
        if (const auto found = fields_.find(name); found != fields_.end())
          refuse(file_, found->second.line,
                 name + " is nothing that " + std::string(suite.name) +
                     " has; remove it, or write the suite that it is for");
        return;
      }
      const std::span<std::uint8_t> bytes = rest.first(length);
      rest = rest.subspan(length);
      hex_into(name, bytes);
      // Zeroes, or one byte over and over: somebody's example, not a key. A salt is no secret.
      if (std::string_view(what) != "salt-" &&
          std::all_of(bytes.begin(), bytes.end(),
                      [&](std::uint8_t b) { return b == bytes.front(); }))
        refuse(file_, field(name).line,
               name +
                   " is one byte repeated, which anybody would guess; make a new one "
                   "with `espalier keygen`");
    };
    part("key-", suite.key);
    part("auth-", suite.auth_key);
    part("salt-", suite.salt);
    return result;
  }

  StaticKeys assemble() const {
    StaticKeys keys;
    const Field& suite = field("suite");
    std::string_view why;
    const auto parsed = crypto::parse_suite(suite.value, &why);
    if (!parsed) refuse(file_, suite.line, "suite " + std::string(why));
    keys.suite = *parsed;
    const crypto::SuiteInfo& lengths = crypto::info(keys.suite);
    keys.spi_in = spi("spi-in");
    keys.spi_out = spi("spi-out");
    keys.keymat_in = keymat(lengths, "in");
    keys.keymat_out = keymat(lengths, "out");
    // Both ends count from 1: the same key and salt would use every nonce twice (RFC 4106 §3.1).
    if (keys.keymat_in.equals(keys.keymat_out))
      refuse(file_, field(lengths.key != 0 ? "key-out" : "auth-out").line,
             "both directions have the same key and salt; make a new file with `espalier keygen`");
    keys.fingerprint = fingerprint_of(keys);
    return keys;
  }

  const std::filesystem::path& file_;
  po::options_description description_;
  std::map<std::string, Field, std::less<>> fields_;
  unsigned line_ = 0;
};

void check_status(const std::filesystem::path& file, const struct stat& status) {
  const auto fail = [&file](const std::string& what) {
    throw ConfigError(file.string() + ": " + what);
  };
  if (!S_ISREG(status.st_mode)) fail("is not a regular file; write the path of a key file");
  if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0)
    fail("others may read or change this key file; run `chmod 600 " + file.string() +
         "`, and make new keys if somebody may have read it");
  if (status.st_uid != 0 && status.st_uid != ::geteuid())
    fail("belongs to another user; run `chown " + std::to_string(::geteuid()) + " " +
         file.string() + "`");
}

}  // namespace

StaticKeys parse_keys(std::string_view text, const std::filesystem::path& file) {
  if (text.size() > kMaxKeyFile)
    throw ConfigError(file.string() + ": is longer than " + std::to_string(kMaxKeyFile) +
                      " bytes; write the path of a key file");
  return KeyFileReader(file).read(text);
}

StaticKeys load_keys(const std::filesystem::path& file) {
  const ifaces::UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd)
    throw ConfigError(file.string() + ": cannot be opened (" + std::strerror(errno) +
                      "); write the path of a key file, which `espalier keygen` makes");
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0)
    throw ConfigError(file.string() + ": " + std::strerror(errno) + "; check the file system");
  check_status(file, status);
  SecretBytes buffer(kMaxKeyFile + 1);
  std::size_t size = 0;
  while (size < buffer.size()) {
    const ssize_t n = ::read(fd.get(), buffer.bytes().data() + size, buffer.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0)
      throw ConfigError(file.string() + ": cannot be read (" + std::strerror(errno) +
                        "); check the disk");
    if (n == 0) break;
    size += static_cast<std::size_t>(n);
  }
  return parse_keys({reinterpret_cast<const char*>(buffer.bytes().data()), size}, file);
}

std::string fingerprint_of(const StaticKeys& keys) {
  std::array<char, 64> head{};
  const int n = std::snprintf(head.data(), head.size(), "espalier %s 0x%08x ",
                              std::string(crypto::info(keys.suite).name).c_str(),
                              static_cast<unsigned>(keys.spi_out));
  return sha256_hex(
      {bytes_of({head.data(), static_cast<std::size_t>(n)}), keys.keymat_out.bytes()});
}

std::string key_digest(const SecretBytes& keymat) {
  return sha256_hex({keymat.bytes()});
}

SecretBytes render_keys(const StaticKeys& keys, std::string_view comment) {
  const crypto::SuiteInfo& suite = crypto::info(keys.suite);
  SecretBytes buffer(kMaxKeyFile + 1);
  char* const begin = reinterpret_cast<char*>(buffer.bytes().data());
  std::size_t size = 0;
  const auto put = [&](std::string_view text) {
    if (text.size() > kMaxKeyFile - size) throw std::length_error("key file too long");
    std::memcpy(begin + size, text.data(), text.size());
    size += text.size();
  };
  const auto put_hex = [&](std::string_view name, std::span<const std::uint8_t> bytes) {
    put(name);
    if (bytes.size() * 2 > kMaxKeyFile - size) throw std::length_error("key file too long");
    sodium_bin2hex(begin + size, kMaxKeyFile + 1 - size, bytes.data(), bytes.size());
    size += bytes.size() * 2;
    put("\n");
  };
  const auto put_direction = [&](const std::string& name, dataplane::Spi spi,
                                 std::span<const std::uint8_t> keymat) {
    std::array<char, 16> number{};
    std::snprintf(number.data(), number.size(), "0x%08x", static_cast<unsigned>(spi));
    put("spi-" + name + " = " + number.data() + "\n");
    const auto part = [&](const std::string& what, std::size_t length) {
      if (length != 0) put_hex(what + name + " = ", keymat.first(length));
      keymat = keymat.subspan(length);
    };
    part("key-", suite.key);
    part("auth-", suite.auth_key);
    part("salt-", suite.salt);
  };
  put(comment);
  put("suite = " + std::string(suite.name) + "\n");
  put_direction("in", keys.spi_in, keys.keymat_in.bytes());
  put_direction("out", keys.spi_out, keys.keymat_out.bytes());
  return SecretBytes(std::span<const std::uint8_t>(buffer.bytes().first(size)));
}

}  // namespace espalier::tools
