// The state file: five lines of text and their SHA-256, replaced whole (write, fsync, rename, fsync
// of the folder), so that a power cut leaves the old one or the new one.

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <system_error>

#include "ifaces/unique_fd.h"
#include "tools/config.h"
#include "tools/keys.h"
#include "tools/sha256.h"

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;
using std::filesystem::path;

constexpr std::string_view kMakeFreshKeys =
    "make fresh keys for both gateways with `espalier keygen`";
constexpr mode_t kMode = S_IRUSR | S_IWUSR;

struct Numbers {
  std::uint64_t next = 1;
  std::uint64_t received = 0;
};

[[noreturn]] void refuse_state(const path& file, const std::string& text) {
  throw ConfigError(file.string() + ": " + text);
}

[[noreturn]] void throw_errno(const std::string& call, const path& file) {
  throw std::system_error(errno, std::generic_category(), call + " " + file.string());
}

// `owner` is the fingerprint; in a witness with the boot's id behind it.
std::string render(std::string_view owner, const Numbers& n) {
  std::string text = "espalier-state 1\nowner " + std::string(owner) + "\nnext " +
                     std::to_string(n.next) + "\nreceived " + std::to_string(n.received) + "\n";
  return text + "check " + sha256_hex({bytes_of(text)}) + "\n";
}

// The rest of the line that starts with `word`; steps over it. Empty: it does not.
std::optional<std::string_view> take(std::string_view& text, std::string_view word) {
  const auto end = text.find('\n');
  if (end == std::string_view::npos || !text.starts_with(word)) return std::nullopt;
  const std::string_view value = text.substr(word.size(), end - word.size());
  text.remove_prefix(end + 1);
  return value;
}

std::optional<std::uint64_t> take_number(std::string_view& text, std::string_view word) {
  const auto value = take(text, word);
  if (!value) return std::nullopt;
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(value->data(), value->data() + value->size(), number);
  if (error != std::errc() || end != value->data() + value->size()) return std::nullopt;
  return number;
}

// Empty: damaged.
std::optional<Numbers> parse(std::string_view whole, std::string& owner) {
  std::string_view text = whole;
  const auto version = take(text, "espalier-state ");
  const auto name = take(text, "owner ");
  const auto next = take_number(text, "next ");
  const auto received = take_number(text, "received ");
  const std::size_t checked = whole.size() - text.size();
  const auto check = take(text, "check ");
  if (!version || *version != "1" || !name || !next || *next == 0 || !received || !check ||
      !text.empty() || *check != sha256_hex({bytes_of(whole.substr(0, checked))}))
    return std::nullopt;
  owner = *name;
  return Numbers{*next, *received};
}

// Throws std::system_error; nullopt if there is no such file.
std::optional<std::string> read_small(const path& file) {
  const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd && errno == ENOENT) return std::nullopt;
  if (!fd) throw_errno("open", file);
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) throw_errno("fstat", file);
  errno = EINVAL;
  if (!S_ISREG(status.st_mode)) throw_errno("not a regular file:", file);
  // Who may change it may make an IV repeat.
  errno = EPERM;
  if ((status.st_mode & (S_IWGRP | S_IWOTH)) != 0 ||
      (status.st_uid != 0 && status.st_uid != ::geteuid()))
    throw_errno("others may change", file);
  constexpr std::size_t kLargest = 1024;
  std::array<char, kLargest> buffer{};
  std::size_t size = 0;
  while (size < buffer.size()) {
    const ssize_t n = ::read(fd.get(), buffer.data() + size, buffer.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("read", file);
    if (n == 0) break;
    size += static_cast<std::size_t>(n);
  }
  return std::string(buffer.data(), size);
}

void write_all(int fd, std::string_view text, const path& file) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_errno("write", file);
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

enum class Durable : std::uint8_t { no, yes };

void sync_folder(const path& file) {
  const path folder = file.has_parent_path() ? file.parent_path() : path(".");
  const UniqueFd fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) throw_errno("open", folder);
  if (::fsync(fd.get()) != 0) throw_errno("fsync", folder);
}

// After a throw the old file is whole, or the new one is in its place and perhaps not yet durable.
void replace(const path& file, std::string_view text, Durable durable) {
  path temporary = file;
  temporary += ".new";
  ::unlink(temporary.c_str());  // what a killed daemon left behind
  try {
    const UniqueFd fd(
        ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, kMode));
    if (!fd) throw_errno("open", temporary);
    write_all(fd.get(), text, temporary);
    if (durable == Durable::yes && ::fsync(fd.get()) != 0) throw_errno("fsync", temporary);
    if (::rename(temporary.c_str(), file.c_str()) != 0) throw_errno("rename", file);
  } catch (const std::system_error&) {
    ::unlink(temporary.c_str());
    throw;
  }
  if (durable == Durable::yes) sync_folder(file);
}

// Held until closed; a separate file, because the state file is replaced each time.
UniqueFd lock(const path& file, const path& state) {
  path name = file;
  name += ".lock";
  UniqueFd fd(::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, kMode));
  if (!fd) throw_errno("open", name);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) throw_errno("flock", name);
    refuse_state(state, "another espalierd is using these keys; stop it first");
  }
  return fd;
}

