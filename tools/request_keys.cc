#include "tools/request_keys.h"

#include <sodium.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>
#include <string>

namespace espalier::tools {
namespace {

constexpr std::string_view kMember = "key";
constexpr std::size_t kShortest = 16;  // of a text; a place's number fits into it

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\r';
}

// Walks over a line of JSON from string to string; whether it is JSON is for others to say.
class Cursor {
 public:
  explicit Cursor(std::span<char> line) : line_(line) {}

  // The next string without its quotes. False: there is none.
  bool next_string(std::span<char>& text) {
    while (at_ < line_.size() && line_[at_] != '"') ++at_;
    return string_here(text);
  }
  // A string behind a colon, and nothing else between.
  bool string_after_colon(std::span<char>& text) {
    skip_space();
    if (at_ == line_.size() || line_[at_] != ':') return false;
    ++at_;
    skip_space();
    return at_ < line_.size() && line_[at_] == '"' && string_here(text);
  }

 private:
  void skip_space() {
    while (at_ < line_.size() && is_space(line_[at_])) ++at_;
  }
  bool string_here(std::span<char>& text) {
    if (at_ >= line_.size()) return false;
    const std::size_t begin = ++at_;
    while (at_ < line_.size() && line_[at_] != '"') at_ += line_[at_] == '\\' ? 2 : 1;
    if (at_ >= line_.size()) return false;
    text = line_.subspan(begin, at_ - begin);
    ++at_;
    return true;
  }

  std::span<char> line_;
  std::size_t at_ = 0;
};

// Some writers of JSON put a backslash before every slash, which base64 has.
crypto::SecretBytes copy_of(std::span<char> text) {
  const auto end = std::remove(text.begin(), text.end(), '\\');
  const auto length = static_cast<std::size_t>(end - text.begin());
  return crypto::SecretBytes({reinterpret_cast<const std::uint8_t*>(text.data()), length});
}

}  // namespace

std::vector<crypto::SecretBytes> take_keys(std::span<char> line) {
  std::vector<crypto::SecretBytes> keys;
  Cursor cursor(line);
  for (std::span<char> name; cursor.next_string(name);) {
    std::span<char> text;
    if (std::string_view(name.data(), name.size()) != kMember) continue;
    if (!cursor.string_after_colon(text) || text.size() < kShortest) continue;
    const std::size_t place = keys.size();
    keys.push_back(copy_of(text));
    char* const first = text.data() - 1;  // the quotes go too
    char* const last = text.data() + text.size() + 1;
    std::fill(first, last, ' ');
    std::to_chars(first, last, place);
  }
  return keys;
}

crypto::SecretBytes decode_key(std::span<const std::uint8_t> text, const crypto::SuiteInfo& suite) {
  const std::string want = std::string(suite.name) + " takes " + std::to_string(suite.keymat()) +
                           " bytes of key and salt, as " + std::to_string(2 * suite.keymat()) +
                           " hex digits or in base64";
  const char* chars = reinterpret_cast<const char*>(text.data());
  std::size_t length = text.size();
  const bool prefixed = length >= 2 && chars[0] == '0' && (chars[1] == 'x' || chars[1] == 'X');
  if (prefixed) {
    chars += 2;
    length -= 2;
  }
  crypto::SecretBytes key(suite.keymat());
  std::size_t got = 0;
  // No base64 text of this many bytes has as many characters as the hex one.
  const bool good = prefixed || length == 2 * suite.keymat()
                        ? sodium_hex2bin(key.bytes().data(), key.size(), chars, length, nullptr,
                                         &got, nullptr) == 0
                        : sodium_base642bin(key.bytes().data(), key.size(), chars, length, nullptr,
                                            &got, nullptr, sodium_base64_VARIANT_ORIGINAL) == 0;
  if (!good || got != suite.keymat()) throw std::invalid_argument("key: " + want);
  return key;
}

}  // namespace espalier::tools
