// The kernel as the second opinion: a super-packet goes into one TUN, the kernel forwards it, cuts
// it for another TUN that has no offloads, and the pieces are ours but for the TTL.
//
//   super-packet ─► gso0 (vnet header) ─► forwarding, software GSO ─► gso1 (no offloads) ─► pieces
//
// In a network namespace of its own; without root in a user namespace too.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <memory>
#include <string>

#include "gso_packets.h"
#include "ifaces/netlink.h"
#include "ifaces/unique_fd.h"

namespace espalier::dataplane {
namespace {

using namespace test;
using ifaces::UniqueFd;

UniqueFd tun(const std::string& name, short more_flags) {
  UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  ifreq request{};
  std::copy(name.begin(), name.end(), request.ifr_name);
  request.ifr_flags = static_cast<short>(IFF_TUN | IFF_NO_PI | more_flags);
  if (!fd || ::ioctl(fd.get(), TUNSETIFF, &request) != 0) return UniqueFd();
  return fd;
}

class GsoKernel : public testing::Test {
 protected:
  void SetUp() override {
    if (::unshare(CLONE_NEWNET) != 0 && ::unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
      GTEST_SKIP() << "no network namespace: " << std::strerror(errno);
    in_ = tun("gso0", IFF_VNET_HDR);
    out_ = tun("gso1", 0);
    if (!in_ || !out_) GTEST_SKIP() << "no /dev/net/tun: " << std::strerror(errno);
    ifaces::Netlink netlink;
    for (const int i : {0, 1}) {
      const std::string device = "gso" + std::to_string(i);
      const std::string n = std::to_string(i + 1);
      netlink.set_link(device, {.mtu = 1500, .up = true, .multicast = false});
      netlink.add_address(device, *ifaces::Prefix::parse("10.0." + n + ".254/24"));
      netlink.add_address(device, *ifaces::Prefix::parse("fd00:0:0:" + n + "::fe/64"));
    }
    std::ofstream("/proc/sys/net/ipv4/ip_forward") << 1;
    std::ofstream("/proc/sys/net/ipv6/conf/all/forwarding") << 1;
  }

  void send(const ifaces::VnetHdr& hdr, const Bytes& packet) {
    Bytes all(sizeof hdr);
    std::memcpy(all.data(), &hdr, sizeof hdr);
    append(all, packet);
    ASSERT_EQ(::write(in_.get(), all.data(), all.size()), static_cast<ssize_t>(all.size()))
        << std::strerror(errno);
  }

  // The next `n` packets between our two addresses; the kernel has things to say of its own.
  std::vector<Bytes> forwarded(std::size_t n) {
    std::vector<Bytes> out;
    while (out.size() < n) {
      pollfd ready{.fd = out_.get(), .events = POLLIN, .revents = 0};
      if (::poll(&ready, 1, 5000) != 1) break;
      Bytes packet(65536);
      const ssize_t got = ::read(out_.get(), packet.data(), packet.size());
      if (got < 20) continue;
      packet.resize(static_cast<std::size_t>(got));
      const bool ipv6 = packet[0] >> 4 == 6;
      const Bytes source = address(ipv6, 1);
      if (std::equal(source.begin(), source.end(), packet.begin() + (ipv6 ? 8 : 12)))
        out.push_back(std::move(packet));
    }
    return out;
  }

  UniqueFd in_, out_;
};

PacketSpec forwarded_spec(PacketSpec spec) {
  --spec.ttl;
  return spec;
}

PacketSpec random_spec(std::mt19937& random, std::size_t payload) {
  PacketSpec spec;
  spec.ipv6 = random() % 2 == 0;
  spec.tcp = random() % 3 != 0;
  spec.tos = static_cast<std::uint8_t>(random());
  spec.id = static_cast<std::uint16_t>(random());
  spec.fragment = random() % 2 == 0 ? 0x4000 : 0;
  spec.seq = static_cast<std::uint32_t>(random());
  spec.flags = static_cast<std::uint8_t>(kAck | random());
  spec.urgent = static_cast<std::uint16_t>(random());
  if (spec.tcp) spec.tcp_options = Bytes(random() % 11 * 4, 1);
  if (spec.ipv6 && random() % 4 == 0) spec.extensions = {{60, Bytes{0, 1, 4, 0, 0, 0, 0}}};
  spec.payload = random_bytes(random, payload);
  return spec;
}

TEST_F(GsoKernel, CutsAsWeDo) {
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE(round);
    const std::size_t gso_size = 500 + random() % 800;
    const PacketSpec spec = random_spec(random, 1 + random() % (40 * gso_size));
    if (spec.payload.size() <= gso_size) continue;  // the kernel calls it an error of the sender
    const ifaces::VnetHdr hdr = gso_header(spec, gso_size);
    ASSERT_NO_FATAL_FAILURE(send(hdr, build_partial(spec)));
    std::vector<Bytes> ours;
    ASSERT_TRUE(segments_of(hdr, build_partial(forwarded_spec(spec)), ours));
    ASSERT_EQ(forwarded(ours.size()), ours);
  }
}

TEST_F(GsoKernel, CompletesChecksumsAsWeDo) {
  std::mt19937 random(6);
  for (int round = 0; round < 200; ++round) {
    SCOPED_TRACE(round);
    const PacketSpec spec = random_spec(random, 1 + random() % 1300);
    ASSERT_NO_FATAL_FAILURE(send(csum_header(spec), build_partial(spec)));
    std::vector<Bytes> ours;
    ASSERT_TRUE(segments_of(csum_header(spec), build_partial(forwarded_spec(spec)), ours));
    ASSERT_EQ(forwarded(1), ours);
  }
}

// What the coalescer writes is taken, and cut into the packets that went in; a damaged one among
// them leaves damaged.
TEST_F(GsoKernel, TakesWhatIsCoalesced) {
  std::mt19937 random(8);
  for (int round = 0; round < 100; ++round) {
    SCOPED_TRACE(round);
    PacketSpec spec = random_spec(random, 1);
    spec.flags = kAck;
    spec.urgent = 0;
    spec.extensions.clear();
    const std::size_t size = 20 + random() % 1300;
    const std::size_t damaged = random() % 80;
    Receiver receiver;
    std::vector<Bytes> expected;
    for (std::size_t i = 0; i < 60; ++i) {
      spec.payload = random_bytes(random, random() % 20 == 0 ? 1 + random() % size : size);
      spec.flags = static_cast<std::uint8_t>(kAck | (random() % 20 == 0 ? kPsh : 0));
      Bytes packet = build(spec);
      expected.push_back(build(forwarded_spec(spec)));
      if (i == damaged) {
        packet.back() ^= 1;
        expected.back().back() ^= 1;
      }
      receiver.add(packet);
      spec.seq += static_cast<std::uint32_t>(spec.payload.size());
      ++spec.id;
    }
    receiver.flush();
    EXPECT_LT(receiver.sink.writes.size(), 30U);
    std::vector<Bytes> out;
    for (const Write& write : receiver.sink.writes) {
      ASSERT_NO_FATAL_FAILURE(send(write.hdr, write.packet));
      for (Bytes& packet : forwarded(write.packets)) out.push_back(std::move(packet));
    }
    ASSERT_EQ(out, expected);
  }
}

}  // namespace
}  // namespace espalier::dataplane
