#include "dataplane/dataplane.h"

#include <malloc.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <map>
#include <set>
#include <stdexcept>
#include <system_error>

#include "crypto/iv_source.h"
#include "dataplane/esp.h"
#include "dataplane/esp_encap.h"
#include "dataplane/expiry.h"
#include "dataplane/paths.h"
#include "dataplane/reporter.h"
#include "dataplane/tables.h"
#include "dataplane/used_numbers.h"
#include "dataplane/worker.h"
#include "ifaces/esp_socket.h"
#include "ifaces/ike_socket.h"

namespace espalier::dataplane {
namespace {

// SAs and policies that go at once, from which on their memory is given back to the system.
constexpr std::size_t kTrimFrom = 10000;

template <class T>
void free_all(std::vector<T>& retired) {
  std::vector<T>().swap(retired);
}

std::string hex(Spi spi) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text = "0x";
  for (int shift = 28; shift >= 0; shift -= 4)
    text += digits[static_cast<std::uint32_t>(spi) >> shift & 0xf];
  return text;
}

// The last number that may ever be used (RFC 4303 §3.3.3: it never cycles). With ESN a batch may
// reserve past it; the last 2^32 are the room for that.
std::uint64_t last_seq(const SaCommon& sa) {
  constexpr std::uint64_t kRoom = std::uint64_t{1} << 32;
  return sa.esn ? std::numeric_limits<std::uint64_t>::max() - kRoom : 0xffffffff;
}

// A worker that ends the SA sets its limit to 0 last: whatever is in between, that stands.
void set_limit(OutboundSa& sa, std::uint64_t limit) {
  limit = std::min(limit, last_seq(sa));
  std::uint64_t before = sa.seq_limit.load(std::memory_order_acquire);
  while (!sa.life.expired() &&
         !sa.seq_limit.compare_exchange_weak(before, limit, std::memory_order_acq_rel)) {
  }
}

// Without ESN there are 2^32 numbers; the last 2^28 of them are time to replace the SA. In packets
// of its count; kNever with ESN.
std::uint64_t margin_packets(const OutboundSa& sa) {
  if (sa.esn) return Limits::kNever;
  constexpr std::uint64_t kSoft = (std::uint64_t{1} << 32) - (std::uint64_t{1} << 28);
  const std::uint64_t next = sa.next_seq.load(std::memory_order_relaxed);
  const std::uint64_t sent = sa.counters.packets.load(std::memory_order_relaxed);
  return sent + (next < kSoft ? kSoft - next : 1);
}

void check_window(bool esn, std::uint32_t bits) {
  if (bits == 0 && esn)
    throw std::invalid_argument(
        "extended sequence numbers need a replay window (RFC 4303 §3.4.3); take a window of 32 to "
        "65536 packets, or no ESN");
  if (bits != 0 && (bits < kMinWindowBits || bits > kMaxWindowBits))
    throw std::invalid_argument("a replay window of " + std::to_string(bits) +
                                " packets; take 32 to 65536, or 0 for none without ESN");
}

void check_lifetime(const Lifetime& lifetime) {
  const auto check = [](const char* what, const Limit& limit) {
    if (limit.hard != 0 && limit.soft > limit.hard)
      throw std::invalid_argument(std::string("the soft limit of ") + what + " (" +
                                  std::to_string(limit.soft) + ") is above the hard one (" +
                                  std::to_string(limit.hard) + "); make it smaller");
  };
  check("bytes", lifetime.bytes);
  check("packets", lifetime.packets);
  check("seconds", lifetime.seconds);
}

std::uint64_t sum(const Device& device, unsigned workers,
                  std::atomic<std::uint64_t> DeviceCounters::*counter) {
  std::uint64_t total = 0;
  for (unsigned w = 0; w < workers; ++w)
    total += (device.counters[w].*counter).load(std::memory_order_relaxed);
  return total;
}

const Lifetime& lifetime_of(const SaCommon& sa) {
  static constexpr Lifetime kNone{};
  const Limits* limits = sa.limits.load(std::memory_order_relaxed);
  return limits == nullptr ? kNone : limits->asked;
}

void describe(const SaCommon& sa, const SaCounters& counters, SaStatus& status) {
  status.id = sa.id;
  status.spi = sa.spi;
  status.reqid = sa.reqid;
  status.name = sa.name;
  status.encapsulation = sa.encapsulation;
  status.local = sa.socket->local;
  status.peer = sa.peer->get();
  status.suite = sa.suite;
  status.backend = sa.backend;
  status.esn = sa.esn;
  status.traffic.packets = counters.packets.load(std::memory_order_relaxed);
  status.traffic.bytes = counters.bytes.load(std::memory_order_relaxed);
  const std::int64_t last = counters.last_packet_ns.load(std::memory_order_relaxed);
  if (last != 0)
    status.last_packet = std::chrono::steady_clock::time_point(std::chrono::nanoseconds(last));
  status.added = sa.added;
  status.lifetime = lifetime_of(sa);
  status.expired = sa.life.expired();
}

SaStatus status_of(const OutboundSa& sa) {
  SaStatus status;
  describe(sa, sa.counters, status);
  status.direction = Direction::out;
  status.seq = sa.next_seq.load(std::memory_order_relaxed);
  status.seq_limit = sa.seq_limit.load(std::memory_order_relaxed);
  status.path_mtu = sa.peer->path().get(coarse_now_ns());
  status.drops[static_cast<std::size_t>(Drop::seq_exhausted)] =
      sa.exhausted.load(std::memory_order_relaxed);
  status.drops[static_cast<std::size_t>(Drop::expired)] =
      sa.after_end.load(std::memory_order_relaxed);
  return status;
}

SaStatus status_of(InboundSa& sa) {
  SaStatus status;
  describe(sa, sa.counters, status);
  status.direction = Direction::in;
  {
    const SaLock lock(sa);
    status.window_bits = sa.window.bits();
    status.seq = sa.window.top();
  }
  for (std::size_t i = 0; i < kDropCount; ++i)
    status.drops[i] = sa.drops[i].load(std::memory_order_relaxed);
  return status;
}

}  // namespace

