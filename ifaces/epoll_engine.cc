#include "ifaces/epoll_engine.h"

#include <sys/eventfd.h>

#include <algorithm>
#include <system_error>

namespace espalier::ifaces {
namespace {

constexpr int kMaxEvents = 64;              // descriptors served in one turn
constexpr std::uint64_t kWake = kMaxPorts;  // epoll's name for the eventfd; others are ports

UniqueFd checked(int fd, const char* call) {
  if (fd < 0) throw std::system_error(errno, std::generic_category(), call);
  return UniqueFd(fd);
}

}  // namespace

struct EpollEngine::Messages {
  explicit Messages(const BufferArea& area)
      : headers(area.count()), payloads(area.count()), names(area.count()), controls(area.count()) {
    for (unsigned i = 0; i < area.count(); ++i) {
      payloads[i] = {area.at(i) + kSocketHeadroom, area.bytes() - kSocketHeadroom};
      msghdr& h = headers[i].msg_hdr;
      h.msg_iov = &payloads[i];
      h.msg_iovlen = 1;
      h.msg_name = names[i].data();
      h.msg_control = controls[i].bytes.data();
    }
  }
  struct Control {
    alignas(cmsghdr) std::array<std::uint8_t, kControlBytes> bytes{};
  };
  std::vector<mmsghdr> headers;
  std::vector<iovec> payloads;
  std::vector<std::array<std::uint8_t, kNameBytes>> names;
  std::vector<Control> controls;
};

EpollEngine::EpollEngine()
    : epoll_(checked(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      wake_fd_(checked(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "eventfd")),
      ports_(kMaxPorts),
      pools_{Pool{BufferArea(Group::tun, kTunBuffers), nullptr},
             Pool{BufferArea(Group::udp, kUdpBuffers), nullptr},
             Pool{BufferArea(Group::raw, kRawBuffers), nullptr}} {
  for (const Group g : {Group::udp, Group::raw}) {
    Pool& pool = pools_[static_cast<std::size_t>(g)];
    pool.messages = std::make_unique<Messages>(pool.area);
  }
  received_.reserve(kTunBuffers + kUdpBuffers + kRawBuffers);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = kWake;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_fd_.get(), &event) != 0)
    throw std::system_error(errno, std::generic_category(), "epoll_ctl of an eventfd");
}

EpollEngine::~EpollEngine() = default;

Port EpollEngine::attach(PortKind kind, int fd) {
  const auto slot = std::find_if(ports_.begin(), ports_.end(), [](auto& p) { return p.fd < 0; });
  if (slot == ports_.end())
    throw std::system_error(EMFILE, std::generic_category(), "attach: all ports are in use");
  const auto port = static_cast<Port>(slot - ports_.begin());
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = port;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    throw std::system_error(errno, std::generic_category(), "epoll_ctl EPOLL_CTL_ADD");
  *slot = {fd, kind, first_group(kind), true, 0};
  return port;
}

void EpollEngine::detach(Port port) {
  if (!is_attached(port)) return;
  PortState& p = ports_[port];
  if (p.watched) ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, p.fd, nullptr);
  p = {};
}

std::span<Received> EpollEngine::turn(bool wait) noexcept {
  received_.clear();
  for (Pool& pool : pools_) pool.used = 0;
  std::array<epoll_event, kMaxEvents> events;
  do {
    const int timeout = wait && !errors_.fresh() ? -1 : 0;
    const int n = ::epoll_wait(epoll_.get(), events.data(), kMaxEvents, timeout);
    if (n > 0) serve({events.data(), static_cast<std::size_t>(n)});
  } while (wait && received_.empty() && !woken_ && !errors_.fresh());
  woken_ = false;
  errors_.settle();
  return received_;
}

