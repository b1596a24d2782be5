#include "tools/memory_path.h"

#include <algorithm>
#include <cstring>
#include <random>

#include "dataplane/bytes.h"
#include "dataplane/esp.h"
#include "dataplane/esp_decap.h"
#include "dataplane/outbound.h"
#include "dataplane/sad.h"

namespace espalier::tools {
namespace {

using namespace dataplane;

constexpr std::uint32_t kOuterLocal = 0xc0000201;  // 192.0.2.1
constexpr std::uint32_t kFirstInner = 0x0a000000;  // 10.0.0.0

ifaces::IpAddress v4(std::uint32_t address) {
  std::array<std::uint8_t, 4> bytes{};
  store_be(bytes.data(), address);
  return ifaces::IpAddress::v4(bytes);
}

// Keeps what was sent where decap() finds it.
class CapturingEngine final : public ifaces::Engine {
 public:
  struct Sent {
    const std::uint8_t* data;
    std::uint32_t length;
    std::uint32_t segment;
  };

  [[nodiscard]] std::string_view name() const noexcept override { return "memory"; }
  [[nodiscard]] std::string features() const override { return "none"; }
  ifaces::Port attach(ifaces::PortKind, int) override { return 0; }
  void detach(ifaces::Port) override {}
  [[nodiscard]] std::span<ifaces::Received> turn(bool) noexcept override { return {}; }
  void flush() noexcept override {}
  void send(const ifaces::Datagram& d, std::uint16_t) noexcept override {
    sent_[count_++] = {d.data, d.len, d.segment_size != 0 ? d.segment_size : d.len};
  }
  void write(ifaces::Port, std::span<const iovec>, std::uint16_t) noexcept override {}
  [[nodiscard]] std::span<const ifaces::TxError> take_errors() noexcept override { return {}; }
  [[nodiscard]] std::uint64_t receive_stalls() const noexcept override { return 0; }
  void wake() noexcept override {}

  [[nodiscard]] std::span<const Sent> sent() const noexcept { return {sent_.data(), count_}; }
  void forget() noexcept { count_ = 0; }

 private:
  std::size_t count_ = 0;
  std::array<Sent, MemoryPath::kBatch> sent_{};
};

}  // namespace

struct MemoryPath::State {
  State(const crypto::Backend& backend, crypto::Suite suite_id, std::size_t size,
        std::size_t flows);

  void add_flow(const crypto::Backend& backend, std::size_t i);

