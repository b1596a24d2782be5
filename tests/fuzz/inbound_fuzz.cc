// From the outer socket to the TUN: any bytes, and any bytes that an SA has sealed.
//
//   input: SETUP, then receives until the bytes end
//   SETUP    suite, ESN and window
//   receive  FLAGS, segment size (2), length (2), bytes
//            FLAGS bit 0: the bytes are an inner packet, sealed here by the outbound twin
//                  bit 1: as bit 0, but padding and next header are the fuzzer's as well
//                  bit 2: replay the last sealed packet   bits 4–5: UDP, raw IPv4, raw IPv6
//                  bit 3: the SA loses its keys before, or gets them back. Segment size bit 0: in
//                         the middle of the turn, which ends otherwise; bit 1: time passes, more
//                         than packets wait for keys
#include <cstring>
#include <deque>
#include <vector>

#include "dataplane/inbound.h"
#include "dataplane/segment.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/recording_engine.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace {

using namespace espalier;
using namespace espalier::dataplane;
using espalier::fuzz::Input;
using espalier::fuzz::require;

constexpr std::size_t kHeadroom = 64;  // an engine's buffers have as much in front of a payload

struct Setup {
  explicit Setup(Input& input)
      : choice(input.byte()),
        pair((choice & 0x80) != 0,
             crypto::suites()[(choice & 0x3f) % crypto::suites().size()].suite,
             (choice & 0x40) != 0 ? 64 : 1024),
        inbound(0, engine, sad, counters, events, {true, true, true}) {
    local = *ifaces::IpAddress::parse("192.0.2.1");
    socket.local = {local, 4500};
    socket.local_words = words(local);
    pair.in.socket = &socket;
    pair.in.local = local;
    pair.device.counters = std::make_unique<DeviceCounters[]>(1);
    pair.device.ports = {0};
    pair.binding.selectors.clear();
    for (const char* any : {"0.0.0.0/0", "::/0"}) {
      Selector selector;
      selector.source = selector.destination = *ifaces::Prefix::parse(any);
      pair.binding.selectors.emplace_back(selector);
    }
    key = SadTraits::key(pair.in);
    sad.insert(&pair.in);
  }

  void toggle_keys() {
    if (sad.erase(key) != nullptr) return sad.larval.insert(&key);
    sad.insert(&pair.in);
    sad.larval.erase(key);
  }

  std::uint8_t choice;
  SaPair pair;
  ifaces::IpAddress local;
  OuterSocket socket;
  SadKey key;
  Sad sad;
  WorkerCounters counters;
  EventQueue events{-1};
  fuzz::RecordingEngine engine;
  Inbound inbound;
};

Bytes sealed(Setup& s, std::uint64_t seq, std::span<const std::uint8_t> inner) {
  const bool v6 = !inner.empty() && inner[0] >> 4 == 6;
  return s.pair.seal(seq, Bytes(inner.begin(), inner.end()), v6 ? kNextIpv6 : kNextIpv4);
}

// One receive, in memory of exactly its size, so that a byte too far is seen.
struct Buffer {
  explicit Buffer(const Bytes& payload)
      : size(payload.size()), memory(std::make_unique<std::uint8_t[]>(kHeadroom + size)) {
    std::copy(payload.begin(), payload.end(), memory.get() + kHeadroom);
  }
  std::size_t size;
  std::unique_ptr<std::uint8_t[]> memory;
  ifaces::Received received{};
};

// What goes to the TUN must be something that its kernel takes.
void check_written(const fuzz::RecordingEngine& engine) {
  for (const auto& written : engine.written) {
    require(written.packets >= 1, "a write without packets");
    require(written.bytes.size() > sizeof(ifaces::VnetHdr) + 19, "a write without a packet");
    ifaces::VnetHdr hdr{};
    std::memcpy(&hdr, written.bytes.data(), sizeof hdr);
    const auto packet = std::span(written.bytes).subspan(sizeof hdr);
    InnerKey key;
    require(parse_inner(packet, key) && key.length == packet.size(),
            "the length of what is written is not the inner length");
    if (hdr.gso_type == ifaces::kVnetGsoNone) {
      require(written.packets == 1, "several packets without GSO");
      continue;
    }
    SegmentPlan plan{};
    require(plan_segments(hdr, packet, plan), "a super-packet that contradicts itself");
    require(plan.count == written.packets, "a super-packet of another number of packets");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  Setup s(input);
  std::deque<Buffer> turn;  // stays until the turn ends
  Bytes last;
  std::uint64_t seq = 1;
  std::int64_t now_ns = 1;
  s.inbound.begin_turn(now_ns);
  while (!input.empty()) {
    const std::uint8_t flags = input.byte();
    const std::uint16_t segment = input.word();
    const auto bytes = input.bytes(input.word());
    Bytes payload(bytes.begin(), bytes.end());
    if ((flags & 4) != 0 && !last.empty()) {
      payload = last;
    } else if ((flags & 2) != 0 && !payload.empty()) {
      // A cipher of whole blocks cannot seal another length.
      const std::size_t block = s.pair.suite.align;
      payload.resize((payload.size() + block - 1) / block * block);
      payload = last = s.pair.seal_text(seq++, payload);
    } else if ((flags & 1) != 0) {
      payload = last = sealed(s, seq++, bytes);
    }
    if ((flags & 8) != 0) {
      const bool ends = (segment & 1) == 0;
      if (ends) s.inbound.end_turn();
      s.toggle_keys();
      if ((segment & 2) != 0) now_ns += EarlyPackets::kPatienceNs + 1;
      if (ends) s.inbound.begin_turn(now_ns);
    }
    if (payload.empty() || payload.size() > 65535) continue;  // engines hand over no such thing
    const bool udp = (flags & 0x30) == 0;
    s.socket.encapsulation = s.pair.in.encapsulation =
        udp ? Encapsulation::udp : Encapsulation::esp;
    Buffer& buffer = turn.emplace_back(payload);
    buffer.received.kind = udp                      ? ifaces::PortKind::udp
                           : (flags & 0x30) == 0x10 ? ifaces::PortKind::raw_esp4
                                                    : ifaces::PortKind::raw_esp6;
    buffer.received.tos = flags >> 6;
    buffer.received.segment_size = udp && segment < payload.size() ? segment : std::uint16_t{0};
    buffer.received.len = static_cast<std::uint32_t>(payload.size());
    buffer.received.data = buffer.memory.get() + kHeadroom;
    buffer.received.peer = s.pair.sender;
    s.inbound.add(s.socket, buffer.received);
  }
  s.inbound.end_turn();
  check_written(s.engine);
  std::uint64_t packets = 0;
  for (const auto& written : s.engine.written) packets += written.packets;
  require(packets == s.pair.in.counters.packets.load(), "packets written and counted");
  return 0;
}
