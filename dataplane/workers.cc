#include "dataplane/workers.h"

namespace espalier::dataplane {

Workers::Workers(unsigned count, Worker::Setup setup, const Sad& sad) {
  for (setup.index = 0; setup.index < count; ++setup.index)
    workers_.push_back(std::make_unique<Worker>(setup, sad));
}

void Workers::attach(const std::vector<ifaces::UniqueFd>& fds, std::vector<ifaces::Port>& ports,
                     ifaces::PortKind kind, Worker::PortOwner owner) const {
  ports.assign(size(), 0);
  for (std::size_t w = 0; w < size(); ++w) {
    try {
      workers_[w]->call([&](ifaces::Engine& engine) {
        ports[w] = engine.attach(kind, fds[w].get());
        workers_[w]->owner(ports[w]) = owner;
      });
    } catch (...) {
      ports.resize(w);
      detach(ports);
      throw;
    }
  }
}

void Workers::detach(const std::vector<ifaces::Port>& ports) const {
  for (std::size_t w = 0; w < ports.size(); ++w)
    workers_[w]->call([&](ifaces::Engine& engine) {
      engine.detach(ports[w]);
      workers_[w]->owner(ports[w]) = {};
    });
}

void Workers::grace() const {
  for (const auto& worker : workers_) worker->call([](ifaces::Engine&) {});
}

}  // namespace espalier::dataplane
