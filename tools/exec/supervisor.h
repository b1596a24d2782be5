// Answers the trapped system calls of a command (filter.h) for as long as anything of it runs.
//
//   socket(NETLINK_XFRM)            a Relay in its place
//   bind, getsockname, SOL_NETLINK  on a Relay: what the kernel would say
//   UDP_ENCAP                       espalierd shares the socket's port, and takes the ESP from it
//   bind(UDP)                       to a port that espalierd has: it lets an IKE daemon in
//   socket(NETLINK_ROUTE)           a real one, with a descriptor that the filter knows
//   RTM_NEWLINK of a vti or xfrm    espalierd makes the device, the kernel does the rest
//   SIOCADDTUNNEL and its like      the same
//
// Everything else goes on as it was. Thread safety: one thread.
#pragma once

#include <linux/seccomp.h>
#include <poll.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>

#include "ifaces/unique_fd.h"
#include "tools/exec/keeper.h"
#include "tools/exec/natt_sockets.h"
#include "tools/exec/process.h"
#include "tools/exec/relay.h"

namespace espalier::tools {

using Arguments = std::span<const __u64>;  // the six of a system call

class Supervisor {
 public:
  Supervisor(ifaces::UniqueFd listener, std::filesystem::path control);

  // Until nothing that has the filter is left.
  void run();

 private:
  // What becomes of a call: goes on in the kernel, or ends with a value or an errno.
  struct Verdict {
    bool go_on = true;
    int error = 0;
    std::int64_t value = 0;
  };
  static Verdict done(std::int64_t value = 0) noexcept { return {false, 0, value}; }
  static Verdict failed(int error) noexcept { return {false, error, 0}; }
  static Verdict native() noexcept { return {}; }

  void serve_call();
  [[nodiscard]] bool still_waiting(const seccomp_notif& call) const noexcept;
  // True if the call has been answered.
  bool make_socket(const seccomp_notif& call);
  [[nodiscard]] bool give(const seccomp_notif& call, int fd, int wanted, bool close_on_exec);
  [[nodiscard]] Verdict judge(const seccomp_notif& call);
  [[nodiscard]] Verdict on_bind(const Process& process, Relay& relay, Arguments a);
  [[nodiscard]] static Verdict on_getsockname(const Process& process, const Relay& relay,
                                              Arguments a);
  [[nodiscard]] static Verdict on_option(const Process& process, Relay& relay, Arguments a);
  [[nodiscard]] Verdict on_udp_bind(const Process& process, const ifaces::UniqueFd& socket,
                                    Arguments a) const;
  [[nodiscard]] Verdict on_udp_option(const Process& process, const ifaces::UniqueFd& copy,
                                      Arguments a);
  [[nodiscard]] Verdict on_send(const Process& process, const ifaces::UniqueFd& socket, int call,
                                Arguments a) const;
  [[nodiscard]] Verdict on_tunnel(const Process& process, Arguments a) const;
  [[nodiscard]] Relay* relay_of(const ifaces::UniqueFd& socket) noexcept;
  void serve_relays(std::span<const pollfd> ready);
  // Milliseconds until the daemon is to be looked for again; -1: it is there.
  [[nodiscard]] int look_for_daemon();
  [[nodiscard]] bool is_keeper() const noexcept;
  // False: it is not there.
  [[nodiscard]] bool give_back();

  ifaces::UniqueFd listener_;
  std::filesystem::path control_, xfrm_;
  std::map<std::uint64_t, std::unique_ptr<Relay>> relays_;  // by the cookie of the command's end
  NattSockets natt_;
  std::chrono::steady_clock::time_point keep_from_;
  Keeper keeper_;
  std::uint32_t next_portid_ = 0;
  int next_route_ = 0;
};

}  // namespace espalier::tools
