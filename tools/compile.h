// A conn becomes what the data plane and rtnetlink take. Pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "dataplane/types.h"
#include "ifaces/address.h"
#include "tools/config.h"
#include "tools/keys.h"

namespace espalier::tools {

// The device of all conns without a vti-interface. Its keys are 0.
inline constexpr std::string_view kDefaultDevice = "espalier0";

enum class Side : std::uint8_t { left, right };

// Which end is this host? `is_local` tells whether an address is one of this host's. Throws
// ConfigError if neither end is, or both are. A conn without SAs may name neither: then it is left.
[[nodiscard]] Side orient(const Conn& conn,
                          const std::function<bool(const ifaces::IpAddress&)>& is_local);

// Is the own end %defaultroute? Then the caller resolves it and tells compile().
[[nodiscard]] bool local_is_default_route(const Conn& conn, Side own) noexcept;
// The address of the other end; of no family for %any.
[[nodiscard]] const ifaces::IpAddress& remote_address(const Conn& conn, Side own) noexcept;

// The subnets that the conn routes through its device as seen from `own`; the peer itself if the
// conn has no subnet for it.
[[nodiscard]] std::vector<Subnet> peer_subnets(const Conn& conn, Side own);
// The one of them, if vti-routing is on, that would lead the tunnel's own packets into the tunnel:
// it covers the peer.
[[nodiscard]] std::optional<ifaces::Prefix> looping_route(const Conn& conn, Side own);
// What is wrong with it, and what to write instead.
[[nodiscard]] std::string loop_text(const Conn& conn, Side own, const ifaces::Prefix& route);

// What --check and the status show of a selector: 10.1.3.0/24, 10.1.3.1-10.1.3.9 tcp/22
[[nodiscard]] std::string str(const Conn& conn, Side side, const Subnet& subnet);

// One conn, as one gateway sees it.
struct Compiled {
  bool has_sas = true;                    // false: policies only, and nothing below but `routes`
  bool uses_device = true;                // false: policies only, and no route leads anywhere
  dataplane::DeviceSpec device;           // equal for all conns that share the device
  std::optional<unsigned> mtu;            // as configured
  std::vector<ifaces::Prefix> addresses;  // of the device
  std::vector<ifaces::Prefix> routes;     // through the device
  // Those that may cover the peer: through the device too, but not for the outer packets, which
  // bear sa_out.outer_mark.
  std::vector<ifaces::Prefix> unmarked_routes;
  std::vector<dataplane::PolicySpec> policies;  // out and in, one of each per pair of subnets
  dataplane::SaSpec sa_out, sa_in;              // next_seq and seq_limit are the caller's to set
};

// `own` as orient() said; `local` is the own address where the conn says %defaultroute, else it is
// ignored. `reqid` is the conn's own, and not 0. Throws ConfigError if a route would lead the
// tunnel's own packets into the tunnel, or the families of both ends differ.
[[nodiscard]] Compiled compile(const Conn& conn, Side own, const ifaces::IpAddress& local,
                               StaticKeys keys, std::uint32_t reqid);

}  // namespace espalier::tools
