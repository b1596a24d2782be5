// SAs, policies, devices and events for people. All take what arrived over the socket, and trust
// nothing in it: what is missing or of another type is left out.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace espalier::tools {

[[nodiscard]] std::string sa_lines(const nlohmann::json& sa);          // as ip -s xfrm state
[[nodiscard]] std::string policy_lines(const nlohmann::json& policy);  // as ip xfrm policy
[[nodiscard]] std::string vti_line(const nlohmann::json& vti);         // as ip tunnel show
[[nodiscard]] std::string vti_counters(const nlohmann::json& vti);     // as ip -s tunnel show
[[nodiscard]] std::string explain_text(const nlohmann::json& reply);   // of "explain"
[[nodiscard]] std::string event_line(const nlohmann::json& event);

}  // namespace espalier::tools
