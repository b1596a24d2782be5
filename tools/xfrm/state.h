// One state (SA) as XFRM has it: read from NEWSA, written to it.
#pragma once

#include <chrono>
#include <cstdint>
#include <ctime>
#include <optional>

#include "dataplane/dataplane.h"
#include "tools/keep.h"
#include "tools/xfrm/algorithms.h"
#include "tools/xfrm/convert.h"
#include "tools/xfrm/joins.h"
#include "tools/xfrm/message.h"

namespace espalier::tools::xfrm {

// What xfrm_replay_state_esn begins with; its bitmap follows.
struct ReplaySizes {
  std::uint32_t bmp_len, oseq, seq, oseq_hi, seq_hi, replay_window;
};
static_assert(sizeof(ReplaySizes) == sizeof(xfrm_replay_state_esn));

struct State {
  using Clock = std::chrono::steady_clock;

  xfrm_usersa_info info = zeroed<xfrm_usersa_info>();  // as given
  xfrm_mark mark = zeroed<xfrm_mark>();
  xfrm_mark output_mark = zeroed<xfrm_mark>();
  Algorithms algorithms;
  std::optional<xfrm_encap_tmpl> encap;
  std::optional<xfrm_address_t> coaddr;
  std::optional<ReplaySizes> esn;
  std::uint64_t oseq = 0, seq = 0;                          // to go on from
  xfrm_lifetime_cur carried = zeroed<xfrm_lifetime_cur>();  // from a state before this one
  std::uint32_t if_id = 0, tfc_padding = 0, extra_flags = 0;
  std::uint32_t replay_threshold = 2, timer_threshold = 10;  // of events; the kernel's defaults
  std::uint32_t mapping_threshold = 0;                       // seconds between two MAPPINGs
  std::optional<dataplane::Direction> direction;             // none: by its addresses

  // The table's.
  std::uint64_t serial = 0;
  std::time_t added = 0;
  std::optional<Clock::time_point> mapping_told;
  std::optional<Clock::time_point> ends;  // larval: when it goes
  std::optional<dataplane::SaId> sa;      // none: larval
  Joins::Join* join = nullptr;
  Keep::Slot slot = Keep::kNone;
  std::optional<dataplane::Direction> kept_direction;  // that it had in a daemon before
  Clock::time_point since;     // when it was added, to this daemon or one before
  std::chrono::seconds age{};  // that it had when it came to this one

  [[nodiscard]] bool larval() const noexcept { return !sa; }
  [[nodiscard]] std::uint32_t spi() const noexcept { return host_order(info.id.spi); }
  [[nodiscard]] ifaces::IpAddress source() const noexcept {
    return to_address(info.saddr, info.family);
  }
  [[nodiscard]] ifaces::IpAddress destination() const noexcept {
    return to_address(info.id.daddr, info.family);
  }
};

// Of XFRMA_REPLAY_THRESH and its like; those that are not there stay.
void read_thresholds(const Request& request, State& state);
// Where the numbers of a state are to go on, for NEWAE; of the attribute that the state has. Throws
// Refused.
struct Numbers {
  std::uint64_t oseq = 0, seq = 0;
};
[[nodiscard]] std::optional<Numbers> read_numbers(const Request& request, const State& state);

// NEWSA and UPDSA, checked as the kernel does. Throws Refused.
[[nodiscard]] State read_state(Request& request);
// Of XFRMA_MARK; none: matches all.
[[nodiscard]] xfrm_mark read_mark(const Request& request);
[[nodiscard]] inline bool matches(const xfrm_mark& mark, std::uint32_t value) noexcept {
  return (value & mark.m) == mark.v;
}

// What the data plane knows of it, or nothing.
using Status = std::optional<dataplane::SaStatus>;

// As the data plane takes it; without the keys.
[[nodiscard]] dataplane::SaSpec spec_of(const State& state, dataplane::Direction direction);
// NEWSA and its like.
[[nodiscard]] Reply message_of(const State& state, const Status& status, std::uint16_t type,
                               Reply::To to, std::uint16_t flags, Keys keys);
// The limits that are left of it.
[[nodiscard]] dataplane::Lifetime lifetime_left(const State& state);
// An SA that somebody else has made.
[[nodiscard]] State foreign_state(const dataplane::SaStatus& status);

[[nodiscard]] xfrm_usersa_info info_of(const State& state, const Status& status);
[[nodiscard]] xfrm_lifetime_cur lifetime_of(const State& state, const Status& status);
void put_replay(const State& state, const Status& status, Reply& reply);
// The attributes of NEWSA, in the kernel's order.
void put_attributes(const State& state, const Status& status, Reply& reply, Keys keys);

// A moment of the steady clock on the wall clock.
[[nodiscard]] std::time_t wall(State::Clock::time_point when) noexcept;

}  // namespace espalier::tools::xfrm
