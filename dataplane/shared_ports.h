// The UDP ports that are shared with IKE daemons (ifaces/shared_port.h). What an SA sends from such
// a port, and what arrives there, goes through the sockets here, whichever local address the SA
// has.
//
// Thread safety: the control thread.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "dataplane/socket_set.h"
#include "dataplane/workers.h"
#include "ifaces/shared_port.h"

namespace espalier::dataplane {

struct PortShare {
  explicit PortShare(unsigned workers) : steering(workers) {}
  OuterSocket receiver;
  ifaces::SharedPort steering;
  unsigned users = 0;  // outer sockets that it stands in for
};

class SharedPorts {
 public:
  explicit SharedPorts(const Workers& workers) : workers_(workers) {}
  SharedPorts(const SharedPorts&) = delete;
  SharedPorts& operator=(const SharedPorts&) = delete;

  // The one that has what is sent to `local`: its own before that of all addresses. Null: none.
  [[nodiscard]] PortShare* find(const ifaces::Endpoint& local) const noexcept;
  [[nodiscard]] PortShare* find_exact(const ifaces::Endpoint& local) const noexcept;
  // All others of the port must be let_share()d. Throws std::system_error.
  PortShare& open(const ifaces::Endpoint& local);
  // From now on `socket` sends and receives through `share`. What it had itself is to be closed.
  void lead(OuterSocket& socket, PortShare& share) const;
  static void leave(OuterSocket& socket) noexcept;
  [[nodiscard]] std::set<std::uint16_t> ports() const;
  // Gives those up that have neither a user nor an IKE daemon: the port is the host's again.
  void tidy();

 private:
  void open_sockets(PortShare& share) const;
  void close(PortShare& share) const;

  const Workers& workers_;
  std::vector<std::unique_ptr<PortShare>> shares_;
};

}  // namespace espalier::dataplane
