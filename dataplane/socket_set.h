// An outer socket, shared by all SAs of one local end point: a descriptor for each worker.
#pragma once

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
};

}  // namespace espalier::dataplane
