// What changed between two replies to `status`, a second: for `espalier top`. Takes what arrived
// over the socket and trusts nothing in it, as status.h does.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

namespace espalier::tools {

// {"devices":[{"name","carrier","rx_packets","rx_bits","tx_packets","tx_bits"}…],
//  "sas":[{"conn","direction","spi","local","peer","packets","bits"}…], the busiest first,
//  "sa_count", "drops":{NAME: packets}}, all a second but sa_count. `seconds` above 0.
[[nodiscard]] nlohmann::json rates(const nlohmann::json& before, const nlohmann::json& after,
                                   double seconds);

// The same as a table of at most `lines` lines.
[[nodiscard]] std::string rates_text(const nlohmann::json& rates, std::size_t lines);

}  // namespace espalier::tools
