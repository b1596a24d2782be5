// Every way to lose a packet has a name, and the name is its counter.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace espalier::dataplane {

// In the order in which a packet meets them. The words are what `espalier status` prints.
#define ESPALIER_DROPS(X)                                                                         \
  /* outbound */                                                                                  \
  X(malformed_inner, "the TUN handed over something that is no IP packet, or contradicts itself") \
  X(no_policy, "no outbound policy for this device, mark and selector")                           \
  X(policy_bypass, "a policy says bypass, but a route led the packet into the tunnel's device")   \
  X(policy_discard, "a policy says discard")                                                      \
  X(no_sa, "a policy, but no outbound SA to protect the packet")                                  \
  X(loop, "an outer packet of ours, routed into its own tunnel")                                  \
  X(no_peer, "the peer's address is not known yet")                                               \
  X(seq_exhausted, "the SA's sequence numbers are used up, or its reserved range is")             \
  X(expired, "a hard limit of the SA's lifetime was reached; both directions")                    \
  X(too_big, "longer than a datagram can carry")                                                  \
  X(seal_failed, "the AEAD refused to seal")                                                      \
  X(send_failed, "the kernel refused to send")                                                    \
  /* inbound */                                                                                   \
  X(too_short, "shorter than an ESP packet of its SA")                                            \
  X(no_spi, "no inbound SA with this SPI and destination")                                        \
  X(not_keyed, "its SPI was given out, and no keys came in time, or too many packets waited")     \
  X(wrong_encapsulation, "raw ESP for a UDP SA, or the other way round")                          \
  X(wrong_peer, "not from the SA's peer")                                                         \
  X(late, "behind the replay window")                                                             \
  X(duplicate, "seen before")                                                                     \
  X(integrity, "the ICV is wrong")                                                                \
  X(bad_padding, "the padding is not 1, 2, 3, …, or longer than the packet")                      \
  X(bad_next_header, "not IPv4 or IPv6 in tunnel mode, or not what the packet says")              \
  X(bad_inner_length, "the inner packet is longer than what was protected")                       \
  X(selector_mismatch, "inner addresses outside the policies of the SA")                          \
  X(no_device, "no device for the policy's mark")                                                 \
  X(ecn_violation, "congestion experienced on a packet that is not ECN-capable (RFC 6040)")       \
  X(write_failed, "the TUN refused the packet: it is down or gone")                               \
  X(no_ike, "an IKE packet, and nobody to give it to")

enum class Drop : std::uint8_t {
#define ESPALIER_DROP_NAME(name, text) name,
  ESPALIER_DROPS(ESPALIER_DROP_NAME)
#undef ESPALIER_DROP_NAME
};

struct DropInfo {
  std::string_view name;
  std::string_view text;
};

inline constexpr std::array kDropInfo = {
#define ESPALIER_DROP_INFO(name, text) DropInfo{#name, text},
    ESPALIER_DROPS(ESPALIER_DROP_INFO)
#undef ESPALIER_DROP_INFO
};
inline constexpr std::size_t kDropCount = kDropInfo.size();

}  // namespace espalier::dataplane
