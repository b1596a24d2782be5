// From TUN reads to what is sent, opened again by the twin of the SA.
#include "dataplane/outbound.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>

#include "tests/fuzz/recording_engine.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace espalier::dataplane {
namespace {

// An inner packet, IPv4 or IPv6, that carries `l4` of `protocol`.
Bytes carrying(bool ipv6, std::uint8_t protocol, const Bytes& l4, std::uint8_t tos = 0) {
  Bytes p = ipv6 ? inner_v6(40) : inner_v4(20);
  p.insert(p.end(), l4.begin(), l4.end());
  store_be(&p[ipv6 ? 4 : 2], static_cast<std::uint16_t>(ipv6 ? l4.size() : p.size()));
  p[ipv6 ? 6 : 9] = protocol;
  if (ipv6)
    store_be(p.data(), 0x60000000 | std::uint32_t{tos} << 20);
  else
    p[1] = tos;
  return p;
}

// RFC 1071, a word at a time; `from`: where the TCP or UDP header starts.
void put_checksum(Bytes& p, std::size_t from, std::size_t field, bool pseudo_header_alone) {
  const bool ipv6 = from == 40;
  std::uint32_t sum = p[ipv6 ? 6 : 9] + static_cast<std::uint32_t>(p.size() - from);
  const auto add = [&](std::size_t first, std::size_t last) {
    for (std::size_t i = first; i < last; ++i) sum += (i - first) % 2 == 0 ? p[i] << 8 : p[i];
  };
  p[from + field] = p[from + field + 1] = 0;
  add(ipv6 ? 8 : 12, from);
  if (!pseudo_header_alone) add(from, p.size());
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  store_be(&p[from + field], static_cast<std::uint16_t>(pseudo_header_alone ? sum : ~sum));
}

class OutboundTest : public testing::Test {
 protected:
  OutboundTest() {
    socket.local = {*ifaces::IpAddress::parse("192.0.2.1"), 4500};
    socket.local_words = words(socket.local.address);
    socket.encapsulation = Encapsulation::udp;
    socket.gso_segments = 64;
    socket.ports = socket.sender_ports = {0};
    pair.in.socket = pair.out.socket = &socket;
    pair.out.seq_limit = 1'000'000;
    for (const char* any : {"0.0.0.0/0", "::/0"}) {
      PolicySpec spec;
      spec.selector.source = spec.selector.destination = *ifaces::Prefix::parse(any);
      spec.trap = true;
      policies.emplace_back(PolicyId{1}, spec);
      policies.back().sa = &pair.out;
    }
    std::uint16_t id = 0;
    for (Device* device : {&pair.device, &other}) {
      device->id = DeviceId{++id};
      device->counters = std::make_unique<DeviceCounters[]>(1);
      device->ports = {id};
      for (const Policy& policy : policies) device->policies.add(policy);
    }
  }
  ~OutboundTest() override {
    for (Device* device : {&pair.device, &other})
      for (const Policy& policy : policies) device->policies.remove(policy);
  }

  void read(const Bytes& packet, ifaces::VnetHdr hdr = {}) { read(pair.device, packet, hdr); }
  void read(Device& device, const Bytes& packet, ifaces::VnetHdr hdr = {}) {
    Bytes& bytes = reads.emplace_back(sizeof hdr + packet.size() + ifaces::kTunTailroom);
    std::memcpy(bytes.data(), &hdr, sizeof hdr);
    std::copy(packet.begin(), packet.end(), bytes.begin() + sizeof hdr);
    outbound.add(device, bytes.data(), static_cast<std::uint32_t>(sizeof hdr + packet.size()));
  }
  void begin_turn() {
    outbound.begin_turn(++now_ns);
    outbound.retry([this](ifaces::Port port) { return port == 1 ? &pair.device : &other; });
  }

  struct Arrived {
    Bytes inner;
    std::uint8_t tos;
  };
  // What has been sent so far, opened.
  std::vector<Arrived> arrived() {
    std::vector<Arrived> all;
    for (const auto& sent : engine.sent) {
      const std::size_t step = sent.segment_size == 0 ? sent.bytes.size() : sent.segment_size;
      for (std::size_t at = 0; at < sent.bytes.size(); at += step) {
        const std::size_t end = std::min(at + step, sent.bytes.size());
        auto opened = pair.open({{sent.bytes.data() + at, sent.bytes.data() + end}}, sent.tos);
        EXPECT_TRUE(opened.lost.empty());
        for (Bytes& inner : opened.inner) all.push_back({std::move(inner), sent.tos});
      }
    }
    engine.sent.clear();
    return all;
  }
  void set_sa(OutboundSa* sa) {
    for (Policy& policy : policies) policy.sa = sa;
  }
  std::uint64_t drops(Drop reason) const {
    return counters.drops[static_cast<std::size_t>(reason)].load();
  }

