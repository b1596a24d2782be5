#include "dataplane/dataplane.h"

#include <algorithm>
#include <stdexcept>

#include "dataplane/tables.h"
#include "dataplane/worker.h"
#include "ifaces/esp_socket.h"

namespace espalier::dataplane {
namespace {

std::string hex(Spi spi) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text = "0x";
  for (int shift = 28; shift >= 0; shift -= 4)
    text += digits[static_cast<std::uint32_t>(spi) >> shift & 0xf];
  return text;
}

std::uint64_t sum(const Device& device, unsigned workers,
                  std::atomic<std::uint64_t> DeviceCounters::*counter) {
  std::uint64_t total = 0;
  for (unsigned w = 0; w < workers; ++w)
    total += (device.counters[w].*counter).load(std::memory_order_relaxed);
  return total;
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
}

SaStatus status_of(const OutboundSa& sa) {
  SaStatus status;
  describe(sa, sa.counters, status);
  status.direction = Direction::out;
  status.seq = sa.next_seq.load(std::memory_order_relaxed);
  status.seq_limit = sa.seq_limit.load(std::memory_order_relaxed);
  status.drops[static_cast<std::size_t>(Drop::seq_exhausted)] =
      sa.exhausted.load(std::memory_order_relaxed);
  return status;
}

SaStatus status_of(InboundSa& sa) {
  SaStatus status;
  describe(sa, sa.counters, status);
  status.direction = Direction::in;
  status.window_bits = sa.window.bits();
  {
    const SaLock lock(sa);
    status.seq = sa.window.top();
  }
  for (std::size_t i = 0; i < kDropCount; ++i)
    status.drops[i] = sa.drops[i].load(std::memory_order_relaxed);
  return status;
}

}  // namespace

struct Dataplane::State {
  State(const crypto::Registry& r, Options o) : registry(r), options(std::move(o)) {
    offloads = ifaces::probe_tun_offloads(options.offloads);
    for (unsigned i = 0; i < options.workers; ++i)
      workers.push_back(std::make_unique<Worker>(
          Worker::Setup{i, options.io, options.pin, offloads}, tables.sad()));
  }

  // Nothing that a worker could still hold is in use when this returns.
  void grace() {
    for (const auto& worker : workers) worker->call([](ifaces::Engine&) {});
    tables.reclaim();
  }

  OuterSocket& socket_for(const SaSpec& spec);
  void open_socket(OuterSocket& socket);
  void release_socket(OuterSocket& socket);
  void attach(std::vector<ifaces::UniqueFd>& fds, std::vector<ifaces::Port>& ports,
              ifaces::PortKind kind, Worker::PortOwner owner);
  void detach(const std::vector<ifaces::Port>& ports);
  void fill(SaCommon& sa, const SaSpec& spec);
  void check(const SaSpec& spec) const;

  const crypto::Registry& registry;
  Options options;
  ifaces::TunOffloads offloads;
  Tables tables;
  std::vector<std::unique_ptr<OuterSocket>> sockets;
  std::vector<std::unique_ptr<Worker>> workers;  // destroyed first: they use all of the above
  std::uint32_t next_id = 1;
};

Dataplane::Dataplane(const crypto::Registry& registry, Options options) {
  if (options.workers == 0) options.workers = std::max(1U, std::thread::hardware_concurrency());
  state_ = std::make_unique<State>(registry, std::move(options));
}

Dataplane::~Dataplane() = default;

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
  auto device = std::make_unique<Device>();
  device->id = DeviceId{s.next_id++};
  device->spec = spec;
  device->counters = std::make_unique<DeviceCounters[]>(s.workers.size());
  for (std::size_t w = 0; w < s.workers.size(); ++w)
    device->queues.push_back(ifaces::open_tun(spec.name, s.workers.size() > 1, s.offloads));
  s.attach(device->queues, device->ports, ifaces::PortKind::tun, {device.get(), nullptr});
  const DeviceId id = device->id;
  s.tables.add(std::move(device));
  return id;
}

void Dataplane::remove_device(DeviceId id) {
  State& s = *state_;
  std::unique_ptr<Device> device = s.tables.remove(id);
  if (!device) return;
  s.detach(device->ports);  // also a grace period
  s.tables.reclaim();
}

PolicyId Dataplane::add_policy(const PolicySpec& spec) {
  const PolicyId id{state_->next_id++};
  state_->tables.add(std::make_unique<Policy>(id, spec));
  state_->grace();
  return id;
}

void Dataplane::remove_policy(PolicyId id) {
  const std::unique_ptr<Policy> policy = state_->tables.remove(id);
  if (policy) state_->grace();
}

