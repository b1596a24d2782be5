// Members of a reply that may hold anything: what is missing or of another type is left out, and
// nothing draws on the terminal.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace espalier::tools {

[[nodiscard]] std::string text_of(const nlohmann::json& object, const char* key);
[[nodiscard]] std::uint64_t count_of(const nlohmann::json& object, const char* key);
[[nodiscard]] double seconds_of(const nlohmann::json& object, const char* key);  // -1: none
// "late 3, integrity 1": what is not zero of its "drops", in the order of the path.
[[nodiscard]] std::string drops_text(const nlohmann::json& object);

}  // namespace espalier::tools
