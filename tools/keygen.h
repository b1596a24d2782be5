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
      leftvti{}, rightvti{}, encapsulation{};
  std::string esp = "aes_gcm256";
  std::filesystem::path out;
};

// Makes OUT/left and OUT/right, each with espalier.conf, CONN.keys (mode 0600) and CONN.state, to
// be copied to the two gateways. Returns the files. Throws ConfigError (what to write instead) or
// std::system_error (OUT/left or OUT/right exists, a disk is full); then nothing is left behind.
std::vector<std::filesystem::path> keygen(const KeygenRequest& request);

}  // namespace espalier::tools
