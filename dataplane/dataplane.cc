#include "dataplane/dataplane.h"

#include <malloc.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <set>
#include <stdexcept>
#include <system_error>

#include "dataplane/expiry.h"
#include "dataplane/outer_sockets.h"
#include "dataplane/own_packets.h"
#include "dataplane/paths.h"
#include "dataplane/reporter.h"
#include "dataplane/sa_spec.h"
#include "dataplane/status.h"
#include "dataplane/tables.h"
#include "dataplane/used_numbers.h"
#include "dataplane/workers.h"
#include "ifaces/esp_socket.h"

namespace espalier::dataplane {
namespace {

// SAs and policies that go at once, from which on their memory is given back to the system.
constexpr std::size_t kTrimFrom = 10000;

template <class T>
void free_all(std::vector<T>& retired) {
  std::vector<T>().swap(retired);
}

}  // namespace

struct Dataplane::State {
  State(const crypto::Registry& r, const Options& o)
      : registry(r),
        udp_gso(o.udp_gso),
        event_fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
        offloads(ifaces::probe_tun_offloads(o.offloads)),
        workers(o.workers == 0 ? std::max(1U, std::thread::hardware_concurrency()) : o.workers,
                {0, o.io, o.pin, offloads, event_fd.get()}, tables.sad()) {
    if (!event_fd) throw std::system_error(errno, std::generic_category(), "eventfd");
  }

  // What was taken out of the tables is freed when no worker can hold it any more: before this
  // returns, or at the end of the batch.
  void retire(std::unique_ptr<Policy> policy);
  void retire(std::unique_ptr<OutboundSa> sa);
  void retire(std::unique_ptr<InboundSa> sa);
  void retire(const Limits* limits);
  void grace();   // unless a batch puts it off
  void settle();  // now

  void set_carriers(bool lower);
  [[nodiscard]] std::uint64_t first_number(const SaSpec& spec);
  [[nodiscard]] SaCommon& known(SaId id) const;
  [[nodiscard]] OutboundSa& known_outbound(SaId id) const;
  SaId add_outbound(const SaSpec& spec, OuterSocket& socket);
  SaId add_inbound(const SaSpec& spec, OuterSocket& socket);
  void set_lifetime(SaCommon& sa, const Lifetime& lifetime, std::uint64_t margin_packets);
  [[nodiscard]] bool holds(const ExpiryQueue::Due& due) const;
  void take_due(std::vector<Event>& events);
  void take_untold(std::vector<Event>& events) const;

