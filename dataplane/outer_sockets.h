// The outer sockets: one for each local end point that an SA has, for as long as one has it, and
// what leads IKE's datagrams from there to an IKE daemon.
//
// Thread safety: the control thread.
#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <vector>

#include "dataplane/shared_ports.h"
#include "dataplane/socket_set.h"
#include "dataplane/workers.h"

namespace espalier::dataplane {

class OuterSockets {
 public:
  // `udp_gso`: use it where the kernel has it.
  OuterSockets(const Workers& workers, bool udp_gso)
      : workers_(workers), udp_gso_(udp_gso), shared_(workers) {}
  OuterSockets(const OuterSockets&) = delete;
  OuterSockets& operator=(const OuterSockets&) = delete;

  // Opens it if need be; counts one user more. Throws std::system_error.
  [[nodiscard]] OuterSocket& use(Encapsulation encapsulation, const ifaces::Endpoint& local);
  // One user less; the last one closes it.
  void release(OuterSocket& socket);

  // As in Dataplane::ike_socket.
  [[nodiscard]] int ike_socket(const ifaces::Endpoint& local, std::uint32_t mark);

  // As in Dataplane.
  void share_port(int fd);
  [[nodiscard]] bool may_share(const ifaces::Endpoint& local);
  [[nodiscard]] std::set<std::uint16_t> udp_ports() const;
  // To be called about once a second.
  void tidy() { shared_.tidy(); }

  // Do routers' reports about what it sent arrive here?
  [[nodiscard]] bool hears(const OuterSocket& socket) const noexcept {
    return workers_.front().hears(socket.local.address.family);
  }

 private:
  void open(OuterSocket& socket) const;
  void open_sender(OuterSocket& socket) const;
  void open_ike(OuterSocket& socket, std::uint32_t mark) const;
  PortShare& share(const ifaces::Endpoint& local);

  const Workers& workers_;
  bool udp_gso_;
  std::vector<std::unique_ptr<OuterSocket>> sockets_;
  SharedPorts shared_;
};

}  // namespace espalier::dataplane
