// The choice of an engine, and the parts of both that need not be inline.
#include "ifaces/engine.h"

#include <stdexcept>
#include <system_error>

#include "ifaces/engine_parts.h"
#include "ifaces/epoll_engine.h"
#include "ifaces/uring_engine.h"

namespace espalier::ifaces {
namespace {

std::string_view hint(int error) {
  switch (error) {
    case EPERM:
    case EACCES:
      return " (a container's seccomp profile, or sysctl kernel.io_uring_disabled?)";
    case ENOSYS:
      return " (a kernel without io_uring, or a seccomp profile)";
    case ENOMEM:
      return " (too small a limit on locked memory? ulimit -l)";
    default:
      return "";
  }
}

}  // namespace

std::unique_ptr<Engine> make_engine(std::string_view kind, std::string& why) {
  why.clear();
  if (kind == "epoll") return std::make_unique<EpollEngine>();
  if (kind != "auto" && kind != "io_uring")
    throw std::runtime_error("unknown engine '" + std::string(kind) + "': auto, io_uring or epoll");
  try {
    return std::make_unique<UringEngine>();
  } catch (const std::system_error& e) {
    why = e.what();
    why += hint(e.code().value());
  }
  if (kind == "io_uring") throw std::runtime_error(why);
  return std::make_unique<EpollEngine>();
}

Mapping::Mapping(std::size_t bytes) {
  void* p = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED)
    throw std::system_error(errno, std::generic_category(), "mmap of packet buffers");
  memory_ = {static_cast<std::uint8_t*>(p), Unmap{bytes}};
}

void ErrorList::add(Port port, std::uint16_t packets, int error) noexcept {
  fresh_ = true;
  if (!entries_.empty()) {
    TxError& last = entries_.back();
    const bool same = last.port == port && last.error == error && packets != 0;
    const unsigned sum = unsigned{last.packets} + packets;
    if ((same && sum <= 0xffff) || entries_.size() == kMax) {
      last.packets = static_cast<std::uint16_t>(sum <= 0xffff ? sum : 0xffff);
      return;
    }
  }
  entries_.push_back({port, packets, error});
}

Fate fate_of(PortKind kind, int error) noexcept {
  switch (error) {
    case ENOBUFS:
    case EAGAIN:
    case EINTR:
    case ECANCELED:
      return Fate::again;
    case EBADF:
    case EBADFD:
    case ENOTSOCK:
      return Fate::dead;
    case ECONNREFUSED:  // from here on: what an ICMP error leaves in a socket (ip(7)), to be read
    case EHOSTUNREACH:  // once, so that none can make the engine spin
    case ENETUNREACH:
    case EHOSTDOWN:
    case ENETDOWN:
    case ENONET:
    case ENOPROTOOPT:
    case EPROTO:
    case EMSGSIZE:
    case EACCES:
      return kind == PortKind::tun ? Fate::suspect : Fate::again;
    default:
      return Fate::suspect;
  }
}

}  // namespace espalier::ifaces
