// Inbound: the packets of a turn become as few TUN writes as their flows allow (TCP over IPv4 and
// IPv6; UDP where the device takes USO). Nothing is copied: a super-packet is a list of pieces.
//
// Rules (as Linux GRO): only complete, unfragmented packets with correct inner checksums, without
// IPv4 options or IPv6 extension headers, the same addresses, ports, TOS/class, TTL/hop limit, flow
// label, DF and TCP options; consecutive TCP sequence numbers, the same ACK, window and ECE, no
// flags but these, PSH, and CWR on the first; UDP checksums in use; equal sizes, the last maybe
// shorter. PSH ends a super-packet, and is kept. A flow's order is never changed: a packet that
// cannot be appended closes its flow's super-packet and follows it; one whose flow cannot be seen
// (a fragment, another protocol) closes all between its two addresses. IPv4 IDs must be consecutive
// or, with DF, all equal. A packet with a wrong checksum is passed on alone, unrepaired, for the
// kernel to count and drop. Checksums are looked at only when there is something to coalesce with:
// a packet that stays alone goes to the kernel as it came, with a VnetHdr of zeros.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "ifaces/tun.h"
#include "ifaces/vnet_hdr.h"

namespace espalier::dataplane {

inline constexpr std::size_t kMaxCoalesced = 64;   // packets in one super-packet
inline constexpr std::size_t kCoalesceFlows = 16;  // super-packets open at a time
inline constexpr std::size_t kCoalesceHeadroom = sizeof(ifaces::VnetHdr);

// Where finished writes go. `parts[0]` starts with a VnetHdr and the headers. The bytes stay valid
// until the turn ends, the array for the call.
class TunSink {
 public:
  virtual void write(std::span<const iovec> parts, std::uint16_t packets) noexcept = 0;

 protected:
  ~TunSink() = default;
};

// For one device. Not thread-safe.
class Coalescer {
 public:
  explicit Coalescer(ifaces::TunOffloads offloads) noexcept;
  Coalescer(const Coalescer&) = delete;
  Coalescer& operator=(const Coalescer&) = delete;
  ~Coalescer();

  // Takes a packet of `len` bytes at `packet`, with kCoalesceHeadroom writable bytes before it. The
  // packet's memory is changed (headers) and must live until the turn ends. `packet` is a complete
  // IP packet: its length field has been checked against `len` by the caller.
  void add(std::uint8_t* packet, std::uint32_t len, TunSink& sink) noexcept;

  // Hands over everything that is still open, oldest first. At the end of every turn.
  void flush(TunSink& sink) noexcept;

 private:
  struct State;
  std::unique_ptr<State> state_;  // kCoalesceFlows flows with their iovecs, allocated once
};

}  // namespace espalier::dataplane
