// From the TUN to the outer socket: any virtio header and any packet behind it; and what was
// sealed, opened again by the twin of its SA: what comes out is what write_segment() and
// clamp_mss() make of the reads, whichever way the packets took.
//
//   input: SETUP (as inbound_fuzz.cc), OPTIONS, then reads of the TUN until the bytes end
//   OPTIONS  bits 0–1: what the path carries   2–3: TFC padding   4: MSS   5: DF cleared
//            6: packets are joined before they come out, and not compared
//   read     length (2), bytes: a VnetHdr and a packet; bit 15 of the length: of another device
#include <array>
#include <cstring>
#include <deque>
#include <vector>

#include "dataplane/inbound.h"
#include "dataplane/outbound.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/recording_engine.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace {

using namespace espalier;
using namespace espalier::dataplane;
using espalier::fuzz::Input;
using espalier::fuzz::require;

constexpr std::size_t kHeadroom = 64;

struct Setup {
  explicit Setup(Input& input)
      : choice(input.byte()),
        options(input.byte()),
        pair((choice & 0x80) != 0,
             crypto::suites()[(choice & 0x3f) % crypto::suites().size()].suite, 65536),
        outbound(0, engine, counters, events),
        inbound(0, inner_engine, sad, in_counters, events, {joins(), joins(), joins()}) {
    const ifaces::IpAddress local = *ifaces::IpAddress::parse("192.0.2.1");
    socket.encapsulation = Encapsulation::udp;
    socket.local = {local, 4500};
    socket.local_words = words(local);
    socket.gso_segments = (choice & 0x40) != 0 ? 64 : 0;
    socket.ports = socket.sender_ports = {0};
    pair.in.socket = pair.out.socket = &socket;
    pair.in.set_local(local);
    pair.out.seq_limit = 1'000'000;
    set_options();
    for (Device* device : {&pair.device, &other}) {
      device->counters = std::make_unique<DeviceCounters[]>(1);
      device->ports = {0};
    }
    pair.binding.selectors.clear();
    for (const char* any : {"0.0.0.0/0", "::/0"}) {
      PolicySpec spec;
      spec.selector.source = spec.selector.destination = *ifaces::Prefix::parse(any);
      pair.binding.selectors.emplace_back(spec.selector);
      policies.emplace_back(PolicyId{1}, spec);
      policies.back().sa = &pair.out;
      pair.device.policies.add(policies.back());
      other.policies.add(policies.back());
    }
    sad.insert(&pair.in);
  }
  ~Setup() {
    for (const Policy& policy : policies) {
      pair.device.policies.remove(policy);
      other.policies.remove(policy);
    }
  }
  [[nodiscard]] bool joins() const { return (options & 0x40) != 0; }

  void set_options() {
    constexpr std::array<std::uint32_t, 4> kPaths = {0, 576, 1280, 1400};
    constexpr std::array<std::uint32_t, 4> kTfc = {0, 300, 2000, kTfcToMtu};
    path = kPaths[options & 3];
    pair.out.peer->path().set_link(path);
    pair.out.tfc_padding = kTfc[options >> 2 & 3];
    pair.out.mss_clamp = (options & 0x10) != 0 ? kMssToPath : std::uint16_t{0};
    pair.out.outer.clear_df = (options & 0x20) != 0;
  }

  std::uint8_t choice, options;
  std::uint32_t path = 0;
  SaPair pair;
  Device other;
  OuterSocket socket;
  Sad sad;
  std::deque<Policy> policies;
  WorkerCounters counters, in_counters;
  EventQueue events{-1};
  fuzz::RecordingEngine engine, inner_engine;
  Outbound outbound;
  Inbound inbound;
};

// Delivers all that was sent at the other end; returns how many packets that was.
std::uint64_t open_all(Setup& s) {
  std::deque<std::vector<std::uint8_t>> buffers;
  std::deque<ifaces::Received> turn;
  std::uint64_t packets = 0;
  s.inbound.begin_turn(1);
  for (const auto& sent : s.engine.sent) {
    packets += sent.packets;
    const std::size_t size = sent.bytes.size();
    const std::size_t segments =
        sent.segment_size == 0 ? 1 : (size + sent.segment_size - 1) / sent.segment_size;
    require(segments == sent.packets, "a send of another number of datagrams");
    // Below it only IPv6 is sent, which nobody sends in smaller pieces than 1280 bytes.
    constexpr std::size_t kOuter = 20 + 8, kCarriesAnyIpv6 = 1400;
    if (s.path >= kCarriesAnyIpv6 && !s.pair.out.outer.clear_df)
      require((segments == 1 ? size : sent.segment_size) + kOuter <= s.path, "too long a datagram");
    auto& buffer = buffers.emplace_back(kHeadroom + size);
    std::copy(sent.bytes.begin(), sent.bytes.end(), buffer.begin() + kHeadroom);
    ifaces::Received& received = turn.emplace_back();
    received.kind = ifaces::PortKind::udp;
    received.tos = sent.tos;
    received.segment_size = sent.segment_size;
    received.len = static_cast<std::uint32_t>(size);
    received.data = buffer.data() + kHeadroom;
    received.peer = s.pair.sender;
    s.inbound.add(s.socket, received);
  }
  s.inbound.end_turn();
  return packets;
}

