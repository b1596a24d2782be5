// The lines of a configuration file: sections and settings, before anybody asks what they mean.
#pragma once

#include <filesystem>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace espalier::tools {

struct Setting {
  std::string name;  // as written
  std::string value;
  unsigned line = 0;
};

struct Section {
  std::string name;  // of the conn; empty: the global options
  unsigned line = 0;
  std::vector<Setting> settings;
  std::vector<Setting> ignored;  // options of IKE alone
};

// An option that a section may have, for Boost's options_description.
struct OptionName {
  std::string_view name;
  std::string_view help;
};

// libreswan's form is read as well: `conn NAME` for [conn NAME], a section %default whose settings
// hold where a conn has none of its own, `config setup`, which is left out, and the options of IKE.
//
// Section 0 holds the global options. Throws ConfigError: a line that is neither NAME = VALUE nor a
// section, an unknown option, a second conn of one name.
[[nodiscard]] std::vector<Section> read_sections(std::string_view text,
                                                 const std::filesystem::path& file,
                                                 std::span<const OptionName> global_options,
                                                 std::span<const OptionName> conn_options);

// A whole file of at most `limit` bytes. Throws ConfigError.
[[nodiscard]] std::string read_text_file(const std::filesystem::path& file, std::size_t limit);

// Throws ConfigError "FILE:LINE: text".
[[noreturn]] void refuse(const std::filesystem::path& file, unsigned line, const std::string& text);

// For messages: in quotes, cut where it is long, nothing but printable ASCII.
[[nodiscard]] std::string in_quotes(std::string_view text);

// The word of `known` that `word` was probably meant to be; empty if none is near.
[[nodiscard]] std::string_view nearest(std::string_view word,
                                       std::span<const std::string_view> known);

}  // namespace espalier::tools
