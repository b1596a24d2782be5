// The configuration file: parsed, checked, and turned into what the data plane takes. Options carry
// libreswan's names. Boost.Program_options reads every line, so that a refusal can name it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "dataplane/types.h"
#include "ifaces/address.h"
#include "tools/config_values.h"
#include "tools/subnet.h"

namespace espalier::tools {

// what() is one line: "FILE:LINE: what is wrong; what to write instead". Never contains key
// material.
class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One [conn NAME]. `left` and `right` stay as written: which of them is this host is found by
// orient() (tools/compile.h), so both gateways may have the same file.
struct Conn {
  std::string name;
  std::string where;                    // FILE:LINE of its section, for messages
  ifaces::IpAddress left, right;        // one of them may be of no family: %any, %defaultroute
  bool left_is_default_route = false;   // %defaultroute: resolved when the conn comes up
  bool right_is_default_route = false;  // never both
  // protect: a tunnel (type=tunnel). bypass, discard: no SAs, only policies, which hold on every
  // device that the mark matches (type=passthrough, drop, reject).
  dataplane::PolicyAction action = dataplane::PolicyAction::protect;
  std::vector<Subnet> leftsubnet, rightsubnet;  // empty in the file: the host itself
  ProtoPort leftprotoport, rightprotoport;
  std::optional<std::uint32_t> priority;  // of the policies; not set: by the selectors
  dataplane::Mark mark_in, mark_out;      // {0, 0} without a vti-interface
  std::string vti_interface;              // empty: the shared default device
  bool vti_routing = true;                // as libreswan documents it
  bool vti_shared = false;
  bool vti_carrier_follows = true;  // the SAs; false: always up
  std::vector<ifaces::Prefix> leftvti, rightvti;
  dataplane::Encapsulation encapsulation = dataplane::Encapsulation::udp;
  std::uint16_t left_port = 4500, right_port = 4500;  // UDP
  bool nat_follow = true;                             // the peer's address may change
  std::uint32_t mark_outer = 0;                       // SO_MARK of outer packets; 0: none
  crypto::Suite esp = crypto::Suite::aes_gcm256;
  bool esn = true;
  std::uint32_t replay_window = 4096;
  std::optional<unsigned> mtu;
  dataplane::OuterHeader outer;
  std::uint32_t tfc = 0;        // as SaSpec::tfc_padding
  std::uint16_t mss_clamp = 0;  // as SaSpec::mss_clamp
  std::filesystem::path keys;   // absolute; empty without SAs
  // rightaddresspool or leftaddresspool: one peer for each key file of the folder `keys`, each at
  // an unknown place and with an address of the pool inside. load_config() makes a conn of each.
  std::optional<Subnet> pool;
  bool is_client = false;  // made so: its name is CONN/ADDRESS
  auto operator<=>(const Conn&) const = default;
};

// mark-outer=auto. Outside the bits that Kubernetes (0x4000, 0x8000) and Tailscale (0x40000,
// 0x80000 under 0xff0000) look at.
inline constexpr std::uint32_t kAutoOuterMark = 0x45530000;

struct Globals {
  std::string io = "auto";
  std::string crypto = "auto";
  unsigned workers = 1;  // 0: auto
  bool pin = false;      // each worker to a processor of its own
  OffloadChoice offloads;
  std::string log = "info";
  std::filesystem::path control = "/run/espalier/control.sock";
  std::string group;  // may use it, and `espalier exec`; empty: none but root
  std::optional<std::filesystem::path> state_dir;  // not set: state files lie beside the key files
  unsigned keepalive_s = 20;                       // 0: none
};

struct Config {
  Globals globals;
  std::vector<Conn> conns;  // without those that say auto=ignore
  // FILE:LINE: what was read and means nothing here yet: options of IKE.
  std::vector<std::string> remarks;
};

// Reads and validates; key files are checked too (present, mode, lengths), but no state file is
// touched and no interface is looked at. Throws ConfigError.
[[nodiscard]] Config load_config(const std::filesystem::path& file);

// The same from memory. `file` is the name for messages and its folder the start of relative paths.
// Opens no file with CheckKeys::no.
enum class CheckKeys : std::uint8_t { no, yes };
[[nodiscard]] Config parse_config(std::string_view text, const std::filesystem::path& file,
                                  CheckKeys check_keys);

// The state file of a conn: its key file with the extension .state, in `state_dir` if that is set.
[[nodiscard]] std::filesystem::path state_file(const Conn& conn, const Globals& globals);

}  // namespace espalier::tools
