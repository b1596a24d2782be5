// The configuration file: parsed, checked, and turned into what the data plane takes. Options carry
// libreswan's names. Boost.Program_options reads every line, so that a refusal can name it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "dataplane/types.h"
#include "ifaces/address.h"

namespace espalier::tools {

// what() is one line: "FILE:LINE: what is wrong; what to write instead". Never contains key
// material.
class ConfigError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One [conn NAME]. `local` and `remote` are left and right, whichever is this host.
struct Conn {
  std::string name;
  std::string where;                   // FILE:LINE of its section, for messages
  ifaces::IpAddress left, right;       // right may be any (%any)
  bool left_is_default_route = false;  // %defaultroute: resolved when the conn comes up
  std::vector<ifaces::Prefix> leftsubnet, rightsubnet;  // empty in the file: the host itself
  dataplane::Mark mark_in, mark_out;
  std::string vti_interface;  // empty: the shared default device
  bool vti_routing = true;    // seed 000: "default yes"
  bool vti_shared = false;
  std::vector<ifaces::Prefix> leftvti, rightvti;
  dataplane::Encapsulation encapsulation = dataplane::Encapsulation::udp;
  std::uint16_t left_port = 4500, right_port = 4500;
  crypto::Suite esp = crypto::Suite::aes_gcm256;
  bool esn = true;
  std::uint32_t replay_window = 4096;
  std::optional<unsigned> mtu;
  std::filesystem::path keys;  // absolute
  auto operator<=>(const Conn&) const = default;
};

struct Globals {
  std::string io = "auto";
  std::string crypto = "auto";
  unsigned workers = 1;  // 0: auto
  std::string log = "info";
  std::filesystem::path control = "/run/espalier/control.sock";
  std::filesystem::path state_dir = "/var/lib/espalier";
  unsigned keepalive_s = 20;
};

struct Config {
  Globals globals;
  std::vector<Conn> conns;
};

// Reads and validates; key files are checked too (present, mode, lengths), but no state file is
// touched and no interface is looked at. Throws ConfigError.
[[nodiscard]] Config load_config(const std::filesystem::path& file);

}  // namespace espalier::tools
