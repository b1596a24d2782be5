// An outer socket, shared by all SAs of one local end point: a descriptor for each worker.
#pragma once

#include <sys/socket.h>

#include <atomic>
#include <vector>

#include "dataplane/inner.h"
#include "dataplane/types.h"
#include "ifaces/engine.h"
#include "ifaces/unique_fd.h"

namespace espalier::dataplane {

struct PortShare;

struct OuterSocket {
  Encapsulation encapsulation{};
  ifaces::Endpoint local;
  AddressWords local_words{};
  bool any = false;                   // `local` has no address: packets say where they were sent to
  unsigned users = 0;                 // SAs; control thread
  unsigned gso_segments = 0;          // most datagrams of one send; 0: no UDP GSO
  std::vector<ifaces::UniqueFd> fds;  // one a worker
  std::vector<ifaces::Port> ports;    // in each worker's engine

  // UDP: the socket that an IKE daemon has taken, and what leads its datagrams there.
  ifaces::UniqueFd ike;
  std::vector<ifaces::UniqueFd> injector_fds;
  std::vector<ifaces::Port> injectors;
  std::atomic<bool> has_ike{false};  // the injectors are there
  bool is_shared = false;            // the IKE daemon's own socket gets its datagrams by itself
  // For what is sent without DF; where there is no such socket the ports are those above.
  std::vector<ifaces::UniqueFd> sender_fds;
  std::vector<ifaces::Port> sender_ports;

  // Its ports are those of a port that is shared with an IKE daemon; null: they are its own. Each
  // worker's ports change in that worker's thread alone.
  PortShare* share = nullptr;          // control thread
  std::atomic<bool> sends_any{false};  // … which is bound to no address

  // What to send from, if the socket does not say so itself.
  [[nodiscard]] const ifaces::IpAddress* source() const noexcept {
    return sends_any.load(std::memory_order_relaxed) ? &local.address : nullptr;
  }
};

}  // namespace espalier::dataplane
