// The engine on one io_uring: usually one system call a turn sends, writes, waits and receives.
#pragma once

#include <liburing.h>

#include <array>
#include <memory>
#include <vector>

#include "ifaces/engine.h"
#include "ifaces/engine_parts.h"

namespace espalier::ifaces {

// What the ring uses, each decided by trying at start. Turned off by hand only in tests.
struct UringFeatures {
  bool one_call = true;  // sends end before the call that submits them waits; else it takes two
  bool read_multishot = true;     // TUN; else up to kMaxReads one-shot reads a turn and device
  bool receive_multishot = true;  // sockets; else one receive a turn and socket
  bool buffer_rings = true;       // else buffers go back to the kernel by an operation each
  bool fixed_files = true;
};

// Must be created by the thread that uses it; wake() may be called by any.
//
// Why sends need no completion in the one-call case: IORING_SETUP_DEFER_TASKRUN lets receives
// complete only while the thread waits, which is after everything queued was issued; and what is
// issued with MSG_DONTWAIT or RWF_NOWAIT is done, or has failed, when the next one is issued. So
// buffers may be given back to the kernel just before the call that still sends from them, and only
// failures need an entry in the completion queue (IOSQE_CQE_SKIP_SUCCESS).
class UringEngine final : public Engine {
 public:
  // Uses of `wanted` what the kernel has. Throws std::system_error if there is no io_uring.
  explicit UringEngine(UringFeatures wanted = {});
  ~UringEngine() override;

  [[nodiscard]] std::string_view name() const noexcept override { return "io_uring"; }
  [[nodiscard]] std::string features() const override;
  [[nodiscard]] const UringFeatures& in_use() const noexcept { return use_; }
  Port attach(PortKind kind, int fd) override;
  void detach(Port port) override;
  [[nodiscard]] std::span<Received> turn(bool wait) noexcept override;
  void flush() noexcept override;
  void send(const Datagram& datagram, std::uint16_t packets) noexcept override;
  void write(Port port, std::span<const iovec> parts, std::uint16_t packets) noexcept override;
  [[nodiscard]] std::span<const TxError> take_errors() noexcept override { return errors_.take(); }
  [[nodiscard]] std::uint64_t receive_stalls() const noexcept override { return stalls_; }
  void wake() noexcept override;

 private:
  // The receive of a socket without multishot: the kernel writes into it until it completes.
  struct OneShot;
  struct PortState {
    int fd = -1;
    PortKind kind{};
    Group group{};         // for the next receive
    Group armed_group{};   // of the receives that are outstanding
    std::uint8_t armed{};  // outstanding receives: 0 or 1 with multishot
    std::uint8_t depth{};  // wanted, where there is no multishot
    bool arm_queued = false;
    bool dead = false;  // or being detached: not armed again
    std::uint8_t suspicions = 0;
    std::unique_ptr<OneShot> one_shot;
  };
  struct BufferId {
    Group group;
    std::uint16_t index;
  };
  struct Batch {
    std::vector<Received> received;
    std::vector<BufferId> buffers;  // of the same length; the caller may change `received`
  };
  // Buffers and the way back to the kernel.
  class Pool;
  // One io_uring, closed with the object.
  struct Ring {
    Ring() = default;
    Ring(const Ring&) = delete;
    Ring& operator=(const Ring&) = delete;
    ~Ring();
    io_uring uring{};
    bool open = false;
  };
  struct Completion {
    std::uint64_t user_data;
    std::int32_t res;
    std::uint32_t flags;
  };

  void open_ring();
  void register_files();
  void probe();
  void probe_receive(PortKind kind, int fd, int feed, bool& multishot);
  [[nodiscard]] bool delivers(PortKind kind, int fd, bool must_stay_armed);
  [[nodiscard]] bool is_attached(Port port) const noexcept {
    return port < ports_.size() && ports_[port].fd >= 0;
  }
  [[nodiscard]] bool multishot(PortKind kind) const noexcept {
    return kind == PortKind::tun ? use_.read_multishot : use_.receive_multishot;
  }

  io_uring_sqe* next_sqe() noexcept;
  void target(io_uring_sqe* sqe, Port port, unsigned flags) const noexcept;
  void finish_tx(io_uring_sqe* sqe, Port port, std::uint16_t packets) noexcept;
  void enter(bool wait) noexcept;
  void reap() noexcept;
  void complete(const Completion& c) noexcept;
  void received(Port port, Group group, const Completion& c) noexcept;
  [[nodiscard]] bool describe(PortState& p, std::uint8_t* buffer, std::int32_t res,
                              Received& r) noexcept;
  void receive_failed(Port port, int error) noexcept;
  void queue_arm(Port port) noexcept;
  void arm_queued() noexcept;
  void arm(Port port) noexcept;
  void prepare_receive(io_uring_sqe* sqe, PortState& p) noexcept;
  void cancel(Port port) noexcept;
  void give_back() noexcept;
  void drop_ready(Port port) noexcept;

  UringFeatures use_;
  UniqueFd wake_fd_;
  // The ring is torn down before the memory that it refers to.
  std::array<std::unique_ptr<Pool>, kGroups> pools_;
  std::vector<PortState> ports_;
  std::vector<TxMessage> messages_;
  std::vector<iovec> iovecs_;
  Ring ring_;
  msghdr layout_{};  // what multishot receives put in front of the payload

  std::vector<Port> to_arm_, arming_;
  bool wake_armed_ = false;
  bool woken_ = false;
  unsigned fixed_slots_ = 0;
  unsigned next_message_ = 0;
  unsigned next_iovec_ = 0;
  unsigned tx_pending_ = 0;  // sends and writes that will complete by an entry; 0 if one_call
  unsigned write_flags_ = 0;
  Batch ready_, handed_;             // collected for the next turn; the caller's until then
  std::vector<BufferId> returning_;  // back to the kernel before the next receives
  ErrorList errors_;
  std::uint64_t stalls_ = 0;
};

}  // namespace espalier::ifaces
