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

struct OuterSocket {
  Encapsulation encapsulation{};
  ifaces::Endpoint local;
  AddressWords local_words{};
  unsigned users = 0;                 // SAs; control thread
  unsigned gso_segments = 0;          // most datagrams of one send; 0: no UDP GSO
  std::vector<ifaces::UniqueFd> fds;  // one a worker
  std::vector<ifaces::Port> ports;    // in each worker's engine

  // UDP: the socket that an IKE daemon has taken, and what leads its datagrams there.
  ifaces::UniqueFd ike;
  std::vector<ifaces::UniqueFd> injector_fds;
  std::vector<ifaces::Port> injectors;
  sockaddr_storage ike_address{};  // where they go: `local`, without a port
  socklen_t ike_address_length = 0;
  std::atomic<bool> has_ike{false};  // the four above are there
  // For what is sent without DF, once an SA asks for it; else empty.
  std::vector<ifaces::UniqueFd> sender_fds;
  std::vector<ifaces::Port> sender_ports;
};

}  // namespace espalier::dataplane
