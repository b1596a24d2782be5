#include "tools/xfrm/states.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <random>
#include <system_error>
#include <utility>

#include "tools/sequence_keeper.h"

namespace espalier::tools::xfrm {
namespace {

using dataplane::Direction;
using dataplane::SaId;

constexpr std::size_t kMaxStates = std::size_t{1} << 20;
constexpr int kSpiTries = 4096;
constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

// As far ahead as for static keys (tools/sequence_keeper.h).
std::uint64_t step_of(const State& state) noexcept {
  return (state.info.flags & XFRM_STATE_ESN) != 0 ? kReserveEsn : kReserveNoEsn;
}

std::uint64_t ahead(std::uint64_t seq, std::uint64_t step) noexcept {
  return seq > kNever - step ? kNever : seq + step;
}

// What the data plane refuses, in the words of netlink.
template <class Call>
auto translate(Call&& call) {
  try {
    return call();
  } catch (const std::system_error& e) {
    throw Refused(e.code().category() == std::generic_category() ? e.code().value() : EINVAL,
                  e.what());
  } catch (const std::invalid_argument& e) {
    throw Refused(EINVAL, e.what());
  }
}

}  // namespace

States::Id States::id_of(const xfrm_id& id, std::uint16_t family) noexcept {
  return {family, id.proto, id.spi, to_address(id.daddr, family)};
}

State* States::find(const xfrm_id& id, std::uint16_t family, std::uint32_t mark) noexcept {
  const auto [first, last] = by_id_.equal_range(id_of(id, family));
  for (auto it = first; it != last; ++it) {
    State& state = states_.at(it->second);
    if (matches(state.mark, mark)) return &state;
  }
  return nullptr;
}

State* States::find(SaId sa) noexcept {
  const auto found = by_sa_.find(sa);
  return found == by_sa_.end() ? nullptr : find(found->second);
}

const State* States::find(SaId sa) const noexcept {
  const auto found = by_sa_.find(sa);
  return found == by_sa_.end() ? nullptr : &states_.at(found->second);
}

State* States::find(std::uint64_t serial) noexcept {
  const auto found = states_.find(serial);
  return found == states_.end() ? nullptr : &found->second;
}

Status States::status(const State& state) const {
  return state.sa ? dataplane_.sa(*state.sa) : std::nullopt;
}

const State* States::before(std::uint64_t serial) const noexcept {
  const auto next = states_.lower_bound(serial);
  return next == states_.begin() ? nullptr : &std::prev(next)->second;
}

// ------------------------------------------------------------------------------------- changes

// Where a packet of it goes to tells whether it comes in here.
Direction States::direction_of(const State& state) {
  if (state.direction) return *state.direction;
  if (state.kept_direction)
    return *state.kept_direction;  // no listing of addresses for each of very many
  if (netlink_.is_local(state.destination())) return Direction::in;
  if (!netlink_.is_local(state.source()))
    throw Refused(EADDRNOTAVAIL, "neither " + state.source().str() + " nor " +
                                     state.destination().str() + " is an address of this host");
  return Direction::out;
}

// Takes the SA away again if it cannot.
State& States::insert(State state) {
  State* made = nullptr;
  try {
    if (states_.size() >= kMaxStates) throw Refused(ENOMEM, "too many states");
    state.serial = next_serial_++;
    if (state.added == 0) state.added = wall(Clock::now());
    made = &states_.emplace(state.serial, std::move(state)).first->second;
    by_id_.emplace(id_of(made->info.id, made->info.family), made->serial);
    if (made->sa) by_sa_.emplace(*made->sa, made->serial);
    if (made->ends) ends_.emplace(*made->ends, made->serial);
    // The data plane may know of more used numbers than the state said.
    if (keep_ != nullptr && made->sa) static_cast<void>(look(*made));
    if (keep_ != nullptr && made->sa) hurry(*made);
    return *made;
  } catch (...) {
    if (made != nullptr)
      remove(*made);
    else
      uninstall(state);
    throw;
  }
}

// Before it is used. What an espalierd before us kept goes on behind its numbers; of the others,
// deleted ones too, only the keys are known. With a random IV the same key twice is no harm.
std::vector<UsedKeys::Name> States::note_key(const dataplane::SaSpec& spec) {
  if (used_keys_ == nullptr || spec.direction != Direction::out ||
      crypto::info(spec.suite).iv_kind != crypto::IvKind::counter)
    return {};
  const UsedKeys::Name name = UsedKeys::name_of(spec.keymat.bytes());
  if (spec.next_seq <= 1 && used_keys_->is_from_before(name))
    throw Refused(EEXIST,
                  "the key was used before espalierd was started again: take a fresh one, or say "
                  "the last number that it has used (replay-oseq)");
  used_keys_->add({name}, UsedKeys::Sync::later);
  return {name};
}

void States::install(State& state) {
  if (state.since == Clock::time_point()) state.since = Clock::now();
  translate([&] {
    const Direction direction = direction_of(state);
    Transform transform = transform_of(state.algorithms);
    dataplane::SaSpec spec = spec_of(state, direction);
    spec.suite = transform.suite;
    spec.keymat = std::move(transform.keymat);
    if (direction == Direction::in && dataplane_.find_sa(direction, spec.spi, spec.local.address))
      throw Refused(EEXIST);
    state.join = &joins_.take(state.info.reqid, state.source(), state.destination());
    try {
      spec.reqid = state.join->number;
      // Packets take it as soon as it is there: their numbers are reserved before.
      if (keep_ != nullptr) spec.seq_limit = reserve(state, direction);
      dataplane::SaUpdate update;
      update.peer = spec.peer;
      const std::vector<UsedKeys::Name> names = note_key(spec);
      state.sa = dataplane_.add_sa(std::move(spec));
      if (!names.empty()) used_keys_->in_use(names);
      // The other direction may have an older one: IKE knows best.
      if (!update.peer->address.is_any()) dataplane_.update_sa(*state.sa, update);
      state.join->states.insert(*state.sa);
    } catch (...) {
      uninstall(state);
      throw;
    }
  });
}

void States::uninstall(State& state) noexcept {
  if (keep_ != nullptr) keep_->erase(std::exchange(state.slot, Keep::kNone));
  detach(state);
}

void States::detach(State& state) noexcept {
  if (state.sa) {
    state.join->states.erase(*state.sa);
    dataplane_.remove_sa(*state.sa);
    state.sa.reset();
  }
  if (state.join != nullptr) joins_.drop(*state.join);
  state.join = nullptr;
}

State& States::add(State state) {
  if (find(state.info.id, state.info.family, state.mark.v & state.mark.m) != nullptr)
    throw Refused(EEXIST);
  install(state);
  return insert(std::move(state));
}

State& States::update(State state) {
  State* const old = find(state.info.id, state.info.family, state.mark.v & state.mark.m);
  if (old == nullptr) throw Refused(ESRCH);
  if (old->larval()) {
    install(state);
    State& made = insert(std::move(state));
    remove(*old);
    return made;
  }
  change_in_place(*old, std::move(state));
  return *old;
}

// As the kernel: encapsulation, care-of address, selector and lifetimes; never keys or numbers.
void States::change_in_place(State& old, State state) {
  if (old.encap.has_value() != state.encap.has_value())
    throw Refused(EINVAL, "the encapsulation of a state stays; delete it and make another");
  dataplane::SaUpdate update;
  state.carried = old.carried;
  state.age = old.age;
  update.lifetime = lifetime_left(state);
  const auto status = this->status(old);
  if (!status) throw Refused(ESRCH);
  state.info.id.daddr = old.info.id.daddr;
  state.info.saddr = old.info.saddr;
  const dataplane::SaSpec spec = spec_of(state, status->direction);
  if (spec.local.port != status->local.port)
    throw Refused(EINVAL, "the local port of a state stays; delete it and make another");
  if (state.encap && (state.encap->encap_sport != old.encap->encap_sport ||
                      state.encap->encap_dport != old.encap->encap_dport))
    update.peer = spec.peer;
  translate([&] { dataplane_.update_sa(*old.sa, update); });
  old.encap = state.encap;
  if (state.coaddr) old.coaddr = state.coaddr;
  old.info.sel = state.info.sel;
  old.info.lft = state.info.lft;
  put(old);
}

bool States::is_free(const xfrm_id& id, std::uint16_t family) const {
  if (by_id_.contains(id_of(id, family))) return false;
  return !dataplane_.find_sa(Direction::in, dataplane::Spi{host_order(id.spi)},
                             to_address(id.daddr, family));
}

State& States::allocate_spi(State state, std::uint32_t first, std::uint32_t last,
                            Clock::time_point ends) {
  std::random_device random;
  first = std::max(first, dataplane::kFirstSpi);
  if (first > last) throw Refused(ENOENT, "No SPI available in the requested range");
  std::uniform_int_distribution<std::uint32_t> spis(first, last);
  for (int tries = 0; tries < kSpiTries; ++tries) {
    state.info.id.spi = host_order(spis(random));
    if (!is_free(state.info.id, state.info.family)) continue;
    state.ends = ends;
    State& made = insert(std::move(state));
    // The peer may have the keys before they are here, and use them (RFC 7296 §2.8).
    dataplane_.expect_sa(dataplane::Spi{made.spi()}, made.destination());
    return made;
  }
  throw Refused(ENOENT, first == last ? "Requested SPI is already in use"
                                      : "No SPI available in the requested range");
}

void States::remove(State& state) noexcept {
  const std::uint64_t serial = state.serial;
  if (state.sa) {
    by_sa_.erase(*state.sa);
    uninstall(state);
  } else {
    dataplane_.expect_no_more(dataplane::Spi{state.spi()}, state.destination());
  }
  const auto is_it = [&](const auto& entry) { return entry.second == serial; };
  const auto [first, last] = by_id_.equal_range(id_of(state.info.id, state.info.family));
  if (const auto it = std::find_if(first, last, is_it); it != last) by_id_.erase(it);
  if (state.ends) {
    const auto [from, to] = ends_.equal_range(*state.ends);
    if (const auto it = std::find_if(from, to, is_it); it != to) ends_.erase(it);
  }
  states_.erase(serial);
}

// ------------------------------------------------------------------- what outlives this daemon

// In a slot that is free; the one that it had is free then.
void States::write(State& state, Keep::Numbers numbers) noexcept {
  numbers.added_ns =
      static_cast<std::uint64_t>(std::chrono::nanoseconds(state.since.time_since_epoch()).count());
  const Keep::Slot before = state.slot;
  try {
    Reply message = message_of(state, std::nullopt, XFRM_MSG_NEWSA, {}, 0, Keys::with);
    message.put(XFRMA_LTIME_VAL, state.carried);
    message.put(XFRMA_REPLAY_THRESH, state.replay_threshold);
    message.put(XFRMA_ETIMER_THRESH, state.timer_threshold);
    state.slot = keep_->put(Keep::Kind::state, message.bytes(), numbers);
  } catch (const std::bad_alloc&) {
    state.slot = Keep::kNone;
  }
  keep_->erase(before);
}

void States::put(State& state) noexcept {
  if (keep_ == nullptr || !state.sa) return;
  write(state, keep_->numbers(state.slot));
  static_cast<void>(look(state));
}

// Writes its record, with the first numbers of one that goes out; returns the last of them.
std::uint64_t States::reserve(State& state, Direction direction) noexcept {
  Keep::Numbers numbers = keep_->numbers(state.slot);
  if (direction == Direction::out)
    numbers.limit = ahead(std::max(state.oseq, numbers.limit), step_of(state));
  else
    numbers.seen = state.seq;
  write(state, numbers);
  return direction == Direction::out && state.slot != Keep::kNone ? numbers.limit : kNever;
}

void States::put_all() noexcept {
  for (auto& [serial, state] : states_) {
    // Its numbers are in the memory before: those of this one follow from where it is.
    state.slot = Keep::kNone;
    put(state);
  }
}

bool States::look(const State& state) noexcept {
  const auto progress = dataplane_.progress(*state.sa);
  if (!progress) return false;
  Keep::Numbers numbers = keep_->numbers(state.slot);
  const bool moved = numbers.packets != state.carried.packets + progress->traffic.packets;
  numbers.packets = state.carried.packets + progress->traffic.packets;
  numbers.bytes = state.carried.bytes + progress->traffic.bytes;
  if (progress->direction == Direction::in) {
    numbers.seen = progress->seq;
    keep_->set(state.slot, numbers);
    return moved;
  }
  const std::uint64_t step = step_of(state);
  const bool kept = state.slot != Keep::kNone;
  if (progress->seq + step / 2 > numbers.limit) {
    numbers.limit = ahead(progress->seq, step);
    hurry(state);
  }
  keep_->set(state.slot, numbers);
  dataplane_.extend_limit(*state.sa, kept ? numbers.limit : kNever);
  return moved;
}

void States::hurry(const State& state) noexcept {
  constexpr unsigned kLooks = 50;  // five seconds: longer than a round over 2^17 states
  constexpr std::size_t kMost = 4096;
  if (hurried_.size() >= kMost && !hurried_.contains(state.serial)) return;
  try {
    hurried_.insert_or_assign(state.serial, kLooks);
  } catch (const std::bad_alloc&) {
    // Then in its turn, or when it has run out.
  }
}

void States::look_at_hurried() noexcept {
  for (auto next = hurried_.begin(); next != hurried_.end();) {
    const auto here = next++;
    const State* const state = find(here->first);
    if (state == nullptr || !state->sa || --here->second == 0)
      hurried_.erase(here);
    else
      busy_ = look(*state) || busy_;  // which may make it longer
  }
}

std::optional<States::Clock::time_point> States::look(Clock::time_point now) noexcept {
  if (keep_ == nullptr || by_sa_.empty()) return std::nullopt;
  if (now < look_at_) return look_at_;
  look_at_hurried();
  constexpr std::size_t kAtOnce = 4096;
  auto next = states_.upper_bound(look_after_);
  for (std::size_t i = 0; i < std::min(kAtOnce, states_.size()); ++i, ++next) {
    if (next == states_.end()) {
      next = states_.begin();
      look_at_ = now + (busy_ ? kBusyLook : kIdleLook);
      busy_ = false;
    }
    look_after_ = next->first;
    if (next->second.sa) busy_ = look(next->second) || busy_;
  }
  look_at_ = hurried_.empty() ? std::max(look_at_, now + kBusyLook) : now + kBusyLook;
  return look_at_;
}

void States::advance(State& state, const Numbers& numbers) {
  const Status now = status(state);
  if (!now) throw Refused(ESRCH);
  const bool out = now->direction == Direction::out;
  const std::uint64_t wanted = out ? numbers.oseq : numbers.seq;
  const std::uint64_t used = out ? now->seq - 1 : now->seq;
  if (wanted < used)
    throw Refused(EINVAL, "number " + std::to_string(used) + (out ? " is used" : " was seen") +
                              " already: a key's numbers only go forward");
  if (wanted == kNever)
    throw Refused(EINVAL, "all sequence numbers are used up; make a state with a fresh key");
  if (wanted > used) {
    if (keep_ != nullptr && out) {
      Keep::Numbers kept = keep_->numbers(state.slot);
      kept.limit = std::max(kept.limit, ahead(wanted, step_of(state)));
      keep_->set(state.slot, kept);
    }
    dataplane::SaUpdate update;
    update.next_seq = wanted + 1;
    translate([&] { dataplane_.update_sa(*state.sa, update); });
  }
  state.oseq = numbers.oseq;
  state.seq = numbers.seq;
  if (keep_ != nullptr) static_cast<void>(look(state));
}

void States::count_from(State& state, const xfrm_lifetime_cur& counted) {
  const xfrm_lifetime_cur before = state.carried;
  state.carried = counted;
  // What is counted here is added to it.
  if (const Status now = status(state)) {
    state.carried.bytes -= now->traffic.bytes;
    state.carried.packets -= now->traffic.packets;
  }
  dataplane::SaUpdate update;
  update.lifetime = lifetime_left(state);
  try {
    translate([&] { dataplane_.update_sa(*state.sa, update); });
  } catch (...) {
    state.carried = before;
    throw;
  }
}

void States::ran_out(SaId sa) noexcept {
  const State* const state = std::as_const(*this).find(sa);
  if (keep_ == nullptr || state == nullptr) return;
  static_cast<void>(look(*state));
  hurry(*state);
}

State& States::restore(State state, const Keep::Numbers& numbers) {
  // Only what goes out has had numbers reserved.
  state.kept_direction = numbers.limit != 0 ? Direction::out : Direction::in;
  // Up to there numbers may have been used, or seen.
  state.oseq = std::max(state.oseq, numbers.limit);
  state.seq = std::max(state.seq, numbers.seen);
  state.carried.bytes = std::max<std::uint64_t>(state.carried.bytes, numbers.bytes);
  state.carried.packets = std::max<std::uint64_t>(state.carried.packets, numbers.packets);
  state.added = static_cast<std::time_t>(state.info.curlft.add_time);
  state.since = Clock::time_point(std::chrono::nanoseconds(numbers.added_ns));
  state.age = std::chrono::floor<std::chrono::seconds>(Clock::now() - state.since);
  return add(std::move(state));
}

// --------------------------------------------------------------------------------- larval states

std::optional<States::Clock::time_point> States::next_end() const noexcept {
  if (ends_.empty()) return std::nullopt;
  return ends_.begin()->first;
}

State* States::ended(Clock::time_point now) noexcept {
  if (ends_.empty() || ends_.begin()->first > now) return nullptr;
  return find(ends_.begin()->second);
}

}  // namespace espalier::tools::xfrm
