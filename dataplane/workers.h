// All workers, as the control thread sees them. Each holds a port of its own for everything that is
// attached.
#pragma once

#include <memory>
#include <vector>

#include "dataplane/worker.h"

namespace espalier::dataplane {

class Workers {
 public:
  // Starts `count` (at least 1) like `setup`, whose index is not looked at.
  Workers(unsigned count, Worker::Setup setup, const Sad& sad);

  [[nodiscard]] std::size_t size() const noexcept { return workers_.size(); }
  [[nodiscard]] Worker& front() const noexcept { return *workers_.front(); }
  [[nodiscard]] auto begin() const noexcept { return workers_.begin(); }
  [[nodiscard]] auto end() const noexcept { return workers_.end(); }

  // Gives each worker its descriptor of `fds` (as many as there are workers) and sets `ports`.
  // After an error nothing is attached.
  void attach(const std::vector<ifaces::UniqueFd>& fds, std::vector<ifaces::Port>& ports,
              ifaces::PortKind kind, Worker::PortOwner owner) const;
  // Also a grace period for what the ports belong to.
  void detach(const std::vector<ifaces::Port>& ports) const;
  // Returns when no worker holds what was taken out of the tables before.
  void grace() const;

 private:
  std::vector<std::unique_ptr<Worker>> workers_;
};

}  // namespace espalier::dataplane
