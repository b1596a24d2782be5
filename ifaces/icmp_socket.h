// Raw ICMP and ICMPv6 sockets: errors go out, "too big" reports come in.
#pragma once

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::ifaces {

// Non-blocking, not bound: the kernel chooses the source address of what is sent as it does for its
// own errors, by the route to whom it goes. Receives nothing, or with `reports` the messages that a
// packet was too big (type 3, of which code 4 counts; ICMPv6 type 2). Needs CAP_NET_RAW; throws
// std::system_error.
[[nodiscard]] UniqueFd open_icmp(Family family, bool reports);

}  // namespace espalier::ifaces
