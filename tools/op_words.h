// The words of `espalier sa|policy|vti`, which are those of `ip xfrm` and `ip tunnel`, as
// operations of the control socket.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "crypto/secret.h"

namespace espalier::tools {

// Where the words come from decides where a key may be: other users see a command line.
enum class WordSource : std::uint8_t { command_line, file };

// `words`: behind `espalier sa`, as in add src 192.0.2.1 … . A key is read where the words say it
// is; the operation's "key" is its place in `keys`. Throws UsageError.
[[nodiscard]] nlohmann::json sa_operation(std::span<const std::string> words, WordSource source,
                                          std::vector<crypto::SecretBytes>& keys);
[[nodiscard]] nlohmann::json policy_operation(std::span<const std::string> words);
[[nodiscard]] nlohmann::json vti_operation(std::span<const std::string> words);
// `words`: behind `espalier explain`.
[[nodiscard]] nlohmann::json explain_operation(std::span<const std::string> words);

// The text of a key in a file, or in what comes over standard input ("-"), without the white space
// around it. Throws std::runtime_error.
[[nodiscard]] crypto::SecretBytes read_key_text(const std::string& file);

}  // namespace espalier::tools