  SaPair pair;
  Device other;
  OuterSocket socket;
  std::deque<Policy> policies;
  WorkerCounters counters;
  EventQueue events{-1};
  fuzz::RecordingEngine engine;
  Outbound outbound{0, engine, counters, events};
  std::int64_t now_ns = 0;
  std::deque<Bytes> reads;
};

constexpr ifaces::VnetHdr needs_csum(bool ipv6, std::uint16_t field) {
  ifaces::VnetHdr hdr{};
  hdr.flags = ifaces::kVnetNeedsCsum;
  hdr.csum_start = ipv6 ? 40 : 20;
  hdr.csum_offset = field;
  return hdr;
}

// One run of one SA: families, TOS, devices, checksums and lengths change from packet to packet.
TEST_F(OutboundTest, AMixComesOutAsItWentIn) {
  constexpr std::uint16_t kMss = 1000;
  pair.out.mss_clamp = kMss;
  std::vector<Bytes> wanted;
  std::vector<std::uint8_t> tos;
  std::array<std::uint64_t, 2> packets{}, bytes{};
  begin_turn();
  for (std::size_t i = 0; i < 60; ++i) {
    const bool ipv6 = i % 3 == 1;
    const std::size_t header = ipv6 ? 40 : 20;
    tos.push_back(static_cast<std::uint8_t>(i / 4 % 3 << 5 | (i % 2)));
    Bytes packet, whole;
    ifaces::VnetHdr hdr{};
    if (i % 4 == 0) {
      whole = packet = carrying(ipv6, 253, Bytes(30 + i % 7, 0x11), tos.back());
    } else if (i % 4 == 1) {  // a datagram, its checksum to be completed
      Bytes udp(8 + 40 + i % 5, static_cast<std::uint8_t>(i));
      store_be(&udp[4], static_cast<std::uint16_t>(udp.size()));
      whole = packet = carrying(ipv6, 17, udp, tos.back());
      hdr = needs_csum(ipv6, 6);
      put_checksum(packet, header, 6, true);
      put_checksum(whole, header, 6, false);
    } else {  // a SYN that announces too much, with and without its checksum
      Bytes tcp(24);
      tcp[12] = 6 << 4;
      tcp[13] = 2;
      const Bytes option = {2, 4, 0x05, 0xb4};
      std::copy(option.begin(), option.end(), tcp.begin() + 20);
      whole = packet = carrying(ipv6, 6, tcp, tos.back());
      put_checksum(packet, header, 16, i % 4 == 2);
      if (i % 4 == 2) hdr = needs_csum(ipv6, 16);
      store_be(&whole[header + 22], kMss);
      put_checksum(whole, header, 16, false);
    }
    wanted.push_back(whole);
    const std::size_t from = i / 5 % 2;
    read(from == 0 ? pair.device : other, packet, hdr);
    ++packets[from];
    bytes[from] += packet.size();
  }
  outbound.end_turn();
  const std::vector<Arrived> got = arrived();
  ASSERT_EQ(got.size(), wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].inner, wanted[i]) << i;
    EXPECT_EQ(got[i].tos, tos[i]) << i;
  }
  for (const std::size_t from : {0, 1}) {
    const DeviceCounters& of = (from == 0 ? pair.device : other).counters[0];
    EXPECT_EQ(of.tx_packets.load(), packets[from]);
    EXPECT_EQ(of.tx_bytes.load(), bytes[from]);
  }
  for (const Bytes& r : reads) EXPECT_EQ(r[0] & ifaces::kVnetNeedsCsum, 0) << "it is complete";
}

// A packet that waited has gone; that another of its flow finds no SA again does not bring it back.
TEST_F(OutboundTest, WhatHasWaitedGoesOnce) {
  Bytes udp(8 + 40, 0x21);
  store_be(&udp[4], static_cast<std::uint16_t>(udp.size()));
  Bytes first = carrying(false, 17, udp);
  Bytes whole = first;
  put_checksum(first, 20, 6, true);
  put_checksum(whole, 20, 6, false);

  set_sa(nullptr);
  begin_turn();
  read(first, needs_csum(false, 6));
  outbound.end_turn();
  EXPECT_EQ(drops(Drop::no_sa), 0U);

  set_sa(&pair.out);
  begin_turn();
  for (int i = 0; i < 64; ++i) read(inner_v4(60));  // the first ones of a batch are sent
  set_sa(nullptr);
  read(first, needs_csum(false, 6));
  outbound.end_turn();
  EXPECT_EQ(drops(Drop::no_sa), 1U) << "neither sent nor held";
  std::vector<Arrived> got = arrived();
  ASSERT_FALSE(got.empty());
  EXPECT_EQ(got[0].inner, whole);

  set_sa(&pair.out);
  begin_turn();
  outbound.end_turn();
  for (const Arrived& a : arrived()) EXPECT_NE(a.inner.size(), whole.size());
}

// It does come back, as it was, if its SA is gone before it was sent.
TEST_F(OutboundTest, WhatHasWaitedMayWaitOn) {
  const Bytes first = inner_v4(80);
  set_sa(nullptr);
  begin_turn();
  read(first);
  outbound.end_turn();
  set_sa(&pair.out);
  begin_turn();
  set_sa(nullptr);
  outbound.end_turn();
  EXPECT_EQ(drops(Drop::no_sa), 0U);
  EXPECT_TRUE(arrived().empty());
  set_sa(&pair.out);
  begin_turn();
  outbound.end_turn();
  const std::vector<Arrived> got = arrived();
  ASSERT_EQ(got.size(), 1U);
  EXPECT_EQ(got[0].inner, first);
}

}  // namespace
}  // namespace espalier::dataplane
