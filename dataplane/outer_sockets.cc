#include "dataplane/outer_sockets.h"

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "ifaces/esp_socket.h"
#include "ifaces/ike_socket.h"

namespace espalier::dataplane {
namespace {

bool is_udp(const OuterSocket& socket) noexcept {
  return socket.encapsulation == Encapsulation::udp;
}

ifaces::PortKind raw_kind(const OuterSocket& socket) noexcept {
  return socket.local.address.family == ifaces::Family::v6 ? ifaces::PortKind::raw_esp6
                                                           : ifaces::PortKind::raw_esp4;
}

ifaces::PortKind kind(const OuterSocket& socket) noexcept {
  return is_udp(socket) ? ifaces::PortKind::udp : raw_kind(socket);
}

}  // namespace

void OuterSockets::open(OuterSocket& socket) const {
  const auto count = static_cast<unsigned>(workers_.size());
  ifaces::OuterOptions outer;  // marks are the datagrams'
  outer.fragmenting =
      hears(socket) ? ifaces::Fragmenting::refuse_link : ifaces::Fragmenting::refuse_path;
  for (unsigned w = 0; w < count; ++w)
    socket.fds.push_back(is_udp(socket)
                             ? ifaces::open_udp(socket.local, {w, count}, outer)
                             : ifaces::open_raw_esp(socket.local.address, {w, count}, outer));
  workers_.attach(socket.fds, socket.ports, kind(socket), {nullptr, &socket});
  open_sender(socket);  // now: workers read its ports without a lock
}

// Without it everything is sent with DF set: a sender more is a convenience.
void OuterSockets::open_sender(OuterSocket& socket) const {
  ifaces::OuterOptions outer;
  outer.fragmenting = ifaces::Fragmenting::allow;
  const bool grouped = workers_.size() > 1 || socket.has_ike.load(std::memory_order_relaxed);
  try {
    std::vector<ifaces::UniqueFd> fds;
    for (std::size_t w = 0; w < workers_.size(); ++w)
      fds.push_back(is_udp(socket)
                        ? ifaces::open_udp_sender(socket.local, socket.fds, grouped, outer)
                        : ifaces::open_raw_esp_sender(socket.local.address, outer));
    std::vector<ifaces::Port> ports;
    workers_.attach(fds, ports, kind(socket), {nullptr, &socket});
    socket.sender_fds = std::move(fds);
    socket.sender_ports = std::move(ports);
  } catch (const std::system_error&) {
    socket.sender_ports = socket.ports;
  }
}

OuterSocket& OuterSockets::use(Encapsulation encapsulation, const ifaces::Endpoint& local) {
  for (const auto& socket : sockets_) {
    if (socket->encapsulation != encapsulation || socket->local != local) continue;
    ++socket->users;
    return *socket;
  }
  auto socket = std::make_unique<OuterSocket>();
  socket->encapsulation = encapsulation;
  socket->local = local;
  socket->local_words = words(local.address);
  socket->users = 1;
  if (is_udp(*socket) && udp_gso_) socket->gso_segments = ifaces::probe_udp_gso(local.address);
  PortShare* const share = is_udp(*socket) ? shared_.find(local) : nullptr;
  if (share != nullptr)
    shared_.lead(*socket, *share);
  else
    open(*socket);
  sockets_.push_back(std::move(socket));
  return *sockets_.back();
}

void OuterSockets::release(OuterSocket& socket) {
  if (--socket.users > 0) return;
  if (socket.share == nullptr) {
    workers_.detach(socket.ports);
    workers_.detach(socket.injectors);
    if (!socket.sender_fds.empty()) workers_.detach(socket.sender_ports);
  }
  SharedPorts::leave(socket);
  std::erase_if(sockets_, [&socket](const auto& s) { return s.get() == &socket; });
}

void OuterSockets::open_ike(OuterSocket& socket, std::uint32_t mark) const {
  socket.ike = ifaces::open_ike(socket.local, socket.fds,
                                static_cast<unsigned>(socket.sender_fds.size()), mark);
  for (std::size_t w = 0; w < workers_.size(); ++w)
    socket.injector_fds.push_back(ifaces::open_injector(socket.local.address.family));
  // No owner: what this port could receive is nobody's.
  workers_.attach(socket.injector_fds, socket.injectors, raw_kind(socket), {});
  socket.has_ike.store(true, std::memory_order_release);
}

// ------------------------------------------------------------------ ports of IKE daemons

namespace {

bool covers(const ifaces::Endpoint& port, const OuterSocket& socket) noexcept {
  return is_udp(socket) && socket.local.port == port.port &&
         socket.local.address.family == port.address.family &&
         (port.address.is_any() || port.address == socket.local.address);
}

}  // namespace

PortShare& OuterSockets::share(const ifaces::Endpoint& local) {
  if (PortShare* const known = shared_.find_exact(local)) return *known;
  for (const auto& socket : sockets_) {
    if (!covers(local, *socket) || socket->share != nullptr) continue;
    if (socket->has_ike.load(std::memory_order_relaxed))
      throw std::system_error(
          EADDRINUSE, std::generic_category(),
          "an IKE daemon has taken the port " + socket->local.str() + " by the control socket");
    for (const auto* fds : {&socket->fds, &socket->sender_fds})
      for (const ifaces::UniqueFd& fd : *fds) ifaces::let_share(fd.get());
  }
  PortShare& made = shared_.open(local);
  for (const auto& socket : sockets_) {
    if (!covers(local, *socket) || shared_.find(socket->local) != &made) continue;
    // Out of sight until the workers have gone over, then theirs no more.
    OuterSocket own;
    if (socket->share == nullptr) {
      own.ports = socket->ports;
      if (!socket->sender_fds.empty()) own.sender_ports = socket->sender_ports;
    }
    shared_.lead(*socket, made);
    workers_.detach(own.ports);
    workers_.detach(own.sender_ports);
    socket->fds.clear();
    socket->sender_fds.clear();
  }
  return made;
}

void OuterSockets::share_port(int fd) {
  const ifaces::Endpoint local = ifaces::shared_endpoint(fd);
  ifaces::let_share(fd);
  const ifaces::SharedPort& steering = share(local).steering;
  if (!steering.is_ike(fd)) steering.set_ike(fd);
}

bool OuterSockets::may_share(const ifaces::Endpoint& local) {
  const PortShare* known = shared_.find(local);
  if (known == nullptr) {
    const auto is_in_the_way = [&](const auto& socket) { return covers(local, *socket); };
    if (std::none_of(sockets_.begin(), sockets_.end(), is_in_the_way)) return false;
    known = &share(local);
  }
  // Two at one port: the second is refused, as without us.
  return !known->steering.has_ike();
}

std::set<std::uint16_t> OuterSockets::udp_ports() const {
  std::set<std::uint16_t> out = shared_.ports();
  for (const auto& socket : sockets_)
    if (is_udp(*socket)) out.insert(socket->local.port);
  return out;
}

int OuterSockets::ike_socket(const ifaces::Endpoint& local, std::uint32_t mark) {
  if (shared_.find(local) != nullptr)
    throw std::system_error(EADDRINUSE, std::generic_category(),
                            local.str() + " is shared with an IKE daemon behind espalier exec");
  OuterSocket& socket = use(Encapsulation::udp, local);  // the daemon counts as one, for good
  if (socket.has_ike.load(std::memory_order_relaxed)) {
    --socket.users;
    return socket.ike.get();
  }
  try {
    open_ike(socket, mark);
  } catch (...) {
    workers_.detach(socket.injectors);
    socket.injectors.clear();
    socket.injector_fds.clear();
    socket.ike = {};
    release(socket);
    throw;
  }
  return socket.ike.get();
}

}  // namespace espalier::dataplane