  const crypto::SuiteInfo& suite;
  std::size_t size;
  CapturingEngine engine;
  WorkerCounters counters;
  OuterSocket socket;
  Device device;
  std::vector<std::unique_ptr<Policy>> policies;
  std::vector<std::unique_ptr<OutboundSa>> outbound_sas;
  std::vector<std::unique_ptr<InboundSa>> inbound_sas;
  std::vector<std::unique_ptr<Binding>> bindings;
  Sad sad;
  EventQueue events{-1};
  Outbound outbound;
  ifaces::Endpoint peer{v4(kOuterLocal), 4500};
  [[nodiscard]] std::size_t read() const { return sizeof(ifaces::VnetHdr) + size; }
  [[nodiscard]] std::size_t step() const { return read() + ifaces::kTunTailroom; }
  std::vector<std::uint8_t> packets;  // kBatch of them, as read from a TUN
  std::vector<InboundPacket> run;
  std::minstd_rand random{1};
};

MemoryPath::State::State(const crypto::Backend& backend, crypto::Suite suite_id, std::size_t bytes,
                         std::size_t flows)
    : suite(crypto::info(suite_id)),
      size(bytes),
      outbound(0, engine, counters, events),
      run(kBatch) {
  socket.local = peer;
  socket.local_words = words(peer.address);
  socket.encapsulation = Encapsulation::udp;
  socket.gso_segments = 64;
  socket.ports = socket.sender_ports = {0};
  device.counters = std::make_unique<DeviceCounters[]>(1);
  device.ports = {0};
  for (std::size_t i = 0; i < flows; ++i) add_flow(backend, i);

  packets.assign(kBatch * step(), 0);
  for (std::size_t i = 0; i < kBatch; ++i) {
    std::uint8_t* ip = &packets[i * step() + sizeof(ifaces::VnetHdr)];
    ip[0] = 0x45;
    store_be(ip + 2, static_cast<std::uint16_t>(size));
    ip[8] = 64;
    ip[9] = 17;
    store_be(ip + 12, std::uint32_t{kFirstInner});
  }
}

void MemoryPath::State::add_flow(const crypto::Backend& backend, std::size_t i) {
  const auto number = static_cast<std::uint32_t>(i);
  std::array<std::uint8_t, crypto::kMaxKeysBytes> key{};
  store_be(key.data(), number + 1);
  const std::span<const std::uint8_t> key_bytes(key.data(), suite.keys());
  const auto fill = [&](SaCommon& sa) {
    sa.spi = Spi{kFirstSpi + number};
    sa.encapsulation = Encapsulation::udp;
    sa.esn = true;
    sa.suite = suite.suite;
    sa.keys.push_back(backend.expand(suite.suite, key_bytes));
    sa.socket = &socket;
    sa.peer = std::make_shared<Peer>(peer);
  };
  auto out = std::make_unique<OutboundSa>();
  fill(*out);
  out->seq_limit = ~std::uint64_t{0} - 1;
  auto in = std::make_unique<InboundSa>(4096, 0);
  fill(*in);
  in->set_local(peer.address);
  in->follow_peer = true;

  PolicySpec spec;
  spec.selector.source = {v4(kFirstInner), 32};
  spec.selector.destination = {v4(kFirstInner + 1 + number), 32};
  auto policy = std::make_unique<Policy>(PolicyId{number + 1}, spec);
  policy->sa.store(out.get());
  device.policies.add(*policy);

  auto binding = std::make_unique<Binding>();
  binding->device = &device;
  binding->selectors.emplace_back(spec.selector);
  in->binding.store(binding.get());
  sad.insert(in.get());

  policies.push_back(std::move(policy));
  bindings.push_back(std::move(binding));
  outbound_sas.push_back(std::move(out));
  inbound_sas.push_back(std::move(in));
}

MemoryPath::MemoryPath(const crypto::Backend& backend, crypto::Suite suite, std::size_t size,
                       std::size_t flows)
    : state_(std::make_unique<State>(backend, suite, std::max<std::size_t>(size, 28), flows)) {}

MemoryPath::~MemoryPath() = default;

void MemoryPath::encap() {
  State& s = *state_;
  s.engine.forget();
  s.outbound.begin_turn(1);
  for (std::size_t i = 0; i < kBatch; ++i) {
    std::uint8_t* data = &s.packets[i * s.step()];
    if (s.policies.size() > 1)
      store_be(data + sizeof(ifaces::VnetHdr) + 16,
               static_cast<std::uint32_t>(kFirstInner + 1 + s.random() % s.policies.size()));
    else
      store_be(data + sizeof(ifaces::VnetHdr) + 16, std::uint32_t{kFirstInner + 1});
    s.outbound.add(s.device, data, static_cast<std::uint32_t>(s.read()));
  }
  s.outbound.end_turn();
}

std::size_t MemoryPath::decap() {
  State& s = *state_;
  std::size_t good = 0;
  std::size_t count = 0;
  InboundSa* sa = nullptr;
  const auto finish = [&] {
    if (count > 0) good += esp_decap(*sa, 0, {s.run.data(), count}).good;
    count = 0;
  };
  for (const CapturingEngine::Sent& sent : s.engine.sent()) {
    for (std::uint32_t at = 0; at < sent.length; at += sent.segment) {
      // The engine's bytes are the transmitter's arena: ours until the next encap().
      auto* esp = const_cast<std::uint8_t*>(sent.data + at);
      InboundSa* found = s.sad.find({load_be<std::uint32_t>(esp), s.socket.local_words});
      if (found != sa) finish();
      sa = found;
      InboundPacket& packet = s.run[count++];
      packet.esp = esp;
      packet.len = std::min(sent.segment, sent.length - at);
      packet.outer_tos = 0;
      packet.peer = &s.peer;
    }
  }
  finish();
  return good;
}

std::size_t MemoryPath::lookup() {
  State& s = *state_;
  std::array<InnerKey, kBatch> keys{};
  std::array<SadKey, kBatch> spis{};
  for (std::size_t i = 0; i < kBatch; ++i) {
    const auto flow = static_cast<std::uint32_t>(s.random() % s.policies.size());
    keys[i].source = {std::uint64_t{kFirstInner} << 32, 0};
    keys[i].destination = {std::uint64_t{kFirstInner + 1 + flow} << 32, 0};
    spis[i] = {kFirstSpi + flow, s.socket.local_words};
  }
  std::size_t found = 0;
  for (const InnerKey& key : keys) s.device.policies.prefetch(key);
  for (const InnerKey& key : keys) s.device.policies.prefetch_bucket(key);
  if (s.sad.worth_prefetching()) {
    for (const SadKey& key : spis) s.sad.prefetch(key);
    for (const SadKey& key : spis) s.sad.prefetch_node(key);
  }
  for (const InnerKey& key : keys) found += s.device.policies.find(key) != nullptr ? 1U : 0U;
  for (const SadKey& key : spis) found += s.sad.find(key) != nullptr ? 1U : 0U;
  return found;
}

}  // namespace espalier::tools
