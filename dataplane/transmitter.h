// Outbound, last stage: sealed packets leave in as few sends as their sizes allow.
//
// Packets are placed one behind the other in an arena; those of one size to one peer form a run
// that is one UDP GSO send, whatever flow they belong to. A shorter packet ends its run (RFC 768
// datagrams of one GSO send have equal lengths but the last). Nothing is held back: submit() at the
// end of a turn sends all there is.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstdint>
#include <memory>

#include "crypto/aead.h"
#include "crypto/iv_source.h"
#include "crypto/secret.h"
#include "dataplane/counters.h"
#include "dataplane/sa.h"
#include "ifaces/engine.h"

namespace espalier::dataplane {

inline constexpr std::size_t kMaxDatagram = 65507;  // 65,535 − IPv4 20 − UDP 8; raw IPv4: 8 more

class Transmitter {
 public:
  Transmitter(unsigned worker, ifaces::Engine& engine, WorkerCounters& counters);

  // What is placed from now on is of `sa` and goes to `to`.
  void select(const OutboundSa& sa, const ifaces::Endpoint& to) noexcept;

  // Room for an ESP packet of `length` bytes (at most kMaxDatagram) of the selected SA, at the end
  // of the current run or as the start of the next. `outer`: of the outer header.
  [[nodiscard]] std::uint8_t* place(std::size_t length, OuterFields outer) noexcept;
  // The sealing of what was placed last; to be filled in before the next call.
  [[nodiscard]] crypto::AeadOp& op() noexcept { return ops_[op_count_++]; }

  // Seals and queues everything.
  void submit() noexcept;

  // The kernel has refused, for its length, something that was sent through `port` in the turn
  // before: the peers of that turn are marked (PathMtu::refused()), as it does not say which.
  void refused(ifaces::Port port) noexcept;
  // What was sent is over and done with: its peers may go.
  void forget() noexcept { sent_targets_ = 0; }
  // Between two turns: salts of SAs that may be gone.
  void wipe() noexcept {
    for (crypto::AeadOp& op : ops_) crypto::wipe(op.nonce);
  }

 private:
  // Cache-sized: what is sealed is copied into the kernel soon after.
  static constexpr std::size_t kArenaBytes = std::size_t{1} << 20;
  static constexpr std::size_t kMaxRuns = 512;
  static constexpr std::size_t kSealBatch = 32;
  // AES-GCM gains nothing from more packets at a time: it gets them while they are in the
  // first-level cache.
  static constexpr std::size_t kSealBytes = std::size_t{8} * 1024;

  struct Run {
    std::uint8_t* data;
    std::uint32_t length;
    std::uint16_t segment;
    std::uint16_t packets;
    std::uint16_t target;
    OuterFields outer;
    bool bad;
  };
  struct Target {
    sockaddr_storage address;
    std::uint32_t mark;
    socklen_t length;
    ifaces::Port port;
    ifaces::Port sender_port;  // for what is sent without DF
    const ifaces::IpAddress* source;
    Peer* peer;
  };

  void seal() noexcept;
  void send_all() noexcept;
  void make_room() noexcept;
  void add_target() noexcept;

  unsigned worker_;
  ifaces::Engine& engine_;
  WorkerCounters& counters_;

  const OutboundSa* sa_ = nullptr;
  ifaces::Endpoint to_;
  unsigned max_segments_ = 1;
  bool run_open_ = false;

  std::unique_ptr<std::uint8_t[]> arena_;
  std::size_t used_ = 0;
  std::size_t run_count_ = 0;
  std::size_t target_count_ = 0;
  std::size_t sent_targets_ = 0;  // of the last submit; still in targets_
  std::size_t op_count_ = 0;
  std::size_t unsealed_ = 0;  // bytes placed since the last seal()
  std::size_t seal_bytes_ = kArenaBytes;
  std::array<Run, kMaxRuns> runs_;
  std::array<Target, kMaxRuns> targets_;
  std::array<crypto::AeadOp, kSealBatch> ops_;
  crypto::IvSource ivs_;
};

}  // namespace espalier::dataplane