// What is to come out, in order.
class Expected {
 public:
  explicit Expected(const Setup& s)
      : s_(s), room_(Outbound::room_of(s.pair.out, s.pair.sender, 1)) {}

  void add(const Device& device, const std::vector<std::uint8_t>& read) {
    ifaces::VnetHdr hdr{};
    if (read.size() <= sizeof hdr) return;
    std::memcpy(&hdr, read.data(), sizeof hdr);
    const auto packet = std::span(read).subspan(sizeof hdr);
    InnerKey key;
    SegmentPlan plan{};
    if (!parse_inner(packet, key) || !plan_segments(hdr, packet, plan)) return;
    if (Outbound::choose(device, device.policies.find(key), key).sa == nullptr) return;
    const bool df = (packet[6] & 0x40) != 0;
    switch (Outbound::fit(segment_length(plan, 0), key.ipv6, !key.ipv6 && df, room_)) {
      case Outbound::Fit::not_at_all:
        return;
      case Outbound::Fit::in_fragments:
        fragments_ = true;  // headers_test.cc puts them together again
        return;
      case Outbound::Fit::whole:
        break;
    }
    const std::uint8_t tos = s_.pair.out.outer.fields(packet.data(), key.ipv6, key.tos).tos();
    for (std::size_t i = 0; i < plan.count; ++i) {
      std::vector<std::uint8_t>& segment = packets_.emplace_back(segment_length(plan, i));
      write_segment(plan, packet, i, segment.data());
      if (room_.mss.v4 != 0) clamp_mss(segment, room_.mss);
      tos_.push_back(tos);
    }
  }

  void check() const {
    if (s_.joins() || fragments_ || s_.pair.out.exhausted.load() != 0) return;
    std::size_t n = 0;
    for (const auto& sent : s_.engine.sent)
      for (std::size_t i = 0; i < sent.packets; ++i, ++n)
        require(n < tos_.size() && sent.tos == tos_[n], "the outer TOS is of the inner packet");
    const auto& written = s_.inner_engine.written;
    require(written.size() == packets_.size(), "packets read and delivered");
    for (std::size_t i = 0; i < written.size(); ++i) {
      const auto inner = std::span(written[i].bytes).subspan(sizeof(ifaces::VnetHdr));
      require(std::equal(inner.begin(), inner.end(), packets_[i].begin(), packets_[i].end()),
              "what is delivered is what was read");
    }
  }

 private:
  const Setup& s_;
  const Outbound::Room room_;
  bool fragments_ = false;
  std::vector<std::vector<std::uint8_t>> packets_;
  std::vector<std::uint8_t> tos_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  Setup s(input);
  // Of exactly their size and what may be written behind them; until the turn ends.
  std::deque<std::vector<std::uint8_t>> reads;
  Expected expected(s);
  s.outbound.begin_turn(1);
  while (!input.empty()) {
    const std::uint16_t head = input.word();
    Device& device = (head & 0x8000) != 0 ? s.other : s.pair.device;
    const auto bytes = input.bytes(head & 0x7fff);
    if (bytes.empty()) continue;
    expected.add(device, {bytes.begin(), bytes.end()});
    auto& read = reads.emplace_back(bytes.begin(), bytes.end());
    read.resize(bytes.size() + ifaces::kTunTailroom);
    s.outbound.add(device, read.data(), static_cast<std::uint32_t>(bytes.size()));
  }
  s.outbound.end_turn();
  const std::uint64_t sent = open_all(s);
  require(sent == s.pair.out.counters.packets.load(), "packets sent and counted");
  // Nothing is sent that the peer must drop.
  require(sent == s.pair.in.counters.packets.load(), "packets sealed and delivered");
  expected.check();
  return 0;
}
