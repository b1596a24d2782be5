// The MTU of a tunnel device: what fits into one outer packet.
#pragma once

#include "crypto/suite.h"
#include "dataplane/types.h"
#include "ifaces/address.h"

namespace espalier::tools {

inline constexpr unsigned kMinMtu4 = 576;   // RFC 791: what every IPv4 host takes
inline constexpr unsigned kMinMtu6 = 1280;  // RFC 8200 §5

// The largest inner packet whose ESP packet (RFC 4303 §2, UDP: RFC 3948 §2.1) is no longer than
// `outer_mtu`. 0 if not even an empty one fits.
[[nodiscard]] constexpr unsigned tunnel_mtu(unsigned outer_mtu, ifaces::Family outer,
                                            dataplane::Encapsulation encapsulation,
                                            const crypto::SuiteInfo& suite) noexcept {
  constexpr unsigned kEspHeader = 8, kEspTrailer = 2, kUdpHeader = 8;
  const unsigned ip = outer == ifaces::Family::v6 ? 40 : 20;
  const unsigned udp = encapsulation == dataplane::Encapsulation::udp ? kUdpHeader : 0;
  const unsigned fixed = ip + udp + kEspHeader + suite.iv + suite.icv;
  if (outer_mtu < fixed + suite.align) return 0;
  // Payload, padding and trailer together fill whole units of `align`.
  return (outer_mtu - fixed) / suite.align * suite.align - kEspTrailer;
}

}  // namespace espalier::tools
