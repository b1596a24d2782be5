// Between `espalier exec` and espalierd: a Unix SEQPACKET connection stands for one NETLINK_XFRM
// socket. It carries netlink datagrams both ways, and the messages below, whose types lie under
// NLMSG_MIN_TYPE where netlink has none of its own.
#pragma once

#include <linux/netlink.h>

#include <array>
#include <chrono>
#include <cstdint>
#include <filesystem>

#include "ifaces/unique_fd.h"

namespace espalier::tools::front {

inline constexpr std::uint32_t kVersion = 1;
// A daemon that adds very many states, or takes them back, on a busy machine answers late: one that
// is taken for dead would cost a command its request.
inline constexpr std::chrono::seconds kPatience{20};
inline constexpr std::size_t kMaxMessage = 65536;  // bytes of one datagram

inline constexpr std::uint16_t kState = 8;  // first of all, and whenever it changes
inline constexpr std::uint16_t kNatt = 9;   // with one descriptor: a UDP socket that set UDP_ENCAP
inline constexpr std::uint16_t kBind = 10;  // may a UDP socket be bound to `name` beside ours?

// From one who will hold what the daemon keeps (tools/keep.h), with the descriptor of what it holds
// already, if any. The answer has that of what is to be held from now on; `groups` of it says how
// many kHold follow. The same may come again, unasked. EPERM: nothing is given to this user.
inline constexpr std::uint16_t kKeep = 11;
inline constexpr std::uint16_t kHold = 12;  // with a descriptor: hold it; without: no longer

inline constexpr std::uint32_t kExtAck = 1;  // NETLINK_EXT_ACK
inline constexpr std::uint32_t kCapAck = 2;  // NETLINK_CAP_ACK

// Answered by the same message with `error` set (0, or an errno). What was said takes effect before
// the answer.
struct Message {
  nlmsghdr header;
  std::uint32_t version;
  std::uint32_t pid;     // of the process that made the socket
  std::uint32_t portid;  // what replies carry in nlmsg_pid
  std::uint32_t groups;  // multicast groups, bit N-1 for group N
  std::uint32_t flags;
  std::int32_t error;
  std::array<std::uint8_t, 28> name;  // kBind: a sockaddr_in or sockaddr_in6
};

struct Hold {
  nlmsghdr header;
  std::array<char, 16> device;
};

// A connection to the daemon; empty if there is none, or its backlog stays full.
[[nodiscard]] ifaces::UniqueFd dial(const std::filesystem::path& path) noexcept;

// The XFRM socket of a daemon lies beside its control socket.
[[nodiscard]] inline std::filesystem::path socket_path(const std::filesystem::path& control) {
  return control.parent_path() / "xfrm.sock";
}

}  // namespace espalier::tools::front
