// States that move to other addresses.
#include <algorithm>
#include <cerrno>
#include <map>
#include <memory>
#include <unordered_set>
#include <utility>

#include "tools/xfrm/states.h"

namespace espalier::tools::xfrm {

using dataplane::Direction;

// Those that live: a larval one has no key to go on with, and an expired one is about to go.
std::vector<State*> States::met_by(const xfrm_user_migrate& move, std::uint32_t if_id) {
  std::vector<State*> found;
  for (auto& [serial, state] : states_) {
    if (!meets(move, state) || (if_id != 0 && state.if_id != if_id)) continue;
    const Status now = status(state);
    if (now && !now->expired) found.push_back(&state);
  }
  return found;
}

// What it has counted and used so far, so that it goes on from there.
void States::take_along(State& state) {
  const Status now = status(state);
  if (!now) return;
  state.carried = lifetime_of(state, now);
  if (now->direction == Direction::out)
    state.oseq = std::max(state.oseq, now->seq - 1);
  else
    state.seq = std::max(state.seq, now->seq);
  state.age = std::chrono::floor<std::chrono::seconds>(Clock::now() - state.since);
  state.kept_direction = now->direction;
}

// The key is in one SA at a time: the old one goes, then the new one comes. Its record stays until
// the new one's is written.
void States::place(State& state, const Place& place) {
  const auto is_it = [&](const auto& entry) { return entry.second == state.serial; };
  const auto [first, last] = by_id_.equal_range(id_of(state.info.id, state.info.family));
  auto entry = by_id_.extract(std::find_if(first, last, is_it));
  // What comes for it meanwhile waits (dataplane/early_packets.h).
  const auto waits = [this, spi = dataplane::Spi{state.spi()},
                      to = to_address(place.destination, place.family)](bool more) {
    more ? dataplane_.expect_sa(spi, to) : dataplane_.expect_no_more(spi, to);
  };
  waits(true);
  const auto end = [&waits](void*) { waits(false); };
  const std::unique_ptr<void, decltype(end)> until_it_is_there(&state, end);
  if (state.sa) {
    by_sa_.erase(*state.sa);
    detach(state);
  }
  state.info.family = place.family;
  state.info.saddr = place.source;
  state.info.id.daddr = place.destination;
  state.encap = place.encap;
  entry.key() = id_of(state.info.id, state.info.family);
  by_id_.insert(std::move(entry));
  install(state);
  by_sa_.emplace(*state.sa, state.serial);
  if (keep_ != nullptr) static_cast<void>(look(state));
}

// Nothing can be done any more: it goes as if its time was over, and IKE hears of it.
void States::give_up(State& state) noexcept {
  try {
    state.ends = Clock::now();
    ends_.emplace(*state.ends, state.serial);
  } catch (const std::bad_alloc&) {
    state.ends.reset();
    remove(state);
  }
}

// What goes together, and what was found out on the way: a move may meet all states that there are.
struct States::Plan {
  Moves moves;
  std::unordered_set<const State*> met;
  std::multimap<Id, const State*> next;  // where they will be
  std::map<ifaces::IpAddress, bool> own;
};

void States::check_place(const State& state, const Place& place, Plan& plan) {
  xfrm_id id = state.info.id;
  id.daddr = place.destination;
  const Id wanted = id_of(id, place.family);
  const auto is_taken_by = [&](const State& other) {
    return &other != &state && matches(other.mark, state.mark.v & state.mark.m);
  };
  const auto [first, last] = by_id_.equal_range(wanted);
  const auto [next, end] = plan.next.equal_range(wanted);
  if (std::any_of(first, last, [&](const auto& e) { return is_taken_by(states_.at(e.second)); }) ||
      std::any_of(next, end, [&](const auto& e) { return is_taken_by(*e.second); }))
    throw Refused(ENODATA, "another state has this SPI at the new address");
  const bool in = status(state)->direction == Direction::in;
  const ifaces::IpAddress own = to_address(in ? place.destination : place.source, place.family);
  auto known = plan.own.find(own);
  if (known == plan.own.end()) known = plan.own.emplace(own, netlink_.is_local(own)).first;
  if (!known->second) throw Refused(EADDRNOTAVAIL, own.str() + " is no address of this host");
  plan.next.emplace(wanted, &state);
}

States::Moves States::migrate(const Migration& migration) {
  Plan plan;
  for (const xfrm_user_migrate& move : migration.moves)
    for (State* const state : met_by(move, migration.if_id)) {
      // By a move that names its reqid, and by one that names none.
      if (!plan.met.insert(state).second) continue;
      const Place from{state->info.family, state->info.saddr, state->info.id.daddr, state->encap};
      const Place to{move.new_family, move.new_saddr, move.new_daddr,
                     migration.encap ? migration.encap : state->encap};
      check_place(*state, to, plan);
      plan.moves.push_back({state, from, to});
    }
  Moves& all = plan.moves;
  std::size_t begun = 0;
  try {
    for (const Moving& moving : all) {
      ++begun;
      take_along(*moving.state);
      place(*moving.state, moving.to);
    }
  } catch (...) {
    put_back(std::span(all).first(begun));
    throw;
  }
  return std::move(all);
}

void States::put_back(std::span<const Moving> moves) noexcept {
  for (const Moving& moving : moves) {
    try {
      take_along(*moving.state);
      place(*moving.state, moving.from);
    } catch (const std::exception&) {
      give_up(*moving.state);
    }
  }
}

}  // namespace espalier::tools::xfrm
