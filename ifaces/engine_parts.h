// What both engines share: buffer memory, the control messages of the sockets, and what an error
// on a descriptor means. Internal to ifaces/.
#pragma once

#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "ifaces/engine.h"
#include "ifaces/vnet_hdr.h"

namespace espalier::ifaces {

// Buffers of one engine. Two kinds hold the largest thing that a descriptor can deliver; they are
// few, so that the bytes of a turn stay in a 2 MiB second-level cache. Raw ESP delivers one packet
// a buffer (there is no GRO), so it has many that hold a jumbo frame. What does not fit (loopback,
// or reassembled from fragments) is lost once, and its port then receives into the large ones.
inline constexpr unsigned kTunBuffers = 32;
inline constexpr unsigned kUdpBuffers = 32;
inline constexpr unsigned kRawBuffers = 256;

enum class Group : std::uint8_t { tun, udp, raw };
inline constexpr std::size_t kGroups = 3;

// In front of a socket's payload lie the multishot header (16), the sender's address and the
// control messages; the sum puts the payload on a cache line.
inline constexpr std::size_t kNameBytes = 32;  // sockaddr_in6 is 28
inline constexpr std::size_t kControlBytes = 144;
inline constexpr std::size_t kSocketHeadroom = 16 + kNameBytes + kControlBytes;
static_assert(kSocketHeadroom % 64 == 0 && kNameBytes >= sizeof(sockaddr_in6));
static_assert(kControlBytes >= CMSG_SPACE(sizeof(int)) * 2 + CMSG_SPACE(sizeof(in6_pktinfo)),
              "UDP_GRO, one of IP_TOS and TCLASS, one of PKTINFO");

// In front of a TUN packet: so much that the payload behind the headers of TCP over IPv4 with
// timestamps (52 bytes) starts a cache line: the kernel copies faster to there.
inline constexpr std::size_t kTunHeadroom = 2 * 64 - 52 - sizeof(VnetHdr);

// The strides are odd multiples of a cache line: the first lines of all buffers, which is all that
// small packets touch, then fall into different cache sets.
struct GroupShape {
  std::size_t headroom;  // bytes before what the engine itself asks the kernel to fill
  std::size_t bytes;     // what the kernel may fill
  std::size_t stride;
};
inline constexpr std::array<GroupShape, kGroups> kShapes{{
    {kTunHeadroom, sizeof(VnetHdr) + 65535, std::size_t{64} * 1027},
    {0, kSocketHeadroom + 65535, std::size_t{64} * 1027},
    {0, kSocketHeadroom + 9216, std::size_t{64} * 147},
}};
static_assert(kShapes[0].headroom + kShapes[0].bytes + kTunTailroom <= kShapes[0].stride);
static_assert(kShapes[1].bytes <= kShapes[1].stride && kShapes[2].bytes <= kShapes[2].stride);

constexpr const GroupShape& shape_of(Group g) noexcept {
  return kShapes[static_cast<std::size_t>(g)];
}

constexpr Group first_group(PortKind kind) noexcept {
  switch (kind) {
    case PortKind::tun:
      return Group::tun;
    case PortKind::udp:
      return Group::udp;
    case PortKind::raw_esp4:
    case PortKind::raw_esp6:
      break;
  }
  return Group::raw;
}

// Anonymous memory; pages that are never touched cost nothing.
class Mapping {
 public:
  explicit Mapping(std::size_t bytes);  // throws std::system_error
  [[nodiscard]] std::uint8_t* get() const noexcept { return memory_.get(); }

 private:
  struct Unmap {
    std::size_t bytes;
    void operator()(std::uint8_t* p) const noexcept { ::munmap(p, bytes); }
  };
  std::unique_ptr<std::uint8_t, Unmap> memory_;
};

// `count` buffers of one group.
class BufferArea {
 public:
  BufferArea(Group group, unsigned count)
      : group_(group), count_(count), memory_(shape_of(group).stride * count) {}
  [[nodiscard]] std::uint8_t* at(unsigned i) const noexcept {
    return memory_.get() + shape_of(group_).stride * i + shape_of(group_).headroom;
  }
  [[nodiscard]] unsigned count() const noexcept { return count_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return shape_of(group_).bytes; }

