// What routers report of the path, and what we tell the senders of packets that cannot go on.
//
//   input: FLAGS, MTU (2), bytes of a packet
//   FLAGS bit 0: IPv6   bit 1: the bytes are a packet, of which a report is made first
//         bit 2: the checksum is put right   bits 4–5: why the packet cannot go on
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "dataplane/bytes.h"
#include "dataplane/checksum.h"
#include "dataplane/icmp.h"
#include "dataplane/inner.h"
#include "dataplane/paths.h"
#include "tests/fuzz/input.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace {

using namespace espalier;
using namespace espalier::dataplane;
using espalier::fuzz::Input;
using espalier::fuzz::require;

constexpr std::int64_t kNow = 1'000'000'000;

struct Packet {
  explicit Packet(std::span<const std::uint8_t> from)
      : bytes(std::make_unique<std::uint8_t[]>(from.size())), size(from.size()) {
    std::copy(from.begin(), from.end(), bytes.get());
  }
  [[nodiscard]] std::span<std::uint8_t> span() const { return {bytes.get(), size}; }
  std::unique_ptr<std::uint8_t[]> bytes;  // of exactly its size, so that a byte too far is seen
  std::size_t size;
};

void put_sum_right(std::span<std::uint8_t> message) {
  if (message.size() < 4) return;
  message[2] = message[3] = 0;
  const auto sum = static_cast<std::uint16_t>(~fold(sum_bytes(message.data(), message.size())));
  std::memcpy(&message[2], &sum, sizeof sum);
}

// An SA that the report is about, whatever it says.
void match(OutboundSa& sa, OuterSocket& socket, const TooBig& report) {
  sa.spi = report.spi;
  sa.encapsulation = report.encapsulation;
  socket.local = report.local;
  sa.socket = &socket;
  sa.peer = std::make_shared<Peer>(report.peer);
}

// T24, M4: nothing that a router says makes the path narrower than the least, or wider.
void check_report(const TooBig& report, bool ipv6) {
  OutboundSa sa;
  OuterSocket socket;
  match(sa, socket, report);
  require(is_about(report, sa), "a report that is not about its own packet");
  PathMtu& path = sa.peer->path();
  for (const std::uint32_t link : {0U, 9000U, 1400U}) {
    path.forget();
    path.set_link(link);
    const bool news = learn(report, sa, kNow);
    const std::uint32_t known = path.get(kNow);
    require(news == (known != link), "a change that nobody tells of");
    require(!news || known >= (ipv6 ? PathMtu::kFloor6 : PathMtu::kFloor4), "below the least");
    require(link == 0 || known <= link, "wider than the link");
    require(!learn(report, sa, kNow), "the same report is news twice");
    require(path.get(kNow + PathMtu::kLifeNs) == link, "a report that stays for ever");
  }
  sa.spi = Spi{static_cast<std::uint32_t>(report.spi) ^ 1};
  require(!is_about(report, sa), "a report about another SA");
}

// What we tell is what a router may say: it can be read where it quotes UDP.
void check_error(std::span<const std::uint8_t> packet, IcmpReason reason, std::uint32_t mtu) {
  std::array<std::uint8_t, kMaxIcmpError> out{};
  const std::size_t n = icmp_error(packet, reason, packet.size(), mtu, out);
  if (n == 0) return;
  InnerKey key{};
  require(parse_inner(packet, key), "an error about what is no packet");
  require(n > 8 && n <= (key.ipv6 ? kMaxIcmpError : kMaxIcmpError4), "an error of another length");
  if (!key.ipv6) require(fold(sum_bytes(out.data(), n)) == 0xffff, "a wrong checksum");
  if (reason != IcmpReason::too_big || key.length != packet.size()) return;
  TooBig report;
  const std::size_t header = key.ipv6 ? 40 : std::size_t{packet[0] & 0xfU} * 4;
  const bool udp = (key.ipv6 ? packet[6] : packet[9]) == 17;
  if (!udp || packet.size() < header + 12) return;
  require(parse_too_big({out.data(), n}, key.ipv6, report), "an error that says nothing");
  require(report.peer.port == key.destination_port, "an error about another packet");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input input(data, size);
  const std::uint8_t flags = input.byte();
  const std::uint16_t mtu = input.word();
  const Packet packet(input.rest());
  const bool ipv6 = (flags & 1) != 0;
  if ((flags & 2) != 0) {
    check_error(packet.span(), static_cast<IcmpReason>((flags >> 4) % 3), mtu);
    return 0;
  }
  if ((flags & 4) != 0 && !ipv6) put_sum_right(packet.span());
  TooBig report;
  if (parse_too_big(packet.span(), ipv6, report)) check_report(report, ipv6);
  return 0;
}
