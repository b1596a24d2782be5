// What to write instead of the words of libreswan and strongSwan that mean nothing here.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace espalier::tools {

// For an option that Espalier does not have. Empty: nothing is known about it.
[[nodiscard]] std::optional<std::string> hint_for_option(std::string_view name);

// Does only IKE use it? With static keys it means nothing, and changes nothing.
[[nodiscard]] bool is_ike_option(std::string_view name);
[[nodiscard]] bool is_setup_option(std::string_view name);

// For a line without '=': `conn NAME`, `config setup`, `include FILE`.
[[nodiscard]] std::optional<std::string> hint_for_line(std::string_view line);

}  // namespace espalier::tools