// Tells one boot from the next. Where the kernel does not say, every boot looks the same; then a
// witness that outlived its boot can only refuse too much.
std::string boot_id() {
  const UniqueFd fd(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  std::array<char, 36> id{};
  if (!fd || ::read(fd.get(), id.data(), id.size()) != static_cast<ssize_t>(id.size()))
    return "unknown";
  return std::string(id.data(), id.size());
}

}  // namespace

struct SequenceState::State {
  path file, witness;
  std::string fingerprint, witness_owner;
  UniqueFd file_lock, witness_lock;
  std::uint64_t first = 1;  // of this life: never given back below
  Numbers now;

  // Fresh keys may have been put in the place of these, with their own state file, and the daemon
  // not yet been told: theirs must not be overwritten.
  [[nodiscard]] bool replaced() const {
    std::string owner;
    const auto text = read_small(file);
    return text && parse(*text, owner) && owner != fingerprint;
  }

  // The state file first: a witness ahead of it would say that numbers were used which never were.
  void store(const Numbers& n) {
    if (replaced())
      refuse_state(file, "belongs to other keys now; reload espalierd (SIGHUP) to use them");
    replace(file, render(fingerprint, n), Durable::yes);
    replace(witness, render(witness_owner, n), Durable::no);
    now = n;
  }

  void read_file() {
    const auto text = read_small(file);
    if (!text)
      refuse_state(file,
                   "the state file of these keys is missing, so it is not known which IVs "
                   "were used; " +
                       std::string(kMakeFreshKeys));
    std::string owner;
    const auto numbers = parse(*text, owner);
    if (!numbers) refuse_state(file, "is damaged; " + std::string(kMakeFreshKeys));
    if (owner != fingerprint)
      refuse_state(file, "belongs to other keys; put the state file of these keys there, or " +
                             std::string(kMakeFreshKeys));
    now = *numbers;
  }

  void read_witness() {
    const auto text = read_small(witness);
    if (!text) return;
    std::string owner;
    const auto numbers = parse(*text, owner);
    if (!numbers)
      refuse_state(witness, "is damaged, so it is not known which IVs were used; " +
                                std::string(kMakeFreshKeys));
    if (owner != witness_owner) return;  // of an earlier boot
    if (now.next < numbers->next)
      refuse_state(file,
                   "is older than what was handed out since this machine started (a restored "
                   "copy?), so IVs would repeat; " +
                       std::string(kMakeFreshKeys));
    now.received = std::max(now.received, numbers->received);
  }
};

SequenceState::SequenceState(const path& file, const path& witness_dir,
                             const std::string& fingerprint)
    : state_(std::make_unique<State>()) {
  State& s = *state_;
  s.file = file;
  s.fingerprint = fingerprint;
  s.witness = witness_dir / fingerprint;
  s.witness_owner = fingerprint + " " + boot_id();
  try {
    s.read_file();  // before anything is made: a refusal leaves nothing behind
    s.file_lock = lock(file, file);
    std::filesystem::create_directories(witness_dir);
    s.witness_lock = lock(s.witness, file);
    s.read_file();  // again: it is ours only since we hold the locks
    s.read_witness();
    s.first = s.now.next;
    s.store(s.now);  // whatever makes writing impossible shows now, not under traffic
  } catch (const std::system_error& e) {
    refuse_state(file, std::string("cannot be used: ") + e.what() +
                           "; the folders of the state file and of its witness must be ours to "
                           "write");
  }
}

SequenceState::SequenceState(SequenceState&&) noexcept = default;
SequenceState& SequenceState::operator=(SequenceState&&) noexcept = default;
SequenceState::~SequenceState() = default;

std::uint64_t SequenceState::next() const noexcept {
  return state_->now.next;
}
std::uint64_t SequenceState::received() const noexcept {
  return state_->now.received;
}

void SequenceState::reserve(std::uint64_t next) {
  if (next <= state_->now.next) return;
  state_->store({next, state_->now.received});
}

void SequenceState::record_received(std::uint64_t received) {
  if (received <= state_->now.received) return;
  state_->store({state_->now.next, received});
}

void SequenceState::close(std::uint64_t next, std::uint64_t received) {
  State& s = *state_;
  const Numbers last{std::max(s.first, next), std::max(s.now.received, received)};
  // The other way round than store(): the number may go down here.
  if (!s.replaced()) {
    replace(s.witness, render(s.witness_owner, last), Durable::no);
    replace(s.file, render(s.fingerprint, last), Durable::yes);
    s.now = last;
  }
  s.witness_lock.reset(-1);
  s.file_lock.reset(-1);
}

void SequenceState::create(const path& file, const std::string& fingerprint) {
  const UniqueFd fd(
      ::open(file.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, kMode));
  if (!fd) throw_errno("open", file);
  try {
    write_all(fd.get(), render(fingerprint, {}), file);
    if (::fsync(fd.get()) != 0) throw_errno("fsync", file);
    sync_folder(file);
  } catch (const std::system_error&) {
    ::unlink(file.c_str());
    throw;
  }
}

}  // namespace espalier::tools
