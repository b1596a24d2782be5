// ICMP errors to those whose packets cannot go on, as a router owes them (RFC 1812 §4.3, RFC 4301
// §7.4).
//
// They leave through a raw socket and not through the TUN: written into the TUN they would arrive
// from outside, and one that says that it is from this gateway is a martian there (a local source;
// rp_filter). Through a socket the kernel gives it the address that its own errors would have, the
// one that faces the sender (RFC 1812 §4.3.2.4, RFC 4443 §2.2): traceroute shows the gateway, and a
// sender on this host is reached as well.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "dataplane/device.h"
#include "dataplane/icmp.h"
#include "ifaces/engine.h"
#include "ifaces/unique_fd.h"

namespace espalier::dataplane {

// One worker's. Messages live in fixed memory until the engine's turn is over.
class IcmpSender {
 public:
  explicit IcmpSender(ifaces::Engine& engine) noexcept : engine_(engine) {}
  ~IcmpSender();
  IcmpSender(const IcmpSender&) = delete;
  IcmpSender& operator=(const IcmpSender&) = delete;

  // Opens what this host allows; nothing is sent before, nor without CAP_NET_RAW. `reports`: the
  // sockets receive what routers say about packets that were too big.
  void open(bool reports);
  struct Sockets {
    static constexpr int kNone = -1;
    int v4 = kNone, v6 = kNone;  // ports of the engine
  };
  [[nodiscard]] const Sockets& sockets() const noexcept { return sockets_; }

  void begin_turn(std::int64_t now_ns) noexcept {
    now_ns_ = now_ns;
    used_ = 0;
  }

  // Tells the sender of `packet`, which `device` handed over, unless too much was told lately or an
  // error must not be sent. `length`, `mtu`: as in icmp_error().
  void answer(DeviceCounters& device, std::span<const std::uint8_t> packet, IcmpReason reason,
              std::size_t length, std::uint32_t mtu = 0) noexcept;

 private:
  static constexpr std::size_t kMessages = 64;
  struct Message {
    sockaddr_storage to;
    std::array<std::uint8_t, kMaxIcmpError> bytes;
  };

  ifaces::Engine& engine_;
  ifaces::UniqueFd fd4_, fd6_;
  Sockets sockets_;
  std::int64_t now_ns_ = 0;
  std::size_t used_ = 0;
  std::array<Message, kMessages> messages_;
};

}  // namespace espalier::dataplane
