// One NETLINK_XFRM socket of the command: a Unix socket in its place, relayed to espalierd.
//
// The command never sees an end of file (an IKE daemon would spin on it): while espalierd is away,
// requests are answered with ECONNREFUSED, and events go on when it is back.
#pragma once

#include <linux/netlink.h>

#include <cstdint>
#include <deque>
#include <filesystem>
#include <optional>
#include <span>

#include "crypto/secret.h"
#include "ifaces/unique_fd.h"
#include "tools/exec/front.h"

namespace espalier::tools {

class Relay {
 public:
  // Throws std::system_error. `pid`: of the command's process.
  Relay(std::filesystem::path daemon, std::uint32_t pid, std::uint32_t portid);

  // The command's end, to be handed over and then closed here.
  [[nodiscard]] ifaces::UniqueFd take_command_end() noexcept { return std::move(command_end_); }
  // Names the command's end, whatever descriptor it has there.
  [[nodiscard]] std::uint64_t cookie() const noexcept { return cookie_; }

  [[nodiscard]] int command_fd() const noexcept { return command_.get(); }
  [[nodiscard]] int daemon_fd() const noexcept { return daemon_.get(); }  // -1: away
  // Answers wait for the command to read: its end is to be watched for room, the daemon's not at
  // all, so that the daemon waits as well.
  [[nodiscard]] bool is_full() const noexcept { return !held_.empty(); }
  // To be called when there is room.
  void flush();
  [[nodiscard]] const front::Message& state() const noexcept { return state_; }

  // Changes what the daemon knows of the socket; effective when it returns, if the daemon is there.
  void set_name(std::uint32_t portid, std::uint32_t groups);
  void set_option(int option, int value);

  // To be called when the descriptor is readable. False: the command has closed its end.
  [[nodiscard]] bool from_command();
  void from_daemon();
  // True if the daemon is there, now or since before.
  bool connect();

 private:
  void tell_state();
  void forward(std::span<const std::uint8_t> bytes);
  void lose_daemon();
  void refuse(const nlmsghdr& request);
  // To the command, at once or, if it is an answer, later.
  void deliver(std::span<const std::uint8_t> bytes, bool is_answer);

  std::filesystem::path path_;
  ifaces::UniqueFd command_;      // our end of the pair
  ifaces::UniqueFd command_end_;  // its end
  ifaces::UniqueFd daemon_;
  std::uint64_t cookie_ = 0;
  front::Message state_{};
  std::optional<nlmsghdr> pending_;  // a request without its answer
  std::deque<crypto::SecretBytes> held_;
};

[[nodiscard]] front::Message front_message(std::uint16_t type, std::uint32_t pid);

// Over a connection of its own: sends `message`, with a descriptor unless it is -1, and puts the
// answer there. Returns the connection; none: no daemon.
[[nodiscard]] ifaces::UniqueFd converse(const std::filesystem::path& daemon,
                                        front::Message& message, int descriptor);

}  // namespace espalier::tools
