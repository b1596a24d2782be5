// The UDP sockets on which the command's IKE daemons have set UDP_ENCAP. espalierd keeps no copy of
// one: it would live on when its daemon has ended. So whoever comes after espalierd gets them again
// from here; here, too, nothing is kept but where to find them.
//
// Thread safety: the supervisor's thread.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <vector>

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::tools {

class NattSockets {
 public:
  explicit NattSockets(std::filesystem::path daemon) : daemon_(std::move(daemon)) {}

  // `number`: of the descriptor in its process, of which `socket` is a copy. Returns 0 or an errno.
  [[nodiscard]] int hand_over(pid_t process, int number, const ifaces::UniqueFd& socket);
  // Was it handed over?
  [[nodiscard]] bool has(const ifaces::UniqueFd& socket) const noexcept;
  // espalierd has a port that `socket` is about to be bound to, and would let it in.
  [[nodiscard]] bool may_share(const ifaces::Endpoint& local) const;

  // Readable when espalierd has gone; -1: nothing to watch.
  [[nodiscard]] int link() const noexcept { return link_.get(); }
  void lose_daemon() noexcept { link_.reset(-1); }
  // There are sockets, and nobody has them.
  [[nodiscard]] bool waits() const noexcept { return !known_.empty() && !link_; }
  // Forgets those that are closed and hands the others over, if espalierd is there.
  void look_for_daemon();

 private:
  struct Known {
    pid_t process;
    int number;
    std::uint64_t cookie;
  };
  [[nodiscard]] int tell(pid_t process, int socket);

  std::filesystem::path daemon_;
  ifaces::UniqueFd link_;
  std::vector<Known> known_;
};

}  // namespace espalier::tools
