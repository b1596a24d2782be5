// Two data planes in one network namespace, for tests of an SA's life:
//
//   packet socket ─ a0 (TUN) ─ A ─ 127.0.0.1:4500 ~ ESP in UDP ~ 127.0.0.2:4500 ─ B ─ b0 (TUN) ─
//   packet socket
//
// Inner packets go from 10.1.0.1 to 10.2.0.1; policies are by reqid, as many as a test adds.
#pragma once

#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <poll.h>

#include <chrono>

#include "dataplane/dataplane.h"
#include "tests/unit/dataplane/sa_pair.h"
#include "tests/unit/ifaces/sandbox.h"

namespace espalier::test {

using namespace dataplane;
using std::chrono::milliseconds;

inline ifaces::IpAddress ip(const char* text) {
  return *ifaces::IpAddress::parse(text);
}

// What a device carries, from the host's side of it.
class PacketSocket {
 public:
  explicit PacketSocket(const std::string& device)
      : fd_(::socket(AF_PACKET, SOCK_DGRAM | SOCK_NONBLOCK, htons(ETH_P_IP))) {
    check(static_cast<bool>(fd_), "socket AF_PACKET");
    address_.sll_family = AF_PACKET;
    address_.sll_protocol = htons(ETH_P_IP);
    address_.sll_ifindex = static_cast<int>(::if_nametoindex(device.c_str()));
    check(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&address_), sizeof address_) == 0,
          "bind AF_PACKET");
    const int bytes = 8 << 20;
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes);
  }
  void send(const Bytes& packet) const {
    const ssize_t sent = ::sendto(fd_.get(), packet.data(), packet.size(), 0,
                                  reinterpret_cast<const sockaddr*>(&address_), sizeof address_);
    check(sent == static_cast<ssize_t>(packet.size()), "sendto AF_PACKET");
  }
  // How many packets came in, of at most `wanted`; waits for them.
  std::size_t receive(std::size_t wanted, milliseconds patience) const {
    std::size_t got = 0;
    std::array<std::uint8_t, 2048> packet{};
    while (got < wanted) {
      sockaddr_ll from{};
      socklen_t length = sizeof from;
      const ssize_t n = ::recvfrom(fd_.get(), packet.data(), packet.size(), 0,
                                   reinterpret_cast<sockaddr*>(&from), &length);
      if (n > 0) {
        if (from.sll_pkttype != PACKET_OUTGOING) ++got;
        continue;
      }
      pollfd p{fd_.get(), POLLIN, 0};
      if (::poll(&p, 1, static_cast<int>(patience.count())) <= 0) break;
    }
    return got;
  }

 private:
  ifaces::UniqueFd fd_;
  sockaddr_ll address_{};
};

inline Bytes keymat_of(std::uint8_t seed) {
  Bytes keymat(36);
  for (std::size_t i = 0; i < keymat.size(); ++i)
    keymat[i] = static_cast<std::uint8_t>(seed * 31U + i);
  return keymat;
}

class TwoSites {
 public:
  explicit TwoSites(const crypto::Registry& registry, unsigned workers = 1)
      : a(registry, options(workers)), b(registry, options(workers)) {
    DeviceSpec spec;
    spec.name = "a0";
    device_a = a.add_device(spec);
    spec.name = "b0";
    device_b = b.add_device(spec);
    set_up("a0");
    set_up("b0");
    in_a.emplace("a0");
    out_b.emplace("b0");
  }

  static Dataplane::Options options(unsigned workers) {
    Dataplane::Options o;
    o.workers = workers;
    o.io = "epoll";
    return o;
  }
  static PolicySpec policy(Direction direction, std::uint32_t reqid) {
    PolicySpec spec;
    spec.direction = direction;
    spec.selector.source = *ifaces::Prefix::parse("10.1.0.0/16");
    spec.selector.destination = *ifaces::Prefix::parse("10.2.0.0/16");
    spec.reqid = reqid;
    return spec;
  }
  static SaSpec sa(Direction direction, std::uint32_t spi, std::uint8_t key,
                   std::uint32_t reqid = 1) {
    SaSpec spec;
    spec.direction = direction;
    spec.spi = Spi{spi};
    spec.reqid = reqid;
    const bool out = direction == Direction::out;
    spec.local = {ip(out ? "127.0.0.1" : "127.0.0.2"), 4500};
    spec.peer = {ip(out ? "127.0.0.2" : "127.0.0.1"), 4500};
    spec.suite = crypto::Suite::aes_gcm256;
    spec.keymat = crypto::SecretBytes(keymat_of(key));
    return spec;
  }
  void add_policies(std::uint32_t reqid = 1) {
    policy_a = a.add_policy(policy(Direction::out, reqid));
    b.add_policy(policy(Direction::in, reqid));
  }

  void send(std::size_t count, std::size_t length = 60, std::uint8_t host = 1) const {
    Bytes packet = inner_v4(length);
    const std::uint8_t addresses[] = {10, 1, 0, host, 10, 2, 0, 1};
    std::copy(std::begin(addresses), std::end(addresses), packet.begin() + 12);
    for (std::size_t i = 0; i < count; ++i) in_a->send(packet);
  }
  [[nodiscard]] std::size_t arrived(std::size_t wanted) const {
    return out_b->receive(wanted, milliseconds(5000));
  }
  // What has arrived when A and B have nothing more in their hands.
  [[nodiscard]] std::size_t arrived_by_now() {
    settle(a);
    settle(b);
    return out_b->receive(~std::size_t{0}, milliseconds(0));
  }
  // What was sent to its devices and sockets before is done with. Two turns: one may have begun
  // before.
  static void settle(Dataplane& plane) {
    for (int i = 0; i < 2; ++i)
      plane.remove_policy(plane.add_policy(policy(Direction::in, 0xffff)));
  }

  // Waits for an event of this kind; fails the test if there is none. Others are forgotten.
  static Event event(Dataplane& plane, EventKind kind) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (std::chrono::steady_clock::now() < until) {
      for (const Event& e : plane.take_events())
        if (e.kind == kind) return e;
      auto next = until;
      if (const auto expiry = plane.next_expiry()) next = std::min(next, *expiry);
      const auto wait =
          std::chrono::ceil<milliseconds>(next - std::chrono::steady_clock::now()).count();
      pollfd p{plane.event_fd(), POLLIN, 0};
      ::poll(&p, 1, static_cast<int>(std::max<std::int64_t>(wait, 0)));
    }
    ADD_FAILURE() << "no event " << kEventNames[static_cast<std::size_t>(kind)];
    return {};
  }
  static std::uint64_t drops(const Dataplane& plane, Drop reason) {
    return plane.drops()[static_cast<std::size_t>(reason)];
  }

  Dataplane a, b;
  DeviceId device_a{}, device_b{};
  PolicyId policy_a{};
  std::optional<PacketSocket> in_a, out_b;
};

}  // namespace espalier::test
