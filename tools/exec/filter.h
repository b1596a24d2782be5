// Which system calls of the command are handed to the supervisor: a seccomp filter with user
// notification (Linux 5.14 for what is used here).
#pragma once

#include "ifaces/unique_fd.h"

namespace espalier::tools {

// NETLINK_ROUTE sockets are given descriptors from this block, so that the filter can tell their
// sends from all others.
inline constexpr int kRouteFirst = 896;
inline constexpr int kRouteCount = 64;

// Installs the filter in this process and what it starts; returns the descriptor that notifications
// are read from. Throws std::system_error.
[[nodiscard]] ifaces::UniqueFd install_filter();

}  // namespace espalier::tools