 private:
  Group group_;
  unsigned count_;
  Mapping memory_;
};

// Failures until the owner of the engine takes them. Never allocates; when full, packets are added
// to the newest entry, so that their number stays right.
class ErrorList {
 public:
  ErrorList() {
    entries_.reserve(kMax);
    taken_.reserve(kMax);
  }
  void add(Port port, std::uint16_t packets, int error) noexcept;
  [[nodiscard]] std::span<const TxError> take() noexcept {
    taken_.clear();
    taken_.swap(entries_);
    fresh_ = false;
    return taken_;
  }
  // Is there one that no turn has returned for yet? Such a one ends a turn; one that the caller
  // does not take ends no more than that.
  [[nodiscard]] bool fresh() const noexcept { return fresh_; }
  void settle() noexcept { fresh_ = false; }

 private:
  static constexpr std::size_t kMax = 1024;
  std::vector<TxError> entries_, taken_;
  bool fresh_ = false;
};

// The msghdr of one send, with room for UDP_SEGMENT, TOS, mark, hop limit, flow label and source.
struct TxMessage {
  msghdr header;
  iovec payload;
  alignas(cmsghdr)
      std::array<std::uint8_t, CMSG_SPACE(sizeof(std::uint16_t)) + 4 * CMSG_SPACE(sizeof(int)) +
                                   CMSG_SPACE(sizeof(in6_pktinfo))> control;
};

inline constexpr int kIpv6Flowinfo =
    11;  // IPV6_FLOWINFO of linux/in6.h, which netinet/in.h excludes

namespace parts {

template <typename T>
std::size_t put_control(std::uint8_t* at, int level, int type, T value) noexcept {
  cmsghdr h{};
  h.cmsg_len = CMSG_LEN(sizeof value);
  h.cmsg_level = level;
  h.cmsg_type = type;
  std::memcpy(at, &h, sizeof h);
  std::memcpy(at + CMSG_LEN(0), &value, sizeof value);
  return CMSG_SPACE(sizeof value);
}

inline std::size_t put_source(std::uint8_t* at, const IpAddress& source) noexcept {
  if (source.family == Family::v6) {
    in6_pktinfo info{};
    std::memcpy(&info.ipi6_addr, source.bytes.data(), sizeof info.ipi6_addr);
    return put_control(at, SOL_IPV6, IPV6_PKTINFO, info);
  }
  in_pktinfo info{};
  std::memcpy(&info.ipi_spec_dst, source.bytes.data(), sizeof info.ipi_spec_dst);
  return put_control(at, SOL_IP, IP_PKTINFO, info);
}

// `message` refers to the datagram's bytes and address, which must outlive its use.
inline void render(const Datagram& d, TxMessage& message) noexcept {
  message.payload = {const_cast<std::uint8_t*>(d.data), d.len};
  std::size_t used = 0;
  std::uint8_t* control = message.control.data();
  if (d.segment_size != 0 && d.len > d.segment_size)
    used += put_control(control, SOL_UDP, UDP_SEGMENT, d.segment_size);
  if (d.tos != 0) {
    const bool v6 = d.to->ss_family == AF_INET6;
    used += put_control(control + used, v6 ? SOL_IPV6 : SOL_IP, v6 ? IPV6_TCLASS : IP_TOS,
                        static_cast<int>(d.tos));
  }
  if (d.mark != 0) used += put_control(control + used, SOL_SOCKET, SO_MARK, d.mark);
  if ((d.hop_limit | d.flow_label) != 0) [[unlikely]] {
    const bool v6 = d.to->ss_family == AF_INET6;
    if (d.hop_limit != 0)
      used += put_control(control + used, v6 ? SOL_IPV6 : SOL_IP, v6 ? IPV6_HOPLIMIT : IP_TTL,
                          static_cast<int>(d.hop_limit));
    if (d.flow_label != 0 && v6)
      used += put_control(control + used, SOL_IPV6, kIpv6Flowinfo, htonl(d.flow_label));
  }
  if (d.source != nullptr) [[unlikely]]
    used += put_source(control + used, *d.source);
  message.header = {};
  message.header.msg_name = const_cast<sockaddr_storage*>(d.to);
  message.header.msg_namelen = d.to_len;
  message.header.msg_iov = &message.payload;
  message.header.msg_iovlen = 1;
  message.header.msg_control = used == 0 ? nullptr : control;
  message.header.msg_controllen = used;
}

inline void parse_destination(const std::uint8_t* value, std::size_t bytes, bool v6,
                              IpAddress& local) noexcept {
  const std::size_t at = v6 ? offsetof(in6_pktinfo, ipi6_addr) : offsetof(in_pktinfo, ipi_addr);
  const std::size_t size = v6 ? sizeof(in6_addr) : sizeof(in_addr);
  if (bytes < at + size) return;
  local.family = v6 ? Family::v6 : Family::v4;
  std::memcpy(local.bytes.data(), value + at, size);
}

// Takes segment size, TOS and destination out of what the kernel wrote.
inline void parse_control(const std::uint8_t* p, std::size_t left, Received& r) noexcept {
  while (left >= sizeof(cmsghdr)) {
    cmsghdr h;
    std::memcpy(&h, p, sizeof h);
    if (h.cmsg_len < CMSG_LEN(0) || h.cmsg_len > left) return;
    const std::uint8_t* value = p + CMSG_LEN(0);
    const std::size_t bytes = h.cmsg_len - CMSG_LEN(0);
    int number = 0;
    if (bytes == 1) {
      number = *value;
    } else if (bytes >= sizeof number) {
      std::memcpy(&number, value, sizeof number);
    }
    if (h.cmsg_level == SOL_UDP && h.cmsg_type == UDP_GRO) {
      r.segment_size = number > 0 && static_cast<std::uint32_t>(number) < r.len
                           ? static_cast<std::uint16_t>(number)
                           : 0;
    } else if ((h.cmsg_level == SOL_IP && h.cmsg_type == IP_TOS) ||
               (h.cmsg_level == SOL_IPV6 && h.cmsg_type == IPV6_TCLASS)) {
      r.tos = static_cast<std::uint8_t>(number);
    } else if ((h.cmsg_level == SOL_IP && h.cmsg_type == IP_PKTINFO) ||
               (h.cmsg_level == SOL_IPV6 && h.cmsg_type == IPV6_PKTINFO)) {
      parse_destination(value, bytes, h.cmsg_level == SOL_IPV6, r.local);
    }
    const std::size_t step = CMSG_ALIGN(h.cmsg_len);
    if (step >= left) return;
    p += step;
    left -= step;
  }
}

// As Endpoint::from, for a name of which only `len` bytes exist.
inline void parse_name(const std::uint8_t* name, std::size_t len, Endpoint& peer) noexcept {
  sa_family_t family = AF_UNSPEC;
  if (len >= sizeof family) std::memcpy(&family, name, sizeof family);
  std::uint16_t port = 0;
  if (family == AF_INET && len >= sizeof(sockaddr_in)) {
    peer.address.family = Family::v4;
    std::memcpy(peer.address.bytes.data(), name + offsetof(sockaddr_in, sin_addr), 4);
    std::memcpy(&port, name + offsetof(sockaddr_in, sin_port), 2);
  } else if (family == AF_INET6 && len >= sizeof(sockaddr_in6)) {
    peer.address.family = Family::v6;
    std::memcpy(peer.address.bytes.data(), name + offsetof(sockaddr_in6, sin6_addr), 16);
    std::memcpy(&port, name + offsetof(sockaddr_in6, sin6_port), 2);
  }
  peer.port = ntohs(port);
}

// Raw sockets: steps over the IPv4 header, whose TOS is the outer one, and clears the port that
// such an address has not. False if nothing is left: no byte behind the headers, or an empty
// datagram.
inline bool trim(Received& r) noexcept {
  if (r.kind == PortKind::udp) return r.len > 0;
  r.peer.port = 0;
  if (r.kind == PortKind::raw_esp6) return r.len > 0;
  if (r.len < 20) return false;
  const std::uint32_t header = (r.data[0] & 0x0fU) * 4;
  if (header < 20 || header >= r.len) return false;
  r.tos = r.data[1];
  r.data += header;
  r.len -= header;
  return true;
}

}  // namespace parts

// What to do with a descriptor after a failed receive.
enum class Fate : std::uint8_t {
  again,    // nothing is wrong with it: no buffer, a signal, an ICMP error of some peer
  suspect,  // counts against it; several in a row and it is dead
  dead,     // a deleted TUN, a closed descriptor
};
[[nodiscard]] Fate fate_of(PortKind kind, int error) noexcept;
inline constexpr std::uint8_t kMaxSuspicions = 16;

}  // namespace espalier::ifaces