  const crypto::Registry& registry;
  const bool udp_gso;
  ifaces::UniqueFd event_fd;
  ifaces::TunOffloads offloads;
  Tables tables;
  mutable ExpiryQueue expiries;
  // Out of the tables, and perhaps in a worker's hands.
  std::vector<std::unique_ptr<Policy>> old_policies;
  std::vector<std::unique_ptr<OutboundSa>> old_outbound;
  std::set<crypto::Fingerprint> old_keys;  // of those
  std::vector<std::unique_ptr<InboundSa>> old_inbound;
  std::vector<std::unique_ptr<const Limits>> old_limits;
  UsedNumbers used_numbers;
  unsigned batches = 0;
  std::uint32_t next_id = 1;
  bool carriers_wait = false;  // some are to go down
  // Destroyed last to first: the workers use the sockets and all of the above.
  OuterSockets sockets{workers, udp_gso};
  Workers workers;
  PathWatch paths{workers, sockets, tables};
};

Dataplane::Dataplane(const crypto::Registry& registry, const Options& options) {
  state_ = std::make_unique<State>(registry, options);
}

Dataplane::~Dataplane() = default;

// --------------------------------------------------------------------------------- removal

void Dataplane::State::grace() {
  if (batches == 0) settle();
}

void Dataplane::State::settle() {
  workers.grace();
  tables.reclaim();
  const std::size_t freed = old_policies.size() + old_outbound.size() + old_inbound.size();
  free_all(old_policies);
  for (const auto& sa : old_outbound) {
    used_numbers.remember(sa->key_name, sa->next_seq.load(std::memory_order_relaxed));
    sockets.release(*sa->socket);
  }
  for (const auto& sa : old_inbound) {
    used_numbers.remember(sa->key_name, sa->window.top() + 1);  // the peer has used those
    sockets.release(*sa->socket);
  }
  free_all(old_outbound);
  old_keys.clear();
  free_all(old_inbound);
  free_all(old_limits);
  expiries.compact(tables.sa_count(), [this](const auto& due) { return holds(due); });
  if (freed > kTrimFrom) ::malloc_trim(0);
}

void Dataplane::State::retire(std::unique_ptr<Policy> policy) {
  old_policies.push_back(std::move(policy));
  grace();
}
void Dataplane::State::retire(std::unique_ptr<OutboundSa> sa) {
  old_keys.insert(sa->key_name);
  old_outbound.push_back(std::move(sa));
  grace();
}
void Dataplane::State::retire(std::unique_ptr<InboundSa> sa) {
  old_keys.insert(sa->key_name);
  old_inbound.push_back(std::move(sa));
  grace();
}
void Dataplane::State::retire(const Limits* limits) {
  if (limits == nullptr) return;
  old_limits.emplace_back(limits);
  grace();
}

Dataplane::Batch::Batch(Dataplane& dataplane) : dataplane_(dataplane) {
  ++dataplane_.state_->batches;
}

Dataplane::Batch::~Batch() {
  if (--dataplane_.state_->batches == 0) dataplane_.state_->grace();
}

std::string Dataplane::engine() const {
  std::string text = state_->workers.front().engine();
  const std::string offloads = state_->offloads.str();
  text += offloads.empty() ? ", TUN without offloads" : ", TUN " + offloads;
  const unsigned gso =
      state_->udp_gso ? ifaces::probe_udp_gso(*ifaces::IpAddress::parse("127.0.0.1")) : 0;
  text += gso == 0 ? ", no UDP GSO" : ", UDP GSO " + std::to_string(gso);
  return text;
}

unsigned Dataplane::workers() const noexcept {
  return static_cast<unsigned>(state_->workers.size());
}

DeviceId Dataplane::add_device(const DeviceSpec& spec) {
  State& s = *state_;
  if (s.tables.device(spec.name) != nullptr)
    throw std::invalid_argument("device " + spec.name + " exists already; choose another name");
  if (const Device* twin = s.tables.twin(spec))
    throw std::invalid_argument("device " + spec.name + " has the end points and the ikey of " +
                                twin->spec.name +
                                ", so nobody could tell whose a packet is; choose another mark");
  auto device = std::make_unique<Device>();
  device->id = DeviceId{s.next_id++};
  device->spec = spec;
  device->counters = std::make_unique<DeviceCounters[]>(s.workers.size());
  const bool several = s.workers.size() > 1 || spec.holdable;
  for (std::size_t w = 0; w < s.workers.size(); ++w)
    device->queues.push_back(ifaces::open_tun(spec.name, several, s.offloads));
  s.workers.attach(device->queues, device->ports, ifaces::PortKind::tun, {device.get(), nullptr});
  const DeviceId id = device->id;
  s.tables.add(std::move(device));
  // A TUN is made with a carrier. It keeps it until the owner settles: an SA that follows at once
  // is no change, and the kernel need not start the queue a second time.
  s.carriers_wait = true;
  return id;
}

void Dataplane::remove_device(DeviceId id) {
  State& s = *state_;
  std::unique_ptr<Device> device = s.tables.remove(id);
  if (!device) return;
  s.workers.detach(device->ports);  // also a grace period
  s.tables.reclaim();
}

void Dataplane::State::set_carriers(bool lower) {
  if (!tables.serving_changed() && !(lower && carriers_wait)) return;
  carriers_wait = false;
  for (Device* device : tables.all_devices()) {
    if (!device->spec.carrier_follows_sa) continue;
    const bool up = tables.serves(*device);
    if (up == device->carrier) continue;
    if (!up && !lower) {
      carriers_wait = true;
      continue;
    }
    try {
      ifaces::set_carrier(device->queues.front().get(), up, device->spec.name);
    } catch (const std::system_error&) {
      continue;  // somebody has deleted the TUN: there is no carrier to set
    }
    device->carrier = up;
  }
}

void Dataplane::settle_carriers() {
  state_->set_carriers(true);
}

PolicyId Dataplane::add_policy(const PolicySpec& spec) {
  const PolicyId id{state_->next_id++};
  state_->tables.add(std::make_unique<Policy>(id, spec));
  state_->set_carriers(false);
  state_->grace();
  return id;
}

void Dataplane::remove_policy(PolicyId id) {
  auto policy = state_->tables.remove(id);
  state_->set_carriers(false);
  if (policy) state_->retire(std::move(policy));
}

void Dataplane::send_dummies(SaId id, unsigned count, unsigned length) {
  dataplane::send_dummies(state_->workers, state_->known_outbound(id), count, length);
}

void Dataplane::share_port(int fd) {
  state_->sockets.share_port(fd);
}

std::set<std::uint16_t> Dataplane::udp_ports() const {
  return state_->sockets.udp_ports();
}

bool Dataplane::may_share(const ifaces::Endpoint& local) {
  return state_->sockets.may_share(local);
}

int Dataplane::ike_socket(const ifaces::Endpoint& local, std::uint32_t mark) {
  return state_->sockets.ike_socket(local, mark);
}

SaId Dataplane::State::add_outbound(const SaSpec& spec, OuterSocket& socket) {
  auto sa = std::make_unique<OutboundSa>();
  fill(*sa, SaId{next_id++}, spec, registry, tables, workers.size());
  sa->socket = &socket;
  sa->outer = OuterRule(spec.outer);
  sa->tfc_padding = spec.tfc_padding;
  if (spec.tfc_padding == kTfcToMtu || spec.mss_clamp == kMssToPath) paths.ask(*sa);
  sa->next_seq.store(first_number(spec));
  sa->seq_limit.store(std::min(spec.seq_limit, last_seq(*sa)));
  set_lifetime(*sa, spec.lifetime, margin_packets(*sa));
  const SaId id = sa->id;
  tables.add(std::move(sa), spec.keymat.bytes());
  set_carriers(false);
  return id;
}

SaId Dataplane::State::add_inbound(const SaSpec& spec, OuterSocket& socket) {
  auto sa = std::make_unique<InboundSa>(spec.window_bits, first_number(spec) - 1);
  fill(*sa, SaId{next_id++}, spec, registry, tables, workers.size());
  sa->socket = &socket;
  sa->set_local(spec.local.address);
  sa->dscp_inwards = spec.outer.dscp_inwards;
  sa->follow_peer = spec.follow_peer && spec.encapsulation == Encapsulation::udp;
  set_lifetime(*sa, spec.lifetime, Limits::kNever);
  const SaId id = sa->id;
  tables.add(std::move(sa), spec.keymat.bytes());
  return id;
}

SaId Dataplane::add_sa(SaSpec spec) {
  State& s = *state_;
  check(spec, s.tables, s.registry);
  if (spec.outer_mark != 0) ifaces::check_mark(spec.local.address);
  OuterSocket& socket = s.sockets.use(spec.encapsulation, spec.local);
  try {
    return spec.direction == Direction::out ? s.add_outbound(spec, socket)
                                            : s.add_inbound(spec, socket);
  } catch (...) {
    s.sockets.release(socket);
    throw;
  }
}

void Dataplane::remove_sa(SaId id) {
  State& s = *state_;
  if (auto out = s.tables.remove_outbound(id)) {
    s.set_carriers(false);
    s.retire(std::move(out));
  } else if (auto in = s.tables.remove_inbound(id)) {
    s.retire(std::move(in));
  }
}

void Dataplane::expect_sa(Spi spi, const ifaces::IpAddress& local) {
  state_->tables.expect(spi, local);
}

void Dataplane::expect_no_more(Spi spi, const ifaces::IpAddress& local) {
  state_->tables.expect_no_more(spi, local);
  state_->grace();
}

// ------------------------------------------------------------------------------ the life of an SA

// Where an SA may start: never where its key has been before, in either direction. Inbound, what
// was seen under a key stays seen.
std::uint64_t Dataplane::State::first_number(const SaSpec& spec) {
  const crypto::Fingerprint key = crypto::fingerprint(spec.keymat.bytes());
  if (old_keys.contains(key)) settle();
  return std::max({std::uint64_t{1}, spec.next_seq, used_numbers.next(key)});
}

SaCommon& Dataplane::State::known(SaId id) const {
  if (InboundSa* in = tables.inbound(id)) return *in;
  if (OutboundSa* out = tables.outbound(id)) return *out;
  throw std::invalid_argument("there is no SA with the id " +
                              std::to_string(static_cast<std::uint32_t>(id)));
}

OutboundSa& Dataplane::State::known_outbound(SaId id) const {
  if (OutboundSa* out = tables.outbound(id)) return *out;
  throw std::invalid_argument("there is no outbound SA with the id " +
                              std::to_string(static_cast<std::uint32_t>(id)));
}

void Dataplane::State::set_lifetime(SaCommon& sa, const Lifetime& lifetime,
                                    std::uint64_t margin_packets) {
  std::unique_ptr<const Limits> limits;
  if (lifetime != Lifetime{} || margin_packets != Limits::kNever)
    limits = std::make_unique<const Limits>(lifetime, margin_packets);
  expiries.set(sa.id, sa.added, lifetime.seconds);
  OutboundSa* out = tables.outbound(sa.id);
  if (out != nullptr && sa.lifetime().packets.hard == 0)
    out->claimed.store(out->counters.packets.load(std::memory_order_relaxed));
  const Limits* before = sa.limits.exchange(limits.release(), std::memory_order_acq_rel);
  if (before != nullptr) retire(before);
}

void Dataplane::update_sa(SaId id, const SaUpdate& update) {
  State& s = *state_;
  SaCommon& sa = s.known(id);
  OutboundSa* out = s.tables.outbound(id);
  InboundSa* in = s.tables.inbound(id);
  if (sa.life.expired())
    throw std::invalid_argument("SA " + hex(sa.spi) + " has expired; add a new one");
  if (update.window_bits) {
    if (in == nullptr)
      throw std::invalid_argument("SA " + hex(sa.spi) +
                                  " is outbound; a replay window is an inbound SA's");
    check_window(sa.esn, *update.window_bits);
  }
  if (update.seq_limit && out == nullptr)
    throw std::invalid_argument("SA " + hex(sa.spi) +
                                " is inbound; a limit of numbers is an outbound SA's");
  if (update.lifetime) check_lifetime(*update.lifetime);
  if (update.next_seq && *update.next_seq < (out != nullptr ? out->next_seq.load() : in->next()))
    throw std::invalid_argument("SA " + hex(sa.spi) +
                                " has had that number; numbers of a key only go forward");

  if (update.window_bits) in->resize(*update.window_bits);
  if (update.peer) {
    sa.peer->set(*update.peer);
    s.tables.moved(sa.reqid, sa.peer.get(), update.peer->address);
  }
  if (update.seq_limit) set_limit(*out, *update.seq_limit);
  if (update.next_seq && in != nullptr) in->advance(*update.next_seq);
  if (update.next_seq && out != nullptr) {
    out->advance(*update.next_seq);
    if (!update.lifetime) s.set_lifetime(sa, Lifetime(sa.lifetime()), margin_packets(*out));
  }
  if (update.lifetime)
    s.set_lifetime(sa, *update.lifetime, out == nullptr ? Limits::kNever : margin_packets(*out));
}

std::optional<SaId> Dataplane::find_sa(Direction direction, Spi spi,
                                       const ifaces::IpAddress& destination) const {
  if (direction == Direction::in) {
    const InboundSa* sa = state_->tables.inbound(spi, destination);
    return sa == nullptr ? std::nullopt : std::optional(sa->id);
  }
  for (const OutboundSa* sa = state_->tables.outbound(spi); sa != nullptr; sa = sa->same_spi)
    if (sa->peer->get().address == destination) return sa->id;
  return std::nullopt;
}

int Dataplane::event_fd() const noexcept {
  return state_->event_fd.get();
}

bool Dataplane::State::holds(const ExpiryQueue::Due& due) const {
  const SaCommon* sa = tables.outbound(due.sa);
  if (sa == nullptr) sa = tables.inbound(due.sa);
  if (sa == nullptr || sa->life.expired()) return false;
  const Limit& seconds = sa->lifetime().seconds;
  const std::uint64_t limit = due.hard ? seconds.hard : seconds.soft;
  return limit != 0 && due.at == ExpiryQueue::due(sa->added, limit);
}

// What the time limits have to tell.
void Dataplane::State::take_due(std::vector<Event>& events) {
  const auto now = std::chrono::steady_clock::now();
  while (const auto due = expiries.take(now, [this](const auto& d) { return holds(d); })) {
    OutboundSa* out = tables.outbound(due->sa);
    SaCommon& sa = known(due->sa);
    bool tell = false;
    if (!due->hard)
      tell = sa.limits.load(std::memory_order_acquire)->set_soft();
    else if (out != nullptr)
      tell = expire(*out);
    else
      tell = expire(*tables.inbound(due->sa));
    if (!tell) continue;
    Event event = sa_event(due->hard ? EventKind::hard_expire : EventKind::soft_expire, sa,
                           out == nullptr ? Direction::in : Direction::out);
    event.when = now;
    events.push_back(event);
  }
}

// What found no room in a queue: rare enough to look at every SA for it.
void Dataplane::State::take_untold(std::vector<Event>& events) const {
  const auto now = std::chrono::steady_clock::now();
  const auto take = [&](SaCommon& sa, Direction direction) {
    const std::uint8_t untold = sa.life.take_untold();
    for (const auto& [what, kind] : {std::pair{LifeState::kMoved, EventKind::mapping_changed},
                                     {LifeState::kSoft, EventKind::soft_expire},
                                     {LifeState::kHard, EventKind::hard_expire}}) {
      if ((untold & what) == 0) continue;
      events.push_back(sa_event(kind, sa, direction));
      events.back().when = now;
    }
  };
  for (OutboundSa* sa : tables.all_outbound()) take(*sa, Direction::out);
  for (InboundSa* sa : tables.all_inbound()) take(*sa, Direction::in);
}

std::vector<Event> Dataplane::take_events() {
  State& s = *state_;
  eventfd_t rings = 0;
  ::eventfd_read(s.event_fd.get(), &rings);
  std::vector<Event> events;
  bool left = false;
  for (const auto& worker : s.workers) {
    EventQueue& queue = worker->events();
    queue.answer();
    Event event;
    // No longer than the queue: a worker that posts all the time must not hold this thread.
    for (std::uint32_t i = 0; i < EventQueue::kSlots && queue.take(event); ++i)
      events.push_back(event);
    if (!queue.empty()) ::eventfd_write(s.event_fd.get(), 1);
    left = queue.take_left() || left;
  }
  if (left) s.take_untold(events);
  if (s.paths.take_reports(events)) ::eventfd_write(s.event_fd.get(), 1);
  s.paths.ask_refused();
  s.take_due(events);
  std::stable_sort(events.begin(), events.end(),
                   [](const Event& a, const Event& b) { return a.when < b.when; });
  return events;
}

std::uint64_t Dataplane::events_lost() const noexcept {
  std::uint64_t lost = 0;
  for (const auto& worker : state_->workers) lost += worker->events().lost();
  return lost;
}

std::optional<std::chrono::steady_clock::time_point> Dataplane::next_expiry() const {
  return state_->expiries.next([this](const auto& due) { return state_->holds(due); });
}

void Dataplane::extend_limit(SaId id, std::uint64_t limit) {
  OutboundSa* sa = state_->tables.outbound(id);
  if (sa != nullptr) set_limit(*sa, limit);
}

std::optional<SaProgress> Dataplane::progress(SaId id) const {
  const OutboundSa* const out = state_->tables.outbound(id);
  InboundSa* const in = state_->tables.inbound(id);
  if (out == nullptr && in == nullptr) return std::nullopt;
  SaProgress progress;
  progress.direction = out != nullptr ? Direction::out : Direction::in;
  const SaCounters& counters = out != nullptr ? out->counters : in->counters;
  progress.traffic.packets = counters.packets.load(std::memory_order_relaxed);
  progress.traffic.bytes = counters.bytes.load(std::memory_order_relaxed);
  if (out != nullptr) {
    progress.seq = out->next_seq.load(std::memory_order_relaxed);
  } else {
    const SaLock lock(*in);
    progress.seq = in->window.top();
  }
  return progress;
}

void Dataplane::refresh_paths() {
  state_->paths.ask_again();
  state_->sockets.tidy();
}

void Dataplane::send_keepalives(std::chrono::seconds idle) {
  dataplane::send_keepalives(state_->workers, state_->tables, idle);
}

std::vector<DeviceStatus> Dataplane::devices() const {
  std::vector<DeviceStatus> all;
  for (const Device* d : state_->tables.all_devices())
    all.push_back(status_of(*d, state_->workers.size()));
  return all;
}

std::vector<PolicyStatus> Dataplane::policies() const {
  std::vector<PolicyStatus> all;
  for (const Policy* p : state_->tables.all_policies()) all.push_back({p->id, p->spec});
  return all;
}

std::vector<SaStatus> Dataplane::sas() const {
  std::vector<SaStatus> all;
  for (const OutboundSa* sa : state_->tables.all_outbound()) all.push_back(status_of(*sa));
  for (InboundSa* sa : state_->tables.all_inbound()) all.push_back(status_of(*sa));
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return all;
}

std::vector<PolicyStatus> Dataplane::policies(PolicyId after, std::size_t count) const {
  std::vector<PolicyStatus> page;
  for (const Policy* p : state_->tables.policies_after(after, count))
    page.push_back({p->id, p->spec});
  return page;
}

std::vector<SaStatus> Dataplane::sas(SaId after, std::size_t count) const {
  std::vector<SaStatus> page;
  for (const OutboundSa* sa : state_->tables.outbound_after(after, count))
    page.push_back(status_of(*sa));
  for (InboundSa* sa : state_->tables.inbound_after(after, count)) page.push_back(status_of(*sa));
  std::sort(page.begin(), page.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  page.resize(std::min(page.size(), count));
  return page;
}

std::size_t Dataplane::sa_count() const noexcept {
  return state_->tables.sa_count();
}

std::optional<Explanation> Dataplane::explain(const std::string& device,
                                              std::span<const std::uint8_t> packet) const {
  const Device* const found = state_->tables.device(device);
  if (found == nullptr) return std::nullopt;
  return dataplane::explain(*found, packet, coarse_now_ns());
}

std::optional<SaStatus> Dataplane::sa(SaId id) const {
  if (const OutboundSa* out = state_->tables.outbound(id)) return status_of(*out);
  if (InboundSa* in = state_->tables.inbound(id)) return status_of(*in);
  return std::nullopt;
}

std::array<std::uint64_t, kDropCount> Dataplane::drops() const {
  std::array<std::uint64_t, kDropCount> totals{};
  for (const auto& worker : state_->workers)
    for (std::size_t i = 0; i < kDropCount; ++i)
      totals[i] += worker->counters().drops[i].load(std::memory_order_relaxed);
  return totals;
}

}  // namespace espalier::dataplane
