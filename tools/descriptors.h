// Descriptors beside the bytes of a Unix socket (SCM_RIGHTS, unix(7)).
#pragma once

#include <sys/types.h>

#include <span>
#include <vector>

#include "ifaces/unique_fd.h"

namespace espalier::tools {

// Like send(), with MSG_NOSIGNAL; `descriptor` goes beside the first byte, unless it is -1.
ssize_t send_with(int socket, std::span<const char> bytes, int descriptor, int flags = 0) noexcept;

// Like recv(), with the descriptors that came along, close-on-exec. At most kMostDescriptors are
// taken; the kernel closes the others.
inline constexpr std::size_t kMostDescriptors = 4;
ssize_t receive_with(int socket, std::span<char> bytes, std::vector<ifaces::UniqueFd>& descriptors,
                     int flags = 0);

}  // namespace espalier::tools
