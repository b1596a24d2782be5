#include "dataplane/status.h"

#include "dataplane/worker.h"

namespace espalier::dataplane {
namespace {

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
  status.lifetime = sa.lifetime();
  status.expired = sa.life.expired();
}

}  // namespace

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

DeviceStatus status_of(const Device& device, std::size_t workers) {
  const auto total = [&](std::atomic<std::uint64_t> DeviceCounters::*counter) {
    std::uint64_t sum = 0;
    for (std::size_t w = 0; w < workers; ++w)
      sum += (device.counters[w].*counter).load(std::memory_order_relaxed);
    return sum;
  };
  DeviceStatus status;
  status.id = device.id;
  status.name = device.spec.name;
  status.ikey = device.spec.ikey;
  status.okey = device.spec.okey;
  status.local = device.spec.local;
  status.remote = device.spec.remote;
  status.carrier = device.carrier;
  status.rx = {total(&DeviceCounters::rx_packets), total(&DeviceCounters::rx_bytes)};
  status.tx = {total(&DeviceCounters::tx_packets), total(&DeviceCounters::tx_bytes)};
  status.tx_loops = total(&DeviceCounters::tx_loops);
  status.rx_errors = total(&DeviceCounters::rx_errors);
  status.tx_no_sa = total(&DeviceCounters::tx_no_sa);
  return status;
}

}  // namespace espalier::dataplane
