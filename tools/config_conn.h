// One section of the configuration file becomes one Conn (or the Globals), and what contradicts
// itself, within a section or between them, is refused.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/config.h"
#include "tools/config_text.h"

namespace espalier::tools {

[[nodiscard]] std::span<const OptionName> global_options();
[[nodiscard]] std::span<const OptionName> conn_options();

// A Conn, and where its options stand.
struct Draft {
  Conn conn;
  bool ignore = false;  // auto=ignore
  unsigned line = 0;    // of the section
  std::map<std::string, unsigned, std::less<>> lines;

  [[nodiscard]] bool has(std::string_view option) const { return lines.contains(option); }
  // The line of an option, or of the section if the option is not there.
  [[nodiscard]] unsigned line_of(std::string_view option) const;
};

// Both throw ConfigError. `file` is absolute or as the user wrote it; relative key files start at
// `folder`.
[[nodiscard]] Globals read_globals(const Section& section, const std::filesystem::path& file);
[[nodiscard]] Draft read_conn(const Section& section, const std::filesystem::path& file,
                              const std::filesystem::path& folder);

// What one conn must have, and must not have together; read_conn() calls it.
void check_conn(const Draft& draft, const std::filesystem::path& file);
// What two conns of one file must not both claim. Throws ConfigError.
void check_together(const std::vector<Draft>& drafts, const Globals& globals,
                    const std::filesystem::path& file);
// Puts the clients of a conn with a pool in its place: one for each ADDRESS.keys in its folder.
// Throws ConfigError.
[[nodiscard]] std::vector<Draft> with_clients(std::vector<Draft> drafts);
// The same for what is in their key files.
void check_keys(const std::vector<Draft>& drafts, const std::filesystem::path& file);

}  // namespace espalier::tools
