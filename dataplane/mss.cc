#include "dataplane/mss.h"

#include "dataplane/bytes.h"

namespace espalier::dataplane {
namespace {

constexpr std::uint8_t kTcp = 6, kSyn = 0x02;
constexpr std::size_t kTcpHeader = 20;

// Where the TCP header is; 0: there is none, or not in this fragment. Extension headers of IPv6
// are not stepped over: hosts do not put any before a SYN.
std::size_t find_tcp(std::span<const std::uint8_t> packet) noexcept {
  if (packet[0] >> 4 == 6) return packet.size() >= 40 && packet[6] == kTcp ? 40 : 0;
  if (packet[9] != kTcp || (load_be<std::uint16_t>(&packet[6]) & 0x1fff) != 0) return 0;
  return std::size_t{packet[0] & 0xfU} * 4;
}

void lower(std::uint8_t* tcp, std::uint8_t* option, std::uint16_t mss) noexcept {
  const auto before = load_be<std::uint16_t>(option);
  if (before <= mss) return;
  store_be(option, mss);
  // Behind an odd number of option bytes the field is split over two words of the sum: its bytes
  // count swapped.
  const bool odd = (option - tcp) % 2 != 0;
  const auto as_summed = [odd](std::uint16_t v) {
    return odd ? static_cast<std::uint16_t>(v << 8 | v >> 8) : v;
  };
  std::uint32_t sum = static_cast<std::uint16_t>(~load_be<std::uint16_t>(tcp + 16));
  sum += static_cast<std::uint16_t>(~as_summed(before));
  sum += as_summed(mss);
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  store_be(tcp + 16, static_cast<std::uint16_t>(~sum));
}

}  // namespace

void clamp_mss(std::span<std::uint8_t> packet, const MssLimit& limit) noexcept {
  const std::size_t at = find_tcp(packet);
  if (at == 0 || at + kTcpHeader > packet.size()) return;
  std::uint8_t* tcp = &packet[at];
  if ((tcp[13] & kSyn) == 0) return;
  const std::size_t header = std::size_t{tcp[12]} / 16 * 4;
  if (header < kTcpHeader || at + header > packet.size()) return;
  constexpr std::uint8_t kEnd = 0, kNop = 1, kMss = 2, kMssLength = 4;
  for (std::size_t i = kTcpHeader; i < header && tcp[i] != kEnd;) {
    if (tcp[i] == kNop) {
      ++i;
      continue;
    }
    const std::size_t length = i + 1 < header ? tcp[i + 1] : 0;
    if (length < 2 || i + length > header) return;
    if (tcp[i] == kMss && length == kMssLength)
      return lower(tcp, tcp + i + 2, packet[0] >> 4 == 6 ? limit.v6 : limit.v4);
    i += length;
  }
}

}  // namespace espalier::dataplane