void EpollEngine::serve(std::span<const epoll_event> events) noexcept {
  for (Pool& pool : pools_) pool.waiting = 0;
  for (const epoll_event& e : events)
    if (e.data.u64 < kMaxPorts)
      ++pools_[static_cast<std::size_t>(ports_[e.data.u64].group)].waiting;
  for (const epoll_event& e : events) {
    if (e.data.u64 == kWake) {
      eventfd_t count = 0;
      ::eventfd_read(wake_fd_.get(), &count);
      woken_ = true;
      continue;
    }
    const auto port = static_cast<Port>(e.data.u64);
    Pool& pool = pools_[static_cast<std::size_t>(ports_[port].group)];
    // What is left over is named again by the next epoll_wait, behind the others (level triggered).
    const unsigned budget = (pool.area.count() - pool.used) / std::max(pool.waiting, 1U);
    --pool.waiting;
    if (budget == 0) continue;
    if (ports_[port].kind == PortKind::tun) {
      drain_tun(port, budget);
    } else {
      drain_socket(port, budget);
    }
  }
}

void EpollEngine::drain_tun(Port port, unsigned budget) noexcept {
  PortState& p = ports_[port];
  Pool& pool = pools_[static_cast<std::size_t>(p.group)];
  for (; budget > 0; --budget) {
    std::uint8_t* buffer = pool.area.at(pool.used);
    const ssize_t n = ::read(p.fd, buffer, pool.area.bytes());
    if (n < 0) {
      failed(port, errno);
      return;
    }
    p.suspicions = 0;
    ++pool.used;
    Received& r = received_.emplace_back();
    r.port = port;
    r.kind = p.kind;
    r.len = static_cast<std::uint32_t>(n);
    r.data = buffer;
  }
}

void EpollEngine::drain_socket(Port port, unsigned budget) noexcept {
  PortState& p = ports_[port];
  Pool& pool = pools_[static_cast<std::size_t>(p.group)];
  mmsghdr* first = &pool.messages->headers[pool.used];
  for (unsigned i = 0; i < budget; ++i) {
    first[i].msg_hdr.msg_namelen = kNameBytes;
    first[i].msg_hdr.msg_controllen = kControlBytes;
  }
  const int n = ::recvmmsg(p.fd, first, budget, MSG_DONTWAIT, nullptr);
  if (n < 0) {
    failed(port, errno);
    return;
  }
  p.suspicions = 0;
  pool.used += static_cast<unsigned>(n);
  for (int i = 0; i < n; ++i) deliver(port, first[i]);
}

void EpollEngine::deliver(Port port, const mmsghdr& message) noexcept {
  PortState& p = ports_[port];
  const msghdr& h = message.msg_hdr;
  if ((h.msg_flags & MSG_TRUNC) != 0) {
    ++stalls_;
    p.group = Group::udp;
    return;
  }
  Received r{};
  r.port = port;
  r.kind = p.kind;
  r.len = message.msg_len;
  r.data = static_cast<std::uint8_t*>(h.msg_iov->iov_base);
  parts::parse_name(static_cast<const std::uint8_t*>(h.msg_name), h.msg_namelen, r.peer);
  parts::parse_control(static_cast<const std::uint8_t*>(h.msg_control), h.msg_controllen, r);
  if (!parts::trim(r)) {
    ++stalls_;
    return;
  }
  received_.push_back(r);
}

void EpollEngine::failed(Port port, int error) noexcept {
  if (error == EAGAIN) return;
  PortState& p = ports_[port];
  ++stalls_;
  const Fate fate = fate_of(p.kind, error);
  if (fate == Fate::again) return;
  if (fate == Fate::suspect && ++p.suspicions < kMaxSuspicions) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, p.fd, nullptr);
  p.watched = false;
  errors_.add(port, 0, error);
}

void EpollEngine::send(const Datagram& datagram, std::uint16_t packets) noexcept {
  if (!is_attached(datagram.port)) {
    errors_.add(datagram.port, packets, EBADF);
    return;
  }
  parts::render(datagram, message_);
  if (::sendmsg(ports_[datagram.port].fd, &message_.header, MSG_DONTWAIT) < 0)
    errors_.add(datagram.port, packets, errno);
}

void EpollEngine::write(Port port, std::span<const iovec> parts, std::uint16_t packets) noexcept {
  if (!is_attached(port)) {
    errors_.add(port, packets, EBADF);
    return;
  }
  if (::writev(ports_[port].fd, parts.data(), static_cast<int>(parts.size())) < 0)
    errors_.add(port, packets, errno);
}

void EpollEngine::wake() noexcept {
  ::eventfd_write(wake_fd_.get(), 1);
}

}  // namespace espalier::ifaces
