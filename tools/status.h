// What `espalier status` shows: collected by the daemon, carried as JSON, printed for people.
// Nothing in here holds key material.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "crypto/registry.h"
#include "dataplane/dataplane.h"

namespace espalier::tools {

struct ConnStatus {
  std::string name;
  bool up = false;
  dataplane::PolicyAction action{};
  std::string error;  // why it is not up
  std::string device;
  std::string left, right;  // end points, as written
  std::vector<std::string> leftsubnet, rightsubnet;
  std::string mark_in, mark_out;  // 5/0xffffffff
  dataplane::Encapsulation encapsulation{};
  crypto::Suite esp{};
  unsigned mtu = 0;
  std::uint32_t reqid = 0;
  std::chrono::steady_clock::time_point since;  // up or failed
};

struct DaemonStatus {
  std::string config;
  std::string engine;
  unsigned workers = 0;
  std::vector<crypto::BackendReport> crypto;
  std::chrono::steady_clock::time_point started;
  std::vector<ConnStatus> conns;
  std::vector<dataplane::DeviceStatus> devices;
  std::vector<dataplane::SaStatus> sas;  // the first ones
  std::size_t sa_count = 0;
  std::array<std::uint64_t, dataplane::kDropCount> drops{};
};

[[nodiscard]] nlohmann::json sa_json(const dataplane::SaStatus& s,
                                     std::chrono::steady_clock::time_point now);
[[nodiscard]] nlohmann::json device_json(const dataplane::DeviceStatus& d);

// The reply to {"op":"status"}: see tools/README.md for its members.
[[nodiscard]] nlohmann::json status_json(const DaemonStatus& status,
                                         std::chrono::steady_clock::time_point now);

// The same for people. Takes what arrived over the socket, so it trusts nothing in it: what is
// missing or of another type is left out.
[[nodiscard]] std::string status_text(const nlohmann::json& reply);

// 1.24 GiB, 3 min 5 s, 1 203 112
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);
[[nodiscard]] std::string human_duration(double seconds);
[[nodiscard]] std::string human_count(std::uint64_t count);

}  // namespace espalier::tools
