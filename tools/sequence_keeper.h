// Keeps the sequence numbers of a conn with static keys ahead of its traffic: numbers are reserved
// on disk before they are used (RFC 4106 §3.1: an IV never twice under one key).
//
// Thread safety: the control thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "tools/keys.h"
#include "tools/log.h"

namespace espalier::tools {

// How far ahead: the number of packets that a crash may waste, and the number that may leave
// between two looks. Without ESN there are only 2^32 of them (RFC 4303 §3.3.3).
inline constexpr std::uint64_t kReserveEsn = std::uint64_t{1} << 24;
inline constexpr std::uint64_t kReserveNoEsn = std::uint64_t{1} << 20;

// Times between two looks. At a million packets a second 2^20 numbers last one second: while
// traffic moves a look finds more than half of them left, and an idle SA starts with three
// quarters.
inline constexpr std::chrono::milliseconds kBusyLook{100};
inline constexpr std::chrono::milliseconds kIdleLook{500};

class SequenceKeeper {
 public:
  // Reserves the first numbers. `conn` is for messages. Throws ConfigError if no number is left,
  // std::system_error if the disk refuses.
  SequenceKeeper(SequenceState state, bool esn, std::string conn, const Log& log);

  [[nodiscard]] std::uint64_t first() const noexcept { return seen_out_; }    // to use at the start
  [[nodiscard]] std::uint64_t limit() const noexcept;                         // last to be used
  [[nodiscard]] std::uint64_t received() const noexcept { return seen_in_; }  // highest known

  // Tells the numbers that the SAs have come to: the next outbound, the highest inbound. Reserves
  // more if it is time to; then limit() has grown and this returns true. If the disk refuses, says
  // so once, and limit() stays where it is: the SA stops there.
  bool look(std::uint64_t next_out, std::uint64_t highest_in,
            std::chrono::steady_clock::time_point now) noexcept;
  // Did numbers move between the last two looks?
  [[nodiscard]] bool busy() const noexcept { return busy_; }

  // After the last packet: gives back what was reserved and not used.
  void close(std::uint64_t next_out, std::uint64_t highest_in) noexcept;

 private:
  [[nodiscard]] std::uint64_t step() const noexcept { return esn_ ? kReserveEsn : kReserveNoEsn; }
  void extend(std::uint64_t next_out);
  void failed(const std::string& what) noexcept;

  SequenceState state_;
  bool esn_;
  std::string conn_;
  const Log& log_;
  std::uint64_t seen_out_ = 0, seen_in_ = 0;
  std::uint64_t recorded_in_ = 0;
  std::chrono::steady_clock::time_point recorded_at_;
  bool busy_ = false;
  bool failing_ = false;
};

}  // namespace espalier::tools
