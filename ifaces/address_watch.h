// Tells when this host gets or loses an address (rtnetlink's own notices).
#pragma once

#include "ifaces/unique_fd.h"

namespace espalier::ifaces {

class AddressWatch {
 public:
  // Of the calling thread's network namespace. Throws std::system_error.
  AddressWatch();

  // Readable when changed() has something to say.
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }
  // Since this was asked last. Notices that the kernel had no room for count as a change.
  [[nodiscard]] bool changed() noexcept;

 private:
  UniqueFd fd_;
};

}  // namespace espalier::ifaces
