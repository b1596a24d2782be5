#include "tools/unix_listener.h"

#include <fcntl.h>
#include <grp.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

sockaddr_un address_of(const std::filesystem::path& path, const std::string& what) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string& text = path.native();
  if (text.size() >= sizeof address.sun_path)
    throw std::runtime_error(what + " " + text + ": longer than the " +
                             std::to_string(sizeof address.sun_path - 1) +
                             " bytes of a socket's path; choose a shorter one");
  std::memcpy(address.sun_path, text.data(), text.size());
  return address;
}

UniqueFd unix_socket(int type) {
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) fail("socket AF_UNIX");
  return fd;
}

UniqueFd spare() {
  return UniqueFd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
}

int with_address(int (*call)(int, const sockaddr*, socklen_t), int fd, const sockaddr_un& address) {
  return call(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
}

void clear_stale(const std::filesystem::path& path, int type, const std::string& what,
                 const sockaddr_un& address) {
  const std::string name = what + " " + path.string();
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return;
    fail("lstat " + path.string());
  }
  if (!S_ISSOCK(st.st_mode))
    throw std::runtime_error(name + ": something else is there; move it, or choose another path");
  const UniqueFd probe = unix_socket(type);
  if (with_address(::connect, probe.get(), address) == 0 || errno == EAGAIN)
    throw std::runtime_error(name +
                             ": already running, a daemon answers there; stop it, or choose "
                             "another path");
  if (errno != ECONNREFUSED) fail("connect " + path.string());
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail("unlink " + path.string());
}

UniqueFd lock_directory(const std::filesystem::path& directory) {
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) fail("open " + directory.string());
  for (int tries = 0; ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0; ++tries) {
    if (errno != EWOULDBLOCK || tries == 100) fail("flock " + directory.string());
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return fd;
}

// Those beside its first group. The kernel says how many if there is no room.
std::vector<gid_t> groups_of(int fd) {
  std::vector<gid_t> groups(32);
  for (;;) {
    auto length = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
    const int result = ::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &length);
    if (result != 0 && errno != ERANGE) return {};
    const bool complete = result == 0;
    groups.resize(length / sizeof(gid_t));
    if (complete) return groups;
  }
}

}  // namespace

UnixListener::UnixListener(std::filesystem::path path, int type, std::size_t backlog,
                           const std::string& what, std::optional<gid_t> group)
    : path_(std::move(path)), group_(group), spare_(spare()) {
  const sockaddr_un address = address_of(path_, what);
  std::filesystem::path directory = path_.parent_path();
  if (directory.empty()) directory = ".";
  // Who may not read it cannot lock it against us; to connect needs no more.
  if (std::filesystem::create_directories(directory) &&
      ::chmod(directory.c_str(), S_IRWXU | S_IXGRP | S_IXOTH) != 0)
    fail("chmod " + directory.string());
  const UniqueFd lock = lock_directory(directory);
  clear_stale(path_, type, what, address);

  listen_ = unix_socket(type);
  // Before bind, so that the file never exists with another mode.
  if (::fchmod(listen_.get(), S_IRUSR | S_IWUSR) != 0) fail("fchmod " + path_.string());
  if (with_address(::bind, listen_.get(), address) != 0) fail("bind " + path_.string());
  struct stat st {};
  if (::lstat(path_.c_str(), &st) == 0) inode_ = st.st_ino;
  if (group_ && (::lchown(path_.c_str(), static_cast<uid_t>(-1), *group_) != 0 ||
                 ::chmod(path_.c_str(), S_IRUSR | S_IWUSR | S_IRGRP | S_IWGRP) != 0))
    fail("chown " + path_.string());
  if (::listen(listen_.get(), static_cast<int>(backlog)) != 0) fail("listen " + path_.string());
}

UnixListener::~UnixListener() {
  struct stat st {};
  if (::lstat(path_.c_str(), &st) == 0 && st.st_ino == inode_) ::unlink(path_.c_str());
}

void UnixListener::judge(Caller& caller) const {
  const int fd = caller.fd.get();
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return;
  caller.trusted = caller.allowed = peer.uid == 0 || peer.uid == ::geteuid();
  if (caller.allowed || !group_) return;
  const std::vector<gid_t> groups = groups_of(fd);
  caller.allowed =
      peer.gid == *group_ || std::find(groups.begin(), groups.end(), *group_) != groups.end();
}

std::optional<UnixListener::Caller> UnixListener::accept() {
  const auto next = [this] {
    return UniqueFd(::accept4(listen_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  };
  if (!spare_) spare_ = spare();
  UniqueFd fd = next();
  if (fd) {
    Caller caller;
    caller.fd = std::move(fd);
    judge(caller);
    return caller;
  }
  if (errno != EMFILE && errno != ENFILE) return std::nullopt;
  // Another thread may have been quicker when it was to be opened again.
  constexpr std::chrono::milliseconds kPause{10};
  if (!spare_) std::this_thread::sleep_for(kPause);
  spare_.reset(-1);
  fd = next();
  fd.reset(-1);
  spare_ = spare();
  return std::nullopt;
}

gid_t group_id(const std::string& name) {
  // One thread calls it, before there are others.
  const group* const found = ::getgrnam(name.c_str());  // NOLINT(concurrency-mt-unsafe)
  if (found == nullptr)
    throw std::runtime_error("group '" + name +
                             "': there is none of that name; make it (groupadd " + name +
                             "), or leave the option out");
  return found->gr_gid;
}

}  // namespace espalier::tools