struct Dataplane::State {
  State(const crypto::Registry& r, Options o)
      : registry(r), options(std::move(o)), event_fd(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    if (!event_fd) throw std::system_error(errno, std::generic_category(), "eventfd");
    offloads = ifaces::probe_tun_offloads(options.offloads);
    for (unsigned i = 0; i < options.workers; ++i)
      workers.push_back(std::make_unique<Worker>(
          Worker::Setup{i, options.io, options.pin, offloads, event_fd.get()}, tables.sad()));
  }

  // What was taken out of the tables is freed when no worker can hold it any more: before this
  // returns, or at the end of the batch.
  void retire(std::unique_ptr<Policy> policy);
  void retire(std::unique_ptr<OutboundSa> sa);
  void retire(std::unique_ptr<InboundSa> sa);
  void retire(const Limits* limits);
  void grace();   // unless a batch puts it off
  void settle();  // now

  OuterSocket& socket_for(Encapsulation encapsulation, const ifaces::Endpoint& local);
  void open_ike(OuterSocket& socket, std::uint32_t mark);
  void open_socket(OuterSocket& socket);
  void open_sender(OuterSocket& socket);
  void take_reports(std::vector<Event>& events);
  void ask_links();
  [[nodiscard]] bool hears(const OuterSocket& socket) const noexcept {
    return workers.front()->hears(socket.local.address.family);
  }
  void release_socket(OuterSocket& socket);
  void attach(std::vector<ifaces::UniqueFd>& fds, std::vector<ifaces::Port>& ports,
              ifaces::PortKind kind, Worker::PortOwner owner);
  void detach(const std::vector<ifaces::Port>& ports);
  void fill(SaCommon& sa, const SaSpec& spec);
  void set_carriers(bool lower);
  void check(const SaSpec& spec) const;
  [[nodiscard]] std::uint64_t first_number(const OutboundSa& sa, std::uint64_t asked);
  SaCommon& known(SaId id) const;
  void set_lifetime(SaCommon& sa, const Lifetime& lifetime, std::uint64_t margin_packets);
  void resize(InboundSa& sa, std::uint32_t window_bits) const;
  [[nodiscard]] bool holds(const ExpiryQueue::Due& due) const;
  void take_due(std::vector<Event>& events);

