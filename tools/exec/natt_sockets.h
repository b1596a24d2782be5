// The UDP sockets on which the command's IKE daemons have set UDP_ENCAP. espalierd keeps no copy of
// one: it would live on when its daemon has ended. So whoever comes after espalierd gets them again
// from here; here, too, nothing is kept but where to find them.
//
// Thread safety: the supervisor's thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::tools {

class NattSockets {
 public:
  explicit NattSockets(std::filesystem::path daemon) : daemon_(std::move(daemon)) {}

  // `number`: of the descriptor in its process, of which `socket` is a copy. Returns 0 or an errno;
  // what espalierd can do only later is done then, by look_for_daemon().
  [[nodiscard]] int hand_over(pid_t process, int number, const ifaces::UniqueFd& socket);
  // Was it handed over?
  [[nodiscard]] bool has(const ifaces::UniqueFd& socket) const noexcept;
  // espalierd has a port that `socket` is about to be bound to, and would let it in.
  [[nodiscard]] bool may_share(const ifaces::Endpoint& local) const;

  // Readable when espalierd has gone; -1: nothing to watch.
  [[nodiscard]] int link() const noexcept { return link_.get(); }
  void lose_daemon() noexcept;
  // Forgets those that are closed and hands over those that nobody has, if espalierd is there; it
  // is asked less and less often for one that it refuses.
  void look_for_daemon();
  // Until that should be called again; none: everything is handed over.
  [[nodiscard]] std::optional<std::chrono::milliseconds> next_try() const noexcept;

 private:
  using Clock = std::chrono::steady_clock;
  struct Known {
    pid_t process;
    int number;
    std::uint64_t cookie;
    bool is_given;
    std::chrono::milliseconds pause{};  // after a refusal
    Clock::time_point next{};
  };
  static void note(Known& known, int error) noexcept;
  [[nodiscard]] int tell(pid_t process, int socket);

  std::filesystem::path daemon_;
  ifaces::UniqueFd link_;
  std::vector<Known> known_;
};

}  // namespace espalier::tools
