#include "dataplane/inbound.h"

#include <new>

#include "dataplane/bytes.h"
#include "dataplane/esp.h"
#include "dataplane/ike_packet.h"
#include "dataplane/mss.h"

namespace espalier::dataplane {

Inbound::Inbound(unsigned worker, ifaces::Engine& engine, const Sad& sad, WorkerCounters& counters,
                 EventQueue& events, ifaces::TunOffloads offloads)
    : worker_(worker),
      engine_(engine),
      sad_(sad),
      counters_(counters),
      reporter_(events),
      coalescer_(offloads),
      ike_(new std::uint8_t[kIkeBytes]) {}  // not written before there is IKE

namespace {

AddressWords destination(const OuterSocket& socket, const ifaces::Received& received) noexcept {
  return socket.any ? words(received.local) : socket.local_words;
}

}  // namespace

void Inbound::add(const OuterSocket& socket, const ifaces::Received& received) noexcept {
  if (socket_ != &socket || socket.any) {
    const AddressWords local = destination(socket, received);
    if (socket_ != &socket || !same(local, local_)) {
      run_batch();
      sa_ = nullptr;
    }
    socket_ = &socket;
    local_ = local;
  }
  std::uint8_t* data = received.data;
  std::uint32_t left = received.len;
  const std::uint32_t step = received.segment_size != 0 ? received.segment_size : left;
  do {  // once at least, whatever the length says
    const std::uint32_t len = std::min(step, left);
    add_datagram(socket, received, data, len);
    data += len;
    left -= len;
  } while (left > 0);
}

// Of a super-packet only the first: they are of one SA most of the time.
void Inbound::prefetch_slot(const OuterSocket& socket,
                            const ifaces::Received& received) const noexcept {
  if (received.len >= kEspHeader)
    sad_.prefetch({load_be<std::uint32_t>(received.data), destination(socket, received)});
}

void Inbound::prefetch_sa(const OuterSocket& socket,
                          const ifaces::Received& received) const noexcept {
  if (received.len >= kEspHeader)
    sad_.prefetch_node({load_be<std::uint32_t>(received.data), destination(socket, received)});
}

void Inbound::add_datagram(const OuterSocket& socket, const ifaces::Received& received,
                           std::uint8_t* data, std::uint32_t len) noexcept {
  if (socket.encapsulation == Encapsulation::udp && len == 1) return;  // keepalive, RFC 3948 §2.3
  if (len < kEspHeader) return counters_.drop(Drop::too_short);
  const auto spi = load_be<std::uint32_t>(data);
  if (spi == 0 && socket.encapsulation == Encapsulation::udp)
    return forward_ike(socket, received, {data, len});  // the non-ESP marker, RFC 3948 §2.2

  if (sa_ == nullptr || static_cast<std::uint32_t>(sa_->spi) != spi || count_ == kDecapBatch) {
    run_batch();
    const SadKey key{spi, local_};
    sa_ = sad_.find(key);
    if (sa_ == nullptr) [[unlikely]] {
      if (sad_.larval.find(key) != nullptr) return hold(key, socket, received, {data, len});
      sa_ = sad_.find(key);  // its keys may have come between the two
    }
    if (sa_ == nullptr) {
      reporter_.no_spi(socket, spi, received.peer);
      return counters_.drop(Drop::no_spi);
    }
    if (sa_->encapsulation != socket.encapsulation) {
      sa_ = nullptr;
      return counters_.drop(Drop::wrong_encapsulation);
    }
    if (!early_.empty()) [[unlikely]]
      if (EarlyPackets::Line* const line = early_.find(key)) {
        release(*line, *sa_);
        if (count_ == kDecapBatch) run_batch();
      }
  }
  InboundPacket& packet = run_[count_++];
  packet.esp = data;
  packet.len = len;
  packet.outer_tos = received.tos;
  packet.peer = &received.peer;
}

void Inbound::hold(const SadKey& key, const OuterSocket& socket, const ifaces::Received& received,
                   std::span<const std::uint8_t> esp) noexcept {
  if (!early_.hold(key, esp, socket.encapsulation, received.tos, received.peer, now_ns_))
    counters_.drop(Drop::not_keyed);
}

// What waits for an SA that is there now comes in, before what this turn received.
void Inbound::retry_early() noexcept {
  early_.retire();
  for (EarlyPackets::Line& line : early_.lines()) {
    if (line.count == 0) continue;
    // In this order: the SA is there before its SPI is no longer waited for.
    const bool waits = sad_.larval.find(line.key) != nullptr;
    if (InboundSa* const sa = sad_.find(line.key))
      release(line, *sa);
    else
      counters_.drop(Drop::not_keyed, waits ? early_.expire(line, now_ns_) : early_.forget(line));
  }
  run_batch();
  sa_ = nullptr;
}

// They go before a packet of their SPI that comes in the turn in which its keys do: behind it, a
// small replay window would have moved past them.
void Inbound::release(EarlyPackets::Line& line, InboundSa& sa) noexcept {
  while (line.count > 0) {
    EarlyPackets::Held& held = early_.take(line);
    if (held.encapsulation != sa.encapsulation) {
      counters_.drop(Drop::wrong_encapsulation);
      continue;
    }
    if (sa_ != &sa || count_ == kDecapBatch) run_batch();
    sa_ = &sa;
    InboundPacket& packet = run_[count_++];
    packet.esp = early_.bytes(held);
    packet.len = held.length;
    packet.outer_tos = held.tos;
    packet.peer = &held.peer;
  }
}

// Round the loopback device (ifaces/ike_socket.h). On a port that is shared, only what GRO has
// merged comes here; alone, a datagram that was not led to the IKE daemon has no daemon, or a wrong
// length, and would come again.
void Inbound::forward_ike(const OuterSocket& socket, const ifaces::Received& received,
                          std::span<const std::uint8_t> datagram) noexcept {
  constexpr std::size_t kAlign = alignof(sockaddr_storage);
  ike_used_ = (ike_used_ + kAlign - 1) / kAlign * kAlign;
  if (!socket.has_ike.load(std::memory_order_acquire) ||
      (socket.is_shared && received.segment_size == 0) ||
      ike_used_ + sizeof(sockaddr_storage) + kIkeHeadroom + datagram.size() > kIkeBytes)
    return counters_.drop(Drop::no_ike);
  ifaces::Endpoint to = socket.local;
  if (socket.any) to.address = received.local;
  auto* const address = new (&ike_[ike_used_]) sockaddr_storage;
  const socklen_t address_length = ifaces::Endpoint{to.address, 0}.to(*address);
  ike_used_ += sizeof *address;
  std::uint8_t* packet = &ike_[ike_used_];
  const std::size_t length = write_ike_packet(received.peer, to, received.tos, datagram, packet);
  ike_used_ += length;
  engine_.send({.port = socket.injectors[worker_],
                .tos = 0,
                .segment_size = 0,
                .len = static_cast<std::uint32_t>(length),
                .data = packet,
                .to = address,
                .to_len = address_length},
               1);
}

void Inbound::run_batch() noexcept {
  if (count_ == 0) return;
  InboundSa& sa = *sa_;
  std::span<InboundPacket> run(run_.data(), count_);
  count_ = 0;
  const DecapResult result = esp_decap(sa, worker_, run);
  if (result.good < run.size()) [[unlikely]]
    drop(sa, run.subspan(result.good));
  if (result.authentic == 0) return;
  if (result.newest != nullptr) follow(sa, *result.newest);
  deliver(sa, result.binding, run.first(result.good));
  if (const Limits* limits = sa.limits.load(std::memory_order_acquire)) [[unlikely]]
    reporter_.judge(sa, *limits);
}

void Inbound::drop(InboundSa& sa, std::span<const InboundPacket> lost) noexcept {
  const Binding* binding = sa.binding.load(std::memory_order_acquire);
  if (binding != nullptr && binding->device != nullptr)
    bump(binding->device->counters[worker_].rx_errors, lost.size());
  for (const InboundPacket& packet : lost) {
    counters_.drop(packet.reason);
    sa.drops[static_cast<std::size_t>(packet.reason)].fetch_add(1, std::memory_order_relaxed);
    reporter_.lost(sa, packet);
  }
}

namespace {

// What the peer's SYN may ask of this side: what fits the way to the peer.
MssLimit mss_limit(const InboundSa& sa, std::int64_t now_ns) noexcept {
  constexpr std::uint32_t kEthernet = 1500;  // a path that nobody has complained about
  const std::uint32_t path = sa.peer->path().get(now_ns);
  const bool ipv6 = sa.socket->local.address.family == ifaces::Family::v6;
  const bool udp = sa.encapsulation == Encapsulation::udp;
  return {sa.mss_clamp, inner_mtu(crypto::info(sa.suite), path == 0 ? kEthernet : path, ipv6, udp)};
}

}  // namespace

// RFC 3948 §2.2, RFC 7296 §2.23: only an authenticated packet, newer than any before, shows where
// the peer is.
void Inbound::follow(InboundSa& sa, const ifaces::Endpoint& newest) noexcept {
  const ifaces::Endpoint known = sa.peer->get();
  if (known == newest) {
    if (sa.audits[static_cast<std::size_t>(InboundSa::Audit::mapping)].pending()) [[unlikely]]
      reporter_.mapping_changed(sa, {}, newest, 0);  // of a moment ago
    return;
  }
  if (!sa.follow_peer && !known.address.is_any()) return;
  sa.peer->set(newest);
  reporter_.mapping_changed(sa, known, newest, 1);
}

void Inbound::deliver(InboundSa& sa, const Binding* binding,
                      std::span<InboundPacket> good) noexcept {
  std::uint64_t packets = 0;
  std::uint64_t bytes = 0;
  // Not null: a packet without a device did not come this far. A run of dummies needs none.
  Device* device = binding == nullptr ? nullptr : binding->device;
  if (device != device_) {
    if (device_ != nullptr) coalescer_.flush(*this);
    device_ = device;
  }
  const MssLimit mss = sa.mss_clamp == 0 ? MssLimit() : mss_limit(sa, now_ns_);
  for (const InboundPacket& packet : good) {
    if (packet.inner == nullptr || device == nullptr) continue;
    if (mss.v4 != 0) [[unlikely]]
      clamp_mss({packet.inner, packet.key.length}, mss);
    coalescer_.add(packet.inner, packet.key.length, *this);
    ++packets;
    bytes += packet.key.length;
  }
  if (device != nullptr && packets > 0) {
    bump(device->counters[worker_].rx_packets, packets);
    bump(device->counters[worker_].rx_bytes, bytes);
  }
  sa.counters.count(packets, bytes, now_ns_);
}

void Inbound::write(std::span<const iovec> parts, std::uint16_t packets) noexcept {
  engine_.write(device_->ports[worker_], parts, packets);
}

void Inbound::end_turn() noexcept {
  run_batch();
  sa_ = nullptr;
  socket_ = nullptr;
  if (device_ != nullptr) coalescer_.flush(*this);
  device_ = nullptr;
  reporter_.end_turn();
}

}  // namespace espalier::dataplane
