// A UDP port that an IKE daemon has bound and that ESP uses as well (RFC 3948): its own socket,
// taken into a group with ours while it goes on as before.
//
// A program chooses the receiver of each datagram (BPF_PROG_TYPE_SK_REUSEPORT): what has the
// non-ESP marker is the daemon's, ESP is a worker's by its SPI, and so are keepalives. It finds the
// sockets in a map, which a closed socket leaves by itself: neither side's end or restart, in any
// order, leads a datagram to the wrong one. What finds nobody goes to whoever is left, and is
// dropped there.
//
// UDP GRO merges datagrams by address, port and length. An IKE datagram that does not have the
// length that its own header says is a run of several, or starts one: it is worker 0's, who cuts it
// up.
#pragma once

#include <cstdint>

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::ifaces {

// What a socket that an IKE daemon has handed over is bound to. Throws std::invalid_argument if it
// is no socket whose port could be shared.
[[nodiscard]] Endpoint shared_endpoint(int fd);

// Lets sockets of ours bind to the port of `fd`, and of theirs to ours. Throws std::system_error.
void let_share(int fd);

class SharedPort {
 public:
  // Map and program. Throws std::system_error: EPERM without CAP_BPF.
  explicit SharedPort(unsigned workers);

  // The program decides for all sockets of the port of `fd`, from now on. Throws.
  void attach(int fd) const;
  // The socket of a worker, and the daemon's. In its place from now on; neither is kept open.
  // Throws std::system_error: EBUSY if the map of a daemon before us has not gone yet, to be tried
  // again.
  void set_worker(unsigned index, int fd) const;
  void set_ike(int fd) const;
  // Is it the daemon's already?
  [[nodiscard]] bool is_ike(int fd) const noexcept;
  // Is the daemon's socket still open?
  [[nodiscard]] bool has_ike() const noexcept;

 private:
  void set(std::uint32_t index, int fd) const;
  [[nodiscard]] std::uint64_t ike_cookie() const noexcept;  // 0: none

  UniqueFd map_, program_;
};

}  // namespace espalier::ifaces
