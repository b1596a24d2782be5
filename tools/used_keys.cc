#include "tools/used_keys.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <string_view>
#include <system_error>

#include "tools/sha256.h"

namespace espalier::tools {
namespace {

constexpr std::size_t kDigits = 32;
constexpr std::size_t kLine = kDigits + 1;

// What is whole of it; of a line behind what was cut off, too.
std::string lines_in(std::string_view text) {
  std::string lines;
  for (std::size_t end = 0; (end = text.find('\n', end)) != std::string_view::npos; ++end) {
    if (end < kDigits) continue;
    const std::string_view name = text.substr(end - kDigits, kDigits);
    if (name.find_first_not_of("0123456789abcdef") == std::string_view::npos)
      lines.append(name).append("\n");
  }
  return lines;
}

}  // namespace

UsedKeys::Name UsedKeys::name_of(std::span<const std::uint8_t> keymat) {
  return sha256_hex({bytes_of("espalier used key"), keymat}).substr(0, kDigits);
}

void UsedKeys::fail(const char* what) const {
  throw std::runtime_error(file_.string() + ": " + what + ": " +
                           std::generic_category().message(errno) +
                           "; without it a key could be used twice: make its folder writable, or "
                           "write state-dir in the configuration");
}

void UsedKeys::open() {
  if (fd_) return;
  std::error_code ignored;
  std::filesystem::create_directories(file_.parent_path(), ignored);
  ifaces::UniqueFd fd(::open(file_.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW,
                             S_IRUSR | S_IWUSR));
  if (!fd) fail("open");
  fd_ = std::move(fd);
  try {
    std::size_t size = 0;
    const std::string read = read_last(size);
    // A line that a crash has cut off named a key that no SA has had.
    const std::string text = lines_in(read);
    lines_ = text.size() / kLine;
    if (read.size() < size || !std::string_view(read).starts_with(text))
      replace(text);
    else if (text.size() < size)
      cut(text.size());
    for (std::size_t at = 0; at < text.size(); at += kLine)
      from_before_.insert(text.substr(at, kDigits));
  } catch (...) {
    fd_.reset(-1);
    throw;
  }
}

std::string UsedKeys::read_last(std::size_t& size) const {
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0 || !S_ISREG(status.st_mode)) fail("not a file");
  size = static_cast<std::size_t>(status.st_size);
  std::string text(std::min(size, kMost * kLine), '\0');
  const auto from = static_cast<off_t>(size - text.size());
  for (std::size_t got = 0; got < text.size();) {
    const ssize_t n =
        ::pread(fd_.get(), &text[got], text.size() - got, from + static_cast<off_t>(got));
    if (n <= 0) fail("read");
    got += static_cast<std::size_t>(n);
  }
  return text;
}

void UsedKeys::cut(std::size_t size) const {
  if (::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) fail("truncate");
}

// In one step: at no moment is there less.
void UsedKeys::replace(const std::string& text) {
  const std::string next = file_.string() + ".new";
  static_cast<void>(::unlink(next.c_str()));
  ifaces::UniqueFd fd(::open(next.c_str(),
                             O_RDWR | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC | O_NOFOLLOW,
                             S_IRUSR | S_IWUSR));
  if (!fd || ::write(fd.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      ::fdatasync(fd.get()) != 0 || ::rename(next.c_str(), file_.c_str()) != 0)
    fail("write");
  fd_ = std::move(fd);
  lines_ = text.size() / kLine;
}

bool UsedKeys::is_from_before(const Name& name) {
  open();
  return from_before_.contains(name);
}

void UsedKeys::add(const std::vector<Name>& names, Sync sync) {
  if (names.empty()) return;
  open();
  if (lines_ >= 2 * kMost) {
    std::size_t size = 0;
    replace(lines_in(read_last(size)));
  }
  std::string text;
  for (const Name& name : names) text.append(name).append("\n");
  const ssize_t written = ::write(fd_.get(), text.data(), text.size());
  if (written != static_cast<ssize_t>(text.size())) {
    const int why = written < 0 ? errno : ENOSPC;
    // What comes next is to be a line.
    if (written > 0) cut(static_cast<std::size_t>(::lseek(fd_.get(), 0, SEEK_CUR) - written));
    errno = why;
    fail("write");
  }
  lines_ += names.size();
  if (sync == Sync::now && ::fdatasync(fd_.get()) != 0) fail("write");
}

void UsedKeys::in_use(const std::vector<Name>& names) noexcept {
  for (const Name& name : names) from_before_.erase(name);
}

}  // namespace espalier::tools
