// `espalier keygen`: the mirrored pair of configurations of two gateways, with fresh keys.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace espalier::tools {

// The values are what the configuration file would say; unset options are left out of it.
struct KeygenRequest {
  std::string conn;
  std::string left, right;
  std::optional<std::string> leftsubnet{}, rightsubnet{}, mark{}, vti_interface{}, vti_routing{},
      leftvti{}, rightvti{}, encapsulation{}, leftaddresspool{}, rightaddresspool{};
  unsigned clients = 0;  // with a pool: how many, and the first free addresses of it are theirs
  std::string esp = "aes_gcm256";
  std::filesystem::path out;
};

// Makes OUT/left and OUT/right, each with espalier.conf, CONN.keys (mode 0600) and CONN.state, to
// be copied to the two gateways. Returns the files. Throws ConfigError (what to write instead) or
// std::system_error (OUT/left or OUT/right exists, a disk is full); then nothing is left behind.
//
// With an address pool, the end that is %any is many clients: OUT/left (or OUT/right) is the
// server's, with a folder CONN.clients that has ADDRESS.keys and ADDRESS.state of each, and
// OUT/clients/ADDRESS is the folder of one client.
std::vector<std::filesystem::path> keygen(const KeygenRequest& request);

}  // namespace espalier::tools
