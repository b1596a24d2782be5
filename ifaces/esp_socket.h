// The outer sockets: UDP (NAT-T) and raw ESP, bound to one local address.
#pragma once

#include <cstdint>
#include <span>

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::ifaces {

// Which of several workers a socket belongs to: it receives the packets with
// SPI % workers == index. UDP does it by SO_REUSEPORT and a classic BPF program (bind in the order
// of the index), raw sockets by a filter each.
struct Shard {
  unsigned index = 0;
  unsigned workers = 1;
};

// What the kernel does about a packet that the path does not carry in one piece.
enum class Fragmenting : std::uint8_t {
  refuse_link,  // DF set; EMSGSIZE above the device's MTU only: somebody else watches the path
  refuse_path,  // DF set; EMSGSIZE above the path MTU that the kernel has heard of
  allow,        // no DF; the kernel fragments what the device does not take (IPv6: the path)
};

struct OuterOptions {
  std::uint32_t mark = 0;  // SO_MARK on what is sent; 0: none
  Fragmenting fragmenting = Fragmenting::refuse_path;
  // UDP: on a port that is shared with an IKE daemon (shared_port.h), whose program chooses the
  // receiver. Without an address: Received::local says where a packet was sent to.
  bool shared = false;
};

// Non-blocking, GRO on, TOS and traffic class reported, large buffers. Throws std::system_error
// that names the call and the address.
[[nodiscard]] UniqueFd open_udp(const Endpoint& local, Shard shard, OuterOptions options);
// May this process give its packets a mark? Throws std::system_error that says what it needs.
void check_mark(const IpAddress& local);
// Sends from the same address and port as `receivers` (all workers' open_udp) do, and receives
// nothing: whether DF is set is a property of a socket, not of a packet. `grouped`: several sockets
// have the port already, and a program that chooses among them. Throws as above.
[[nodiscard]] UniqueFd open_udp_sender(const Endpoint& local, std::span<const UniqueFd> receivers,
                                       bool grouped, OuterOptions options);
// Does this kernel take UDP_SEGMENT? Most segments of one send: 0 (no), 64, or 128 (Linux 6.9).
[[nodiscard]] unsigned probe_udp_gso(const IpAddress& local);

// IPPROTO_ESP; IPv4 receives with the IP header in front, IPv6 without. Throws as above.
[[nodiscard]] UniqueFd open_raw_esp(const IpAddress& local, Shard shard, OuterOptions options);
// The same for sending only.
[[nodiscard]] UniqueFd open_raw_esp_sender(const IpAddress& local, OuterOptions options);

// The largest IP packet that the route from `local` to `remote` takes now: device, route and path
// MTU, as the kernel itself would use it. Throws std::system_error if there is no route.
[[nodiscard]] unsigned outer_mtu(const IpAddress& local, const IpAddress& remote);

}  // namespace espalier::ifaces
