// The engine for where io_uring is refused: epoll, read, recvmmsg, sendmsg, writev.
#pragma once

#include <sys/epoll.h>

#include <array>
#include <memory>
#include <vector>

#include "ifaces/engine.h"
#include "ifaces/engine_parts.h"

namespace espalier::ifaces {

// send() and write() act at once. A turn is one epoll_wait; every descriptor that it names is read
// until it is empty or has used its share of the buffers.
class EpollEngine final : public Engine {
 public:
  EpollEngine();  // throws std::system_error
  ~EpollEngine() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "epoll"; }
  [[nodiscard]] std::string features() const override { return "recvmmsg"; }
  Port attach(PortKind kind, int fd) override;
  void detach(Port port) override;
  [[nodiscard]] std::span<Received> turn(bool wait) noexcept override;
  void flush() noexcept override {}
  void send(const Datagram& datagram, std::uint16_t packets) noexcept override;
  void write(Port port, std::span<const iovec> parts, std::uint16_t packets) noexcept override;
  [[nodiscard]] std::span<const TxError> take_errors() noexcept override { return errors_.take(); }
  [[nodiscard]] std::uint64_t receive_stalls() const noexcept override { return stalls_; }
  void wake() noexcept override;

 private:
  struct PortState {
    int fd = -1;
    PortKind kind{};
    Group group{};
    bool watched = false;
    std::uint8_t suspicions = 0;
  };
  // The arguments of recvmmsg for every buffer of a group.
  struct Messages;
  struct Pool {
    BufferArea area;
    std::unique_ptr<Messages> messages;  // sockets only
    unsigned used = 0;                   // of this turn: buffers [0, used)
    unsigned waiting = 0;                // ports that have not had their share of this turn
  };

  [[nodiscard]] bool is_attached(Port port) const noexcept {
    return port < ports_.size() && ports_[port].fd >= 0;
  }
  void serve(std::span<const epoll_event> events) noexcept;
  void drain_tun(Port port, unsigned budget) noexcept;
  void drain_socket(Port port, unsigned budget) noexcept;
  void deliver(Port port, const mmsghdr& message) noexcept;
  void failed(Port port, int error) noexcept;

  UniqueFd epoll_;
  UniqueFd wake_fd_;
  std::vector<PortState> ports_;
  std::array<Pool, kGroups> pools_;
  std::vector<Received> received_;
  ErrorList errors_;
  std::uint64_t stalls_ = 0;
  bool woken_ = false;
  TxMessage message_{};
};

}  // namespace espalier::ifaces
