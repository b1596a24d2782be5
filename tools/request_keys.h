// Keys in a request, before the JSON library sees it: it copies every string, and wipes none.
#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string_view>
#include <vector>

#include "crypto/secret.h"
#include "crypto/suite.h"

namespace espalier::tools {

// Moves the text of every member "key" out of `line` and writes the number of its place in what is
// returned instead. Texts that are too short to be a key stay.
[[nodiscard]] std::vector<crypto::SecretBytes> take_keys(std::span<char> line);

// The key (and salt) that a text of hex digits, perhaps behind 0x, or of base64 stands for.
// `suite` is for the message. Throws std::invalid_argument, which does not quote it.
[[nodiscard]] crypto::SecretBytes decode_key(std::span<const std::uint8_t> text,
                                             const crypto::SuiteInfo& suite);

}  // namespace espalier::tools
