#include "dataplane/shared_ports.h"

#include <system_error>

#include "ifaces/esp_socket.h"
#include "ifaces/ike_socket.h"

namespace espalier::dataplane {

PortShare* SharedPorts::find_exact(const ifaces::Endpoint& local) const noexcept {
  for (const auto& share : shares_)
    if (share->receiver.local == local) return share.get();
  return nullptr;
}

PortShare* SharedPorts::find(const ifaces::Endpoint& local) const noexcept {
  PortShare* const exact = find_exact(local);
  if (exact != nullptr) return exact;
  return find_exact({ifaces::IpAddress::any(local.address.family), local.port});
}

PortShare& SharedPorts::open(const ifaces::Endpoint& local) {
  auto share = std::make_unique<PortShare>(static_cast<unsigned>(workers_.size()));
  OuterSocket& receiver = share->receiver;
  receiver.encapsulation = Encapsulation::udp;
  receiver.local = local;
  receiver.local_words = words(local.address);
  receiver.any = local.address.is_any();
  receiver.is_shared = true;
  try {
    open_sockets(*share);
  } catch (...) {
    close(*share);
    throw;
  }
  shares_.push_back(std::move(share));
  return *shares_.back();
}

void SharedPorts::open_sockets(PortShare& share) const {
  OuterSocket& receiver = share.receiver;
  const ifaces::Family family = receiver.local.address.family;
  const auto count = static_cast<unsigned>(workers_.size());
  ifaces::OuterOptions outer;
  outer.shared = true;
  outer.fragmenting = workers_.front().hears(family) ? ifaces::Fragmenting::refuse_link
                                                     : ifaces::Fragmenting::refuse_path;
  for (unsigned w = 0; w < count; ++w)
    receiver.fds.push_back(ifaces::open_udp(receiver.local, {w, count}, outer));
  share.steering.attach(receiver.fds.front().get());
  for (unsigned w = 0; w < count; ++w) share.steering.set_worker(w, receiver.fds[w].get());
  outer.fragmenting = ifaces::Fragmenting::allow;
  for (unsigned w = 0; w < count; ++w) {
    receiver.sender_fds.push_back(
        ifaces::open_udp_sender(receiver.local, receiver.fds, true, outer));
    receiver.injector_fds.push_back(ifaces::open_injector(family));
  }
  const ifaces::PortKind raw =
      family == ifaces::Family::v6 ? ifaces::PortKind::raw_esp6 : ifaces::PortKind::raw_esp4;
  const Worker::PortOwner owner{nullptr, &receiver};
  workers_.attach(receiver.injector_fds, receiver.injectors, raw, {});
  receiver.has_ike.store(true, std::memory_order_release);
  workers_.attach(receiver.sender_fds, receiver.sender_ports, ifaces::PortKind::udp, owner);
  workers_.attach(receiver.fds, receiver.ports, ifaces::PortKind::udp, owner);
}

void SharedPorts::close(PortShare& share) const {
  workers_.detach(share.receiver.ports);
  workers_.detach(share.receiver.sender_ports);
  workers_.detach(share.receiver.injectors);
}

void SharedPorts::lead(OuterSocket& socket, PortShare& share) const {
  leave(socket);
  socket.share = &share;
  ++share.users;
  // Before the ports: a source that is the socket's own does no harm.
  if (share.receiver.any) socket.sends_any.store(true, std::memory_order_relaxed);
  socket.ports.resize(workers_.size());
  socket.sender_ports.resize(workers_.size());
  for (std::size_t w = 0; w < workers_.size(); ++w)
    (*(workers_.begin() + static_cast<std::ptrdiff_t>(w)))->call([&](ifaces::Engine&) {
      socket.ports[w] = share.receiver.ports[w];
      socket.sender_ports[w] = share.receiver.sender_ports[w];
    });
}

void SharedPorts::leave(OuterSocket& socket) noexcept {
  if (socket.share != nullptr) --socket.share->users;
  socket.share = nullptr;
}

std::set<std::uint16_t> SharedPorts::ports() const {
  std::set<std::uint16_t> out;
  for (const auto& share : shares_) out.insert(share->receiver.local.port);
  return out;
}

void SharedPorts::tidy() {
  std::erase_if(shares_, [this](const auto& share) {
    if (share->users > 0 || share->steering.has_ike()) return false;
    close(*share);
    return true;
  });
}

}  // namespace espalier::dataplane
