// The loop's engine: receives from and sends to many descriptors at once. One thread, one engine.
//
// A turn is: submit everything queued, finish it, wait until something was received, hand it over.
// Invariants:
//   1. The bytes and addresses that were queued by send() and write() stay untouched by the caller
//      until the next turn() or flush() returns; then all of it has finished. The iovec array is
//      copied.
//   2. What turn() returned (the span, and every byte it points to) belongs to the caller until the
//      next turn(); the caller may write to it, and may queue it to be written.
//   3. After the constructor nothing throws and nothing allocates, except attach() and detach().
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::ifaces {

using Port = std::uint16_t;  // an attached descriptor; small, dense, reused after detach()
inline constexpr std::size_t kMaxPorts = 4096;
inline constexpr std::size_t kTunTailroom = 8;  // for an ESP trailer

// raw_esp4, raw_esp6: any raw socket; with IPv4 the kernel shows the IP header.
enum class PortKind : std::uint8_t { tun, udp, raw_esp4, raw_esp6 };

// One completed receive: at least one byte; empty datagrams are not handed over.
struct Received {
  Port port;
  PortKind kind;
  std::uint8_t tos;            // outer TOS or traffic class; 0 for tun
  std::uint16_t segment_size;  // UDP GRO: `len` bytes are datagrams of this size, the last maybe
                               // shorter; 0: one datagram
  std::uint32_t len;
  // tun: VnetHdr, then the packet, and kTunTailroom bytes behind it that may be written to. udp:
  // the UDP payload. raw_esp*: the ESP header (the engine has stepped over the IPv4 header).
  std::uint8_t* data;
  Endpoint peer;    // sender; port 0 for raw_esp*; unset for tun
  IpAddress local;  // where it was sent to, if the socket is bound to no address; else unset
};

// One datagram, or several of `segment_size` bytes (the last maybe shorter) sent as one (UDP GSO).
struct Datagram {
  Port port;
  std::uint8_t tos;            // outer TOS or traffic class
  std::uint16_t segment_size;  // 0: a single datagram
  std::uint32_t len;
  const std::uint8_t* data;
  const sockaddr_storage* to;
  socklen_t to_len;
  std::uint32_t mark = 0;             // SO_MARK; 0: none
  std::uint8_t hop_limit = 0;         // 0: the system's default
  std::uint32_t flow_label = 0;       // IPv6, 20 bits; 0: the kernel chooses
  const IpAddress* source = nullptr;  // for sockets bound to no address; copied by send()
};

// A send or write that failed, and how many packets it held. 0 packets: nothing will be received
// from this port any more (its TUN was deleted, …); it is to be detached.
struct TxError {
  Port port;
  std::uint16_t packets;
  int error;  // errno
};

class Engine {
 public:
  Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  virtual ~Engine() = default;

  [[nodiscard]] virtual std::string_view name() const noexcept = 0;  // io_uring, epoll
  // What it uses, for the start line of the log: "multishot reads, multishot receives, …".
  [[nodiscard]] virtual std::string features() const = 0;

  // Starts receiving from `fd` (non-blocking), which stays the caller's and must stay open until
  // detach(). Throws std::system_error. Only between turns.
  virtual Port attach(PortKind kind, int fd) = 0;
  // Stops receiving; when it returns the engine holds nothing of the descriptor.
  virtual void detach(Port port) = 0;

  // One turn. Returns early with nothing received when wake() was called, or when there is an error
  // to take. Never blocks if `wait` is false.
  [[nodiscard]] virtual std::span<Received> turn(bool wait) noexcept = 0;
  // Finishes everything queued without receiving: afterwards the bytes may be reused.
  virtual void flush() noexcept = 0;

  // `packets`: how many packets the caller would count as lost if this failed.
  virtual void send(const Datagram& datagram, std::uint16_t packets) noexcept = 0;
  virtual void write(Port port, std::span<const iovec> parts, std::uint16_t packets) noexcept = 0;

  // Failures since the last call; valid until the next turn() or flush().
  [[nodiscard]] virtual std::span<const TxError> take_errors() noexcept = 0;
  // Receives that were lost for want of a buffer, and other errors, since the start.
  [[nodiscard]] virtual std::uint64_t receive_stalls() const noexcept = 0;

  // From any thread: makes the turn in progress, or the next one, return.
  virtual void wake() noexcept = 0;
};

// To be called by the thread that will use the engine, and destroy it. `kind` is auto, io_uring or
// epoll: auto takes io_uring where it works, and epoll with a reason (one clause for the log in
// `why`) where it does not. Throws std::runtime_error if a forced engine does not work here.
[[nodiscard]] std::unique_ptr<Engine> make_engine(std::string_view kind, std::string& why);

}  // namespace espalier::ifaces
