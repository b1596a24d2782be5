// The socket of an IKE daemon, on the port where ESP in UDP has its sockets (RFC 3948 §2.2: the
// first four bytes of an IKE datagram are zero there).
//
// Nothing reaches it straight from the network. UDP GRO merges datagrams by address, port and
// length and looks at none of them, so a super-packet may hold both IKE and ESP; only who cuts it
// up can tell them apart, and that is the owner of the ESP sockets. It sends the IKE datagrams
// round the loopback device as IP packets (open_injector()), where a program on the port tells that
// they come from there. So the daemon has a plain UDP socket: recvfrom() gives one datagram and its
// real sender, sendto() sends from the port.
#pragma once

#include <cstdint>
#include <span>

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::ifaces {

// `receivers`: all the sockets of the port, as open_udp() made them, of workers 0, 1, …; `others`:
// how many more have joined them. Blocking, `mark` as SO_MARK (0: none). It has been found
// to work when this returns; throws std::system_error or std::runtime_error that says what does
// not.
[[nodiscard]] UniqueFd open_ike(const Endpoint& local, std::span<const UniqueFd> receivers,
                                unsigned others, std::uint32_t mark);

// A raw socket that takes whole IP packets and receives nothing. Throws std::system_error.
[[nodiscard]] UniqueFd open_injector(Family family);

}  // namespace espalier::ifaces
