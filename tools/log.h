// The log: one line an event, on one descriptor. "LEVEL message"; the time in front only on a
// terminal, because the journal keeps its own.
//
// Thread safety: any thread; a line is one write. Never give it key material.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace espalier::tools {

enum class LogLevel : std::uint8_t { error, warning, info, debug };

[[nodiscard]] std::string_view name(LogLevel level) noexcept;
[[nodiscard]] std::optional<LogLevel> parse_log_level(std::string_view text) noexcept;

// What arrived from a file or a socket and goes to a terminal or a log: control characters become
// '?', so that nobody draws lines or colours that are not ours.
[[nodiscard]] std::string printable(std::string_view text);

class Log {
 public:
  explicit Log(int fd, LogLevel level = LogLevel::info);

  void set_level(LogLevel level) noexcept { level_ = level; }
  [[nodiscard]] LogLevel level() const noexcept { return level_; }

  void error(std::string_view text) const { write(LogLevel::error, text); }
  void warning(std::string_view text) const { write(LogLevel::warning, text); }
  void info(std::string_view text) const { write(LogLevel::info, text); }
  void debug(std::string_view text) const { write(LogLevel::debug, text); }

 private:
  void write(LogLevel level, std::string_view text) const;

  int fd_;
  bool terminal_;
  LogLevel level_;
};

}  // namespace espalier::tools