void Dataplane::State::open_socket(OuterSocket& socket) {
  const auto count = static_cast<unsigned>(workers.size());
  const ifaces::OuterOptions outer{socket.mark};
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
}

OuterSocket& Dataplane::State::socket_for(const SaSpec& spec) {
  for (const auto& socket : sockets)
    if (socket->encapsulation == spec.encapsulation && socket->local == spec.local &&
        socket->mark == spec.outer_mark)
      return *socket;
  auto socket = std::make_unique<OuterSocket>();
  socket->encapsulation = spec.encapsulation;
  socket->local = spec.local;
  socket->local_words = words(spec.local.address);
  socket->mark = spec.outer_mark;
  open_socket(*socket);
  sockets.push_back(std::move(socket));
  return *sockets.back();
}

void Dataplane::State::release_socket(OuterSocket& socket) {
  if (--socket.users > 0) return;
  detach(socket.ports);
  std::erase_if(sockets, [&socket](const auto& s) { return s.get() == &socket; });
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
  const auto key = spec.keymat.bytes().first(suite.keys());
  const auto salt = spec.keymat.bytes().subspan(suite.keys());
  std::copy(salt.begin(), salt.end(), sa.salt.begin());
  sa.keys.push_back(backend.expand(spec.suite, key));
  if (!sa.keys.front()->shareable())
    while (sa.keys.size() < workers.size()) sa.keys.push_back(backend.expand(spec.suite, key));
  sa.peer = tables.peer(spec.reqid);
  if (!sa.peer) sa.peer = std::make_shared<Peer>(spec.peer);
}

SaId Dataplane::add_sa(SaSpec spec) {
  State& s = *state_;
  s.check(spec);
  OuterSocket& socket = s.socket_for(spec);
  ++socket.users;
  try {
    const std::uint64_t last =
        spec.esn ? std::numeric_limits<std::uint64_t>::max() - 1 : 0xffffffff;
    if (spec.direction == Direction::out) {
      auto sa = std::make_unique<OutboundSa>();
      s.fill(*sa, spec);
      sa->socket = &socket;
      sa->next_seq.store(std::max<std::uint64_t>(spec.next_seq, 1));
      sa->seq_limit.store(std::min(spec.seq_limit, last));
      const SaId id = sa->id;
      s.tables.add(std::move(sa), spec.keymat.bytes());
      return id;
    }
    auto sa = std::make_unique<InboundSa>(spec.window_bits,
                                          std::max<std::uint64_t>(spec.next_seq, 1) - 1);
    s.fill(*sa, spec);
    sa->socket = &socket;
    sa->set_local(spec.local.address);
    sa->follow_peer = spec.follow_peer && spec.encapsulation == Encapsulation::udp;
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
  if (const std::unique_ptr<OutboundSa> sa = s.tables.remove_outbound(id)) {
    s.grace();
    s.release_socket(*sa->socket);
  } else if (const std::unique_ptr<InboundSa> in = s.tables.remove_inbound(id)) {
    s.grace();
    s.release_socket(*in->socket);
  }
}

void Dataplane::extend_limit(SaId id, std::uint64_t limit) {
  OutboundSa* sa = state_->tables.outbound(id);
  if (sa == nullptr) return;
  const std::uint64_t last = sa->esn ? std::numeric_limits<std::uint64_t>::max() - 1 : 0xffffffff;
  sa->seq_limit.store(std::min(limit, last), std::memory_order_release);
}

void Dataplane::send_keepalives(std::chrono::seconds idle) {
  State& s = *state_;
  const std::int64_t before_ns =
      coarse_now_ns() - std::chrono::duration_cast<std::chrono::nanoseconds>(idle).count();
  static constexpr std::uint8_t kKeepalive = 0xff;
  s.workers.front()->call([&](ifaces::Engine& engine) {
    for (const OutboundSa* sa : s.tables.all_outbound()) {
      const ifaces::Endpoint to = sa->peer->get();
      if (sa->encapsulation != Encapsulation::udp || to.address.is_any() ||
          sa->counters.last_packet_ns.load(std::memory_order_relaxed) > before_ns)
        continue;
      sockaddr_storage address{};
      const socklen_t length = to.to(address);
      engine.send({.port = sa->socket->ports.front(),
                   .tos = 0,
                   .segment_size = 0,
                   .len = 1,
                   .data = &kKeepalive,
                   .to = &address,
                   .to_len = length},
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
    status.rx = {sum(*d, workers, &DeviceCounters::rx_packets),
                 sum(*d, workers, &DeviceCounters::rx_bytes)};
    status.tx = {sum(*d, workers, &DeviceCounters::tx_packets),
                 sum(*d, workers, &DeviceCounters::tx_bytes)};
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
