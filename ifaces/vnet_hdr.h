// The header in front of every packet of a TUN opened with IFF_VNET_HDR. The kernel's
// linux/virtio_net.h names a field `class`, so C++ needs its own definition (VIRTIO 1.2 §5.1.6).
#pragma once

#include <cstdint>

namespace espalier::ifaces {

inline constexpr std::uint8_t kVnetNeedsCsum =
    1;  // flags: sum from csum_start, put at +csum_offset
inline constexpr std::uint8_t kVnetDataValid = 2;  // flags: checksums were verified

inline constexpr std::uint8_t kVnetGsoNone = 0;
inline constexpr std::uint8_t kVnetGsoTcp4 = 1;
inline constexpr std::uint8_t kVnetGsoTcp6 = 4;
inline constexpr std::uint8_t kVnetGsoUdpL4 = 5;
inline constexpr std::uint8_t kVnetGsoEcn = 0x80;  // or-ed in: the TCP header carries CWR

// Host byte order (no TUNSETVNETBE).
struct VnetHdr {
  std::uint8_t flags;
  std::uint8_t gso_type;
  std::uint16_t hdr_len;  // a hint only: never trusted
  std::uint16_t gso_size;
  std::uint16_t csum_start;
  std::uint16_t csum_offset;
};
static_assert(sizeof(VnetHdr) == 10);

}  // namespace espalier::ifaces
