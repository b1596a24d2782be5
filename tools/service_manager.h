// Tells systemd, or who stands in its place, how far we are (sd_notify(3)).
#pragma once

#include <string_view>

namespace espalier::tools {

// One datagram to the socket that NOTIFY_SOCKET names; nothing if there is none, or nobody reads
// it. sd_notify(3) asks programs that need no more than this to do it themselves: libsystemd would
// bring a compressor or three into a process that holds keys.
void tell_service_manager(std::string_view state) noexcept;

}  // namespace espalier::tools