  const crypto::Registry& registry;
  Options options;
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
  std::vector<std::unique_ptr<OuterSocket>> sockets;
  std::vector<std::unique_ptr<Worker>> workers;  // destroyed first: they use all of the above
  std::uint32_t next_id = 1;
  bool links_limited = false;  // a PathMtu has a link()
  std::optional<ifaces::Netlink> netlink;
  bool carriers_wait = false;  // some are to go down
};

Dataplane::Dataplane(const crypto::Registry& registry, Options options) {
  if (options.workers == 0) options.workers = std::max(1U, std::thread::hardware_concurrency());
  state_ = std::make_unique<State>(registry, std::move(options));
}

Dataplane::~Dataplane() = default;

// --------------------------------------------------------------------------------- removal

void Dataplane::State::grace() {
  if (batches == 0) settle();
}

void Dataplane::State::settle() {
  for (const auto& worker : workers) worker->call([](ifaces::Engine&) {});
  tables.reclaim();
  const std::size_t freed = old_policies.size() + old_outbound.size() + old_inbound.size();
  free_all(old_policies);
  for (const auto& sa : old_outbound) {
    used_numbers.remember(sa->key_name, sa->next_seq.load(std::memory_order_relaxed));
    release_socket(*sa->socket);
  }
  for (const auto& sa : old_inbound) release_socket(*sa->socket);
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
  std::string text = state_->workers.front()->engine();
  const std::string offloads = state_->offloads.str();
  text += offloads.empty() ? ", TUN without offloads" : ", TUN " + offloads;
  const unsigned gso =
      state_->options.udp_gso ? ifaces::probe_udp_gso(*ifaces::IpAddress::parse("127.0.0.1")) : 0;
  text += gso == 0 ? ", no UDP GSO" : ", UDP GSO " + std::to_string(gso);
  return text;
}

unsigned Dataplane::workers() const noexcept {
  return state_->options.workers;
}

void Dataplane::State::attach(std::vector<ifaces::UniqueFd>& fds, std::vector<ifaces::Port>& ports,
                              ifaces::PortKind kind, Worker::PortOwner owner) {
  ports.assign(workers.size(), 0);
  for (std::size_t w = 0; w < workers.size(); ++w) {
    try {
      workers[w]->call([&](ifaces::Engine& engine) {
        ports[w] = engine.attach(kind, fds[w].get());
        workers[w]->owner(ports[w]) = owner;
      });
    } catch (...) {
      ports.resize(w);
      detach(ports);
      throw;
    }
  }
}

