#include "dataplane/icmp_sender.h"

#include <system_error>

#include "ifaces/icmp_socket.h"

namespace espalier::dataplane {
namespace {

// RFC 1812 §4.3.2.5: precedence INTERNETWORK CONTROL.
constexpr std::uint8_t kTos = 0xc0;

ifaces::Endpoint source_of(std::span<const std::uint8_t> packet) noexcept {
  if (packet[0] >> 4 == 6) return {ifaces::IpAddress::v6(packet.subspan<8, 16>()), 0};
  return {ifaces::IpAddress::v4(packet.subspan<12, 4>()), 0};
}

}  // namespace

IcmpSender::~IcmpSender() {
  for (const int port : {sockets_.v4, sockets_.v6})
    if (port != Sockets::kNone) engine_.detach(static_cast<ifaces::Port>(port));
}

void IcmpSender::open(bool reports) {
  try {
    fd4_ = ifaces::open_icmp(ifaces::Family::v4, reports);
    sockets_.v4 = engine_.attach(ifaces::PortKind::raw_esp4, fd4_.get());
    fd6_ = ifaces::open_icmp(ifaces::Family::v6, reports);
    sockets_.v6 = engine_.attach(ifaces::PortKind::raw_esp6, fd6_.get());
  } catch (const std::system_error&) {
    // Without CAP_NET_RAW, or without IPv6: packets are dropped in silence, as before.
  }
}

void IcmpSender::answer(DeviceCounters& device, std::span<const std::uint8_t> packet,
                        IcmpReason reason, std::size_t length, std::uint32_t mtu) noexcept {
  const bool ipv6 = packet[0] >> 4 == 6;
  const int port = ipv6 ? sockets_.v6 : sockets_.v4;
  if (port == Sockets::kNone || used_ == kMessages || !device.icmp_limit.has(now_ns_)) return;
  Message& message = messages_[used_];
  const std::size_t bytes = icmp_error(packet, reason, length, mtu, message.bytes);
  if (bytes == 0) return;
  ++used_;
  device.icmp_limit.take(now_ns_);
  const socklen_t to_len = source_of(packet).to(message.to);
  engine_.send({.port = static_cast<ifaces::Port>(port),
                .tos = kTos,
                .segment_size = 0,
                .len = static_cast<std::uint32_t>(bytes),
                .data = message.bytes.data(),
                .to = &message.to,
                .to_len = to_len},
               0);
  bump(device.icmp_sent, 1);
}

}  // namespace espalier::dataplane
