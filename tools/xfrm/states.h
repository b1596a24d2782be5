// The states (SAs) as XFRM knows them, over those of the data plane: what was given, with keys, and
// what the data plane does not know (the times of their making, marks as they were written).
//
// Thread safety: the control thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "dataplane/dataplane.h"
#include "ifaces/netlink.h"
#include "tools/used_keys.h"
#include "tools/xfrm/joins.h"
#include "tools/xfrm/migration.h"
#include "tools/xfrm/state.h"

namespace espalier::tools::xfrm {

class States {
 public:
  using Clock = State::Clock;

  States(dataplane::Dataplane& dataplane, ifaces::Netlink& netlink, Joins& joins)
      : dataplane_(dataplane), netlink_(netlink), joins_(joins) {}
  // States are kept there from now on.
  void set_keep(Keep& keep) noexcept { keep_ = &keep; }
  // Keys of outbound states are noted there from now on, for the daemons after this one.
  void set_used_keys(UsedKeys& used) noexcept { used_keys_ = &used; }

  States(const States&) = delete;
  States& operator=(const States&) = delete;

  [[nodiscard]] State* find(const xfrm_id& id, std::uint16_t family, std::uint32_t mark) noexcept;
  [[nodiscard]] State* find(dataplane::SaId sa) noexcept;
  [[nodiscard]] State* find(std::uint64_t serial) noexcept;
  [[nodiscard]] const State* find(dataplane::SaId sa) const noexcept;
  [[nodiscard]] Status status(const State& state) const;

  // Each throws Refused, and then nothing has changed.
  State& add(State state);
  State& update(State state);
  // A larval state with a free SPI between the two; it goes at `ends`.
  State& allocate_spi(State state, std::uint32_t first, std::uint32_t last, Clock::time_point ends);
  void remove(State& state) noexcept;
  // Those that live and are met go on at the new addresses: keys, numbers, counters. What was going
  // on there and cannot any more is told as expired.
  struct Place {
    std::uint16_t family;
    xfrm_address_t source, destination;
    std::optional<xfrm_encap_tmpl> encap;
  };
  struct Moving {
    State* state;
    Place from, to;
  };
  using Moves = std::vector<Moving>;
  // NEWAE. Numbers only go forward, for what was used once under a key never comes again, and what
  // was seen stays seen; counters go where they are told.
  void advance(State& state, const Numbers& numbers);
  void count_from(State& state, const xfrm_lifetime_cur& counted);
  void put(State& state) noexcept;  // into the memory that outlives this

  Moves migrate(const Migration& migration);
  void put_back(std::span<const Moving> moves) noexcept;
  // One that a daemon before us kept: goes on behind its numbers. Like add().
  State& restore(State state, const Keep::Numbers& numbers);
  // All of them are put into the memory that is in use now.
  void put_all() noexcept;
  // Reserves numbers ahead of the traffic. To be called when it returns, as long as there are any.
  [[nodiscard]] std::optional<Clock::time_point> look(Clock::time_point now) noexcept;
  void ran_out(dataplane::SaId sa) noexcept;

  [[nodiscard]] std::size_t larval_count() const noexcept { return states_.size() - by_sa_.size(); }
  // The newest of those made before `serial`; null if there is none.
  [[nodiscard]] const State* before(std::uint64_t serial) const noexcept;
  // When the first larval state goes.
  [[nodiscard]] std::optional<Clock::time_point> next_end() const noexcept;
  // A larval state that is over.
  [[nodiscard]] State* ended(Clock::time_point now) noexcept;

 private:
  // Destination, SPI and protocol; the mark is looked at after that.
  using Id = std::tuple<std::uint16_t, std::uint8_t, std::uint32_t, ifaces::IpAddress>;
  [[nodiscard]] static Id id_of(const xfrm_id& id, std::uint16_t family) noexcept;

  State& insert(State state);
  // Gives it an SA of the data plane; and takes that away again.
  void install(State& state);
  void uninstall(State& state) noexcept;
  [[nodiscard]] std::vector<UsedKeys::Name> note_key(const dataplane::SaSpec& spec);
  void detach(State& state) noexcept;  // that, but for its record
  [[nodiscard]] std::vector<State*> met_by(const xfrm_user_migrate& move, std::uint32_t if_id);
  struct Plan;
  void check_place(const State& state, const Place& place, Plan& plan);
  void take_along(State& state);
  void place(State& state, const Place& place);
  void give_up(State& state) noexcept;
  [[nodiscard]] dataplane::Direction direction_of(const State& state);
  [[nodiscard]] bool is_free(const xfrm_id& id, std::uint16_t family) const;
  void change_in_place(State& old, State state);
  void write(State& state, Keep::Numbers numbers) noexcept;
  [[nodiscard]] std::uint64_t reserve(State& state, dataplane::Direction direction) noexcept;
  // True: it has moved.
  bool look(const State& state) noexcept;
  // Numbers of it are wanted faster than a round over very many states may come by: for some time
  // it is looked at each time.
  void hurry(const State& state) noexcept;
  void look_at_hurried() noexcept;

  dataplane::Dataplane& dataplane_;
  ifaces::Netlink& netlink_;
  Joins& joins_;
  std::map<std::uint64_t, State> states_;  // by serial
  std::multimap<Id, std::uint64_t> by_id_;
  std::unordered_map<dataplane::SaId, std::uint64_t> by_sa_;
  std::multimap<Clock::time_point, std::uint64_t> ends_;
  std::uint64_t next_serial_ = 1;
  Keep* keep_ = nullptr;
  UsedKeys* used_keys_ = nullptr;
  std::uint64_t look_after_ = 0;               // serial
  bool busy_ = false;                          // one has moved since it was looked at before
  std::map<std::uint64_t, unsigned> hurried_;  // serial; looks to come
  Clock::time_point look_at_;
};

}  // namespace espalier::tools::xfrm