void Dataplane::State::detach(const std::vector<ifaces::Port>& ports) {
  for (std::size_t w = 0; w < ports.size(); ++w)
    workers[w]->call([&](ifaces::Engine& engine) {
      engine.detach(ports[w]);
      workers[w]->owner(ports[w]) = {};
    });
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
  for (std::size_t w = 0; w < s.workers.size(); ++w)
    device->queues.push_back(ifaces::open_tun(spec.name, s.workers.size() > 1, s.offloads));
  s.attach(device->queues, device->ports, ifaces::PortKind::tun, {device.get(), nullptr});
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
  s.detach(device->ports);  // also a grace period
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

void Dataplane::State::open_socket(OuterSocket& socket) {
  const auto count = static_cast<unsigned>(workers.size());
  ifaces::OuterOptions outer;  // marks are the datagrams'
  outer.fragmenting =
      hears(socket) ? ifaces::Fragmenting::refuse_link : ifaces::Fragmenting::refuse_path;
  const bool udp = socket.encapsulation == Encapsulation::udp;
  for (unsigned w = 0; w < count; ++w)
    socket.fds.push_back(udp ? ifaces::open_udp(socket.local, {w, count}, outer)
                             : ifaces::open_raw_esp(socket.local.address, {w, count}, outer));
  const bool ipv6 = socket.local.address.family == ifaces::Family::v6;
  const ifaces::PortKind kind = udp    ? ifaces::PortKind::udp
                                : ipv6 ? ifaces::PortKind::raw_esp6
                                       : ifaces::PortKind::raw_esp4;
  if (udp && options.udp_gso) socket.gso_segments = ifaces::probe_udp_gso(socket.local.address);
  attach(socket.fds, socket.ports, kind, {nullptr, &socket});
  open_sender(socket);  // now: workers read its ports without a lock
}

void Dataplane::send_dummies(SaId id, unsigned count, unsigned length) {
  State& s = *state_;
  OutboundSa* sa = s.tables.outbound(id);
  if (sa == nullptr)
    throw std::invalid_argument("there is no outbound SA with the id " +
                                std::to_string(static_cast<std::uint32_t>(id)));
  const crypto::SuiteInfo& suite = crypto::info(sa->suite);
  constexpr unsigned kLongest = 9000;
  if (length > kLongest)
    throw std::invalid_argument("a dummy packet of " + std::to_string(length) +
                                " bytes; write at most " + std::to_string(kLongest));
  std::vector<std::uint8_t> packet(esp_length(suite, length));
  s.workers.front()->call([&](ifaces::Engine& engine) {
    crypto::IvSource ivs;
    ifaces::Endpoint to = sa->peer->get();
    if (sa->encapsulation == Encapsulation::esp) to.port = 0;
    sockaddr_storage address{};
    const socklen_t address_length = to.to(address);
    for (unsigned i = 0; i < count && !to.address.is_any(); ++i) {
      std::uint64_t seq = 0;
      if (sa->life.expired() || sa->reserve(1, seq) == 0) return;
      std::fill(packet.begin(), packet.end(), std::uint8_t{0});
      crypto::AeadOp op{};
      esp_frame(*sa, suite, seq, packet.data(), length, kNextNone, op);
      if (suite.iv_kind == crypto::IvKind::random) ivs.draw(op.text - suite.iv);
      sa->key(0).seal({&op, 1});
      if (!op.good) return;
      engine.send({.port = sa->socket->ports.front(),
                   .tos = 0,
                   .segment_size = 0,
                   .len = static_cast<std::uint32_t>(packet.size()),
                   .data = packet.data(),
                   .to = &address,
                   .to_len = address_length,
                   .mark = sa->outer_mark},
                  0);
      engine.flush();
    }
  });
}

// Without it everything is sent with DF set: a sender more is a convenience.
void Dataplane::State::open_sender(OuterSocket& socket) {
  ifaces::OuterOptions outer;
  outer.fragmenting = ifaces::Fragmenting::allow;
  const bool udp = socket.encapsulation == Encapsulation::udp;
  const bool ipv6 = socket.local.address.family == ifaces::Family::v6;
  const bool grouped = workers.size() > 1 || socket.has_ike.load(std::memory_order_relaxed);
  try {
    std::vector<ifaces::UniqueFd> fds;
    for (std::size_t w = 0; w < workers.size(); ++w)
      fds.push_back(udp ? ifaces::open_udp_sender(socket.local, socket.fds, grouped, outer)
                        : ifaces::open_raw_esp_sender(socket.local.address, outer));
    const ifaces::PortKind kind = udp    ? ifaces::PortKind::udp
                                  : ipv6 ? ifaces::PortKind::raw_esp6
                                         : ifaces::PortKind::raw_esp4;
    std::vector<ifaces::Port> ports;
    attach(fds, ports, kind, {nullptr, &socket});
    socket.sender_fds = std::move(fds);
    socket.sender_ports = std::move(ports);
  } catch (const std::system_error&) {
  }
}

OuterSocket& Dataplane::State::socket_for(Encapsulation encapsulation,
                                          const ifaces::Endpoint& local) {
  for (const auto& socket : sockets)
    if (socket->encapsulation == encapsulation && socket->local == local) return *socket;
  auto socket = std::make_unique<OuterSocket>();
  socket->encapsulation = encapsulation;
  socket->local = local;
  socket->local_words = words(local.address);
  open_socket(*socket);
  sockets.push_back(std::move(socket));
  return *sockets.back();
}

void Dataplane::State::release_socket(OuterSocket& socket) {
  if (--socket.users > 0) return;
  detach(socket.ports);
  detach(socket.injectors);
  detach(socket.sender_ports);
  std::erase_if(sockets, [&socket](const auto& s) { return s.get() == &socket; });
}

void Dataplane::State::open_ike(OuterSocket& socket, std::uint32_t mark) {
  socket.ike = ifaces::open_ike(socket.local, socket.fds,
                                static_cast<unsigned>(socket.sender_fds.size()), mark);
  const bool v6 = socket.local.address.family == ifaces::Family::v6;
  for (std::size_t w = 0; w < workers.size(); ++w)
    socket.injector_fds.push_back(ifaces::open_injector(socket.local.address.family));
  // No owner: what this port could receive is nobody's.
  attach(socket.injector_fds, socket.injectors,
         v6 ? ifaces::PortKind::raw_esp6 : ifaces::PortKind::raw_esp4, {});
  socket.ike_address_length = ifaces::Endpoint{socket.local.address, 0}.to(socket.ike_address);
  socket.has_ike.store(true, std::memory_order_release);
}

int Dataplane::ike_socket(const ifaces::Endpoint& local, std::uint32_t mark) {
  State& s = *state_;
  OuterSocket& socket = s.socket_for(Encapsulation::udp, local);
  if (socket.has_ike.load(std::memory_order_relaxed)) return socket.ike.get();
  ++socket.users;  // the daemon counts as one, for good
  try {
    s.open_ike(socket, mark);
  } catch (...) {
    s.detach(socket.injectors);
    socket.injectors.clear();
    socket.injector_fds.clear();
    socket.ike = {};
    s.release_socket(socket);
    throw;
  }
  return socket.ike.get();
}

void Dataplane::State::check(const SaSpec& spec) const {
  const crypto::SuiteInfo& suite = crypto::info(spec.suite);
  if (static_cast<std::uint32_t>(spec.spi) < kFirstSpi)
    throw std::invalid_argument("SPI " + hex(spec.spi) +
                                " is reserved; choose one from 0x00000100 up");
  if (spec.keymat.size() != suite.keymat())
    throw std::invalid_argument(std::string(suite.name) + " takes " +
                                std::to_string(suite.keymat()) + " bytes of keys and salt, not " +
                                std::to_string(spec.keymat.size()));
  if (spec.direction == Direction::in && tables.inbound(spec.spi, spec.local.address) != nullptr)
    throw std::invalid_argument("there is an inbound SA with SPI " + hex(spec.spi) + " at " +
                                spec.local.address.str() + " already; choose another SPI");
  if (tables.has_key(spec.keymat.bytes()))
    throw std::invalid_argument("SA " + hex(spec.spi) +
                                ": another SA has the same key and salt; make fresh keys");
  check_window(spec.esn, spec.window_bits);
  check_lifetime(spec.lifetime);
  if (registry.backend(spec.suite) == nullptr)
    throw std::invalid_argument(std::string(suite.name) + ": no crypto backend in use has it");
}

void Dataplane::State::fill(SaCommon& sa, const SaSpec& spec) {
  const crypto::SuiteInfo& suite = crypto::info(spec.suite);
  const crypto::Backend& backend = *registry.backend(spec.suite);
  sa.id = SaId{next_id++};
  sa.spi = spec.spi;
  sa.reqid = spec.reqid;
  sa.encapsulation = spec.encapsulation;
  sa.esn = spec.esn;
  sa.suite = spec.suite;
  sa.backend = backend.name();
  sa.name = spec.name;
  sa.key_name = crypto::fingerprint(spec.keymat.bytes());
  sa.added = std::chrono::steady_clock::now();
  sa.outer_mark = spec.outer_mark;
  sa.mss_clamp = spec.mss_clamp;
  const auto key = spec.keymat.bytes().first(suite.keys());
  const auto salt = spec.keymat.bytes().subspan(suite.keys());
  std::copy(salt.begin(), salt.end(), sa.salt.begin());
  sa.keys.push_back(backend.expand(spec.suite, key));
  if (!sa.keys.front()->shareable())
    while (sa.keys.size() < workers.size()) sa.keys.push_back(backend.expand(spec.suite, key));
  sa.mark = spec.mark;
  sa.if_id = spec.if_id;
  sa.local = spec.local.address;
  sa.remote = spec.peer.address;
  sa.moves =
      spec.encapsulation == Encapsulation::udp && (spec.follow_peer || spec.peer.address.is_any());
  sa.remote_port = spec.peer.port;
  sa.peer = tables.peer(spec.reqid, spec.peer);
  if (!sa.peer) sa.peer = std::make_shared<Peer>(spec.peer);
}

SaId Dataplane::add_sa(SaSpec spec) {
  State& s = *state_;
  s.check(spec);
  if (spec.outer_mark != 0) ifaces::check_mark(spec.local.address);
  OuterSocket& socket = s.socket_for(spec.encapsulation, spec.local);
  ++socket.users;
  try {
    if (spec.direction == Direction::out) {
      auto sa = std::make_unique<OutboundSa>();
      s.fill(*sa, spec);
      sa->socket = &socket;
      sa->outer = OuterRule(spec.outer);
      sa->tfc_padding = spec.tfc_padding;
      if (spec.tfc_padding == kTfcToMtu || spec.mss_clamp == kMssToPath) {
        ask_link(*sa, s.hears(socket), s.netlink);
        s.links_limited = true;
      }
      sa->next_seq.store(s.first_number(*sa, spec.next_seq));
      sa->seq_limit.store(std::min(spec.seq_limit, last_seq(*sa)));
      s.set_lifetime(*sa, spec.lifetime, margin_packets(*sa));
      const SaId id = sa->id;
      s.tables.add(std::move(sa), spec.keymat.bytes());
      s.set_carriers(false);
      return id;
    }
    auto sa = std::make_unique<InboundSa>(spec.window_bits,
                                          std::max<std::uint64_t>(spec.next_seq, 1) - 1);
    s.fill(*sa, spec);
    sa->socket = &socket;
    sa->set_local(spec.local.address);
    sa->dscp_inwards = spec.outer.dscp_inwards;
    sa->follow_peer = spec.follow_peer && spec.encapsulation == Encapsulation::udp;
    s.set_lifetime(*sa, spec.lifetime, Limits::kNever);
    const SaId id = sa->id;
    s.tables.add(std::move(sa), spec.keymat.bytes());
    return id;
  } catch (...) {
    s.release_socket(socket);
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

// ------------------------------------------------------------------------------ the life of an SA

// Where an outbound SA may start: never where its key has been before.
std::uint64_t Dataplane::State::first_number(const OutboundSa& sa, std::uint64_t asked) {
  if (old_keys.contains(sa.key_name)) settle();
  return std::max(asked, used_numbers.next(sa.key_name));
}

SaCommon& Dataplane::State::known(SaId id) const {
  if (OutboundSa* out = tables.outbound(id)) return *out;
  if (InboundSa* in = tables.inbound(id)) return *in;
  throw std::invalid_argument("there is no SA with the id " +
                              std::to_string(static_cast<std::uint32_t>(id)));
}

void Dataplane::State::set_lifetime(SaCommon& sa, const Lifetime& lifetime,
                                    std::uint64_t margin_packets) {
  std::unique_ptr<const Limits> limits;
  if (lifetime != Lifetime{} || margin_packets != Limits::kNever)
    limits = std::make_unique<const Limits>(lifetime, margin_packets);
  expiries.set(sa.id, sa.added, lifetime.seconds);
  retire(sa.limits.exchange(limits.release(), std::memory_order_acq_rel));
  // After the grace period: a worker that still had the old limits may have found them reached.
  sa.life.clear_soft();
}

void Dataplane::State::resize(InboundSa& sa, std::uint32_t window_bits) const {
  ReplayWindow window(window_bits);
  const SaLock lock(sa);
  window.take_over(sa.window);
  std::swap(window, sa.window);
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

  if (update.window_bits) s.resize(*in, *update.window_bits);
  if (update.peer) {
    sa.peer->set(*update.peer);
    s.tables.moved(sa.reqid, sa.peer.get(), update.peer->address);
  }
  if (update.seq_limit) set_limit(*out, *update.seq_limit);
  if (update.lifetime)
    s.set_lifetime(sa, *update.lifetime, out == nullptr ? Limits::kNever : margin_packets(*out));
}

std::optional<SaId> Dataplane::find_sa(Direction direction, Spi spi,
                                       const ifaces::IpAddress& destination) const {
  if (direction == Direction::in) {
    const InboundSa* sa = state_->tables.inbound(spi, destination);
    return sa == nullptr ? std::nullopt : std::optional(sa->id);
  }
  for (const OutboundSa* sa : state_->tables.all_outbound())
    if (sa->spi == spi && sa->peer->get().address == destination) return sa->id;
  return std::nullopt;
}

int Dataplane::event_fd() const noexcept {
  return state_->event_fd.get();
}

bool Dataplane::State::holds(const ExpiryQueue::Due& due) const {
  const SaCommon* sa = tables.outbound(due.sa);
  if (sa == nullptr) sa = tables.inbound(due.sa);
  if (sa == nullptr || sa->life.expired()) return false;
  const Limit& seconds = lifetime_of(*sa).seconds;
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
      tell = sa.life.set_soft();
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

std::vector<Event> Dataplane::take_events() {
  State& s = *state_;
  eventfd_t rings = 0;
  ::eventfd_read(s.event_fd.get(), &rings);
  std::vector<Event> events;
  for (const auto& worker : s.workers) {
    EventQueue& queue = worker->events();
    queue.answer();
    Event event;
    // No longer than the queue: a worker that posts all the time must not hold this thread.
    for (std::uint32_t i = 0; i < EventQueue::kSlots && queue.take(event); ++i)
      events.push_back(event);
    if (!queue.empty()) ::eventfd_write(s.event_fd.get(), 1);
  }
  s.take_reports(events);
  s.ask_links();
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

void Dataplane::refresh_paths() {
  state_->ask_links();
}

// Once a report: routers limit their rate, and the queue is short.
void Dataplane::State::take_reports(std::vector<Event>& events) {
  // A few at a time: whoever forges them must not hold this thread. The rest is looked at next.
  constexpr int kMost = 8;
  TooBig report;
  for (int i = 0;; ++i) {
    if (i == kMost) {
      ::eventfd_write(event_fd.get(), 1);
      return;
    }
    if (!workers.front()->reports().take(report)) break;
    for (const OutboundSa* sa : tables.all_outbound()) {
      if (!is_about(report, *sa) || !learn(report, *sa, coarse_now_ns())) continue;
      Event event;
      event.kind = EventKind::path_mtu;
      event.direction = Direction::out;
      event.sa = sa->id;
      event.spi = sa->spi;
      event.reqid = sa->reqid;
      event.path_mtu = sa->peer->path().get(coarse_now_ns());
      event.local = sa->socket->local;
      event.peer = sa->peer->get();
      event.when = std::chrono::steady_clock::now();
      events.push_back(event);
    }
  }
}

void Dataplane::State::ask_links() {
  bool refused = false;
  for (const auto& worker : workers) refused = worker->take_refused() || refused;
  if (!refused && !links_limited) return;
  // Where a link was in the way it is asked again every time: it may have grown since.
  links_limited = false;
  for (const OutboundSa* sa : tables.all_outbound()) {
    PathMtu& path = sa->peer->path();
    if (path.take_refused() || path.link() != 0) ask_link(*sa, hears(*sa->socket), netlink);
    links_limited = links_limited || path.link() != 0;
  }
}

void Dataplane::send_keepalives(std::chrono::seconds idle) {
  State& s = *state_;
  const std::int64_t now_ns = coarse_now_ns();
  const std::int64_t before_ns =
      now_ns - std::chrono::duration_cast<std::chrono::nanoseconds>(idle).count();
  // A NAT's mapping is that of two end points, whichever of their SAs used it last.
  struct Mapping {
    std::int64_t last_ns = 0;
    std::vector<OutboundSa*> sas;
  };
  std::map<std::pair<const OuterSocket*, ifaces::Endpoint>, Mapping> mappings;
  for (OutboundSa* sa : s.tables.all_outbound()) {
    const ifaces::Endpoint to = sa->peer->get();
    if (sa->encapsulation != Encapsulation::udp || to.address.is_any()) continue;
    Mapping& mapping = mappings[{sa->socket, to}];
    mapping.last_ns =
        std::max({mapping.last_ns, sa->counters.last_packet_ns.load(std::memory_order_relaxed),
                  sa->last_keepalive_ns});
    mapping.sas.push_back(sa);
  }
  struct Keepalive {
    ifaces::Port port;
    ifaces::Endpoint to;
    std::uint32_t mark;
  };
  std::vector<Keepalive> due;
  for (const auto& [ends, mapping] : mappings) {
    if (mapping.last_ns > before_ns) continue;
    for (OutboundSa* sa : mapping.sas) sa->last_keepalive_ns = now_ns;
    due.push_back({ends.first->ports.front(), ends.second, mapping.sas.back()->outer_mark});
  }
  if (due.empty()) return;
  static constexpr std::uint8_t kKeepalive = 0xff;
  s.workers.front()->call([&](ifaces::Engine& engine) {
    for (const auto& [port, to, mark] : due) {
      sockaddr_storage address{};
      const socklen_t length = to.to(address);
      engine.send({.port = port,
                   .tos = 0,
                   .segment_size = 0,
                   .len = 1,
                   .data = &kKeepalive,
                   .to = &address,
                   .to_len = length,
                   .mark = mark},
                  0);
      engine.flush();
    }
  });
}

std::vector<DeviceStatus> Dataplane::devices() const {
  std::vector<DeviceStatus> all;
  const auto workers = static_cast<unsigned>(state_->workers.size());
  for (const Device* d : state_->tables.all_devices()) {
    DeviceStatus status;
    status.id = d->id;
    status.name = d->spec.name;
    status.ikey = d->spec.ikey;
    status.okey = d->spec.okey;
    status.local = d->spec.local;
    status.remote = d->spec.remote;
    status.carrier = d->carrier;
    status.rx = {sum(*d, workers, &DeviceCounters::rx_packets),
                 sum(*d, workers, &DeviceCounters::rx_bytes)};
    status.tx = {sum(*d, workers, &DeviceCounters::tx_packets),
                 sum(*d, workers, &DeviceCounters::tx_bytes)};
    status.tx_loops = sum(*d, workers, &DeviceCounters::tx_loops);
    status.rx_errors = sum(*d, workers, &DeviceCounters::rx_errors);
    status.tx_no_sa = sum(*d, workers, &DeviceCounters::tx_no_sa);
    all.push_back(std::move(status));
  }
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
