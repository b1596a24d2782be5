// A Unix socket that the daemon listens on, and who may call there. Its file:
//   - takes the place of one that a dead daemon left, never that of a live one (a lock of the
//     directory keeps two that start at once apart);
//   - exists with no other mode than 0600, or 0660 for a group;
//   - is removed at the end, if it is still the one that was made.
//
// Thread safety: one thread.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>

#include "ifaces/unique_fd.h"

namespace espalier::tools {

class UnixListener {
 public:
  // `type`: SOCK_STREAM or SOCK_SEQPACKET. `what` begins the errors. `group`: may call as well.
  // Throws std::runtime_error if a daemon lives there or something else is in the way,
  // std::system_error if a system call fails (named).
  UnixListener(std::filesystem::path path, int type, std::size_t backlog, const std::string& what,
               std::optional<gid_t> group);
  ~UnixListener();
  UnixListener(const UnixListener&) = delete;
  UnixListener& operator=(const UnixListener&) = delete;

  // Readable when somebody calls.
  [[nodiscard]] int fd() const noexcept { return listen_.get(); }

  struct Caller {
    ifaces::UniqueFd fd;   // non-blocking
    bool allowed = false;  // root, the daemon's own user, or of the group: by the kernel's word
    bool trusted = false;  // one of the first two: keys may be shown
  };
  // Empty: nobody waits. Out of descriptors, who waits is turned away: epoll would report him for
  // ever.
  [[nodiscard]] std::optional<Caller> accept();

 private:
  void judge(Caller& caller) const;

  std::filesystem::path path_;
  std::optional<gid_t> group_;
  ino_t inode_ = 0;
  ifaces::UniqueFd listen_;
  ifaces::UniqueFd spare_;  // given up for a moment when there is no other descriptor
};

// Of the group database. Throws std::runtime_error if there is none of that name.
[[nodiscard]] gid_t group_id(const std::string& name);

}  // namespace espalier::tools
