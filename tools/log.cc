#include "tools/log.h"

#include <unistd.h>

#include <array>
#include <ctime>

namespace espalier::tools {
namespace {

constexpr std::array<std::string_view, 4> kNames = {"error", "warning", "info", "debug"};

std::string time_of_day() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  std::array<char, 16> text{};
  if (::localtime_r(&now, &local) == nullptr) return {};
  const std::size_t length = std::strftime(text.data(), text.size(), "%H:%M:%S ", &local);
  return {text.data(), length};
}

}  // namespace

std::string_view name(LogLevel level) noexcept {
  return kNames[static_cast<std::size_t>(level)];
}

std::optional<LogLevel> parse_log_level(std::string_view text) noexcept {
  for (std::size_t i = 0; i < kNames.size(); ++i)
    if (kNames[i] == text) return static_cast<LogLevel>(i);
  return std::nullopt;
}

std::string printable(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = '?';
  return out;
}

Log::Log(int fd, LogLevel level) : fd_(fd), terminal_(::isatty(fd) == 1), level_(level) {}

void Log::write(LogLevel level, std::string_view text) const {
  if (level > level_) return;
  std::string line = terminal_ ? time_of_day() : std::string();
  line.append(name(level)).append(" ").append(printable(text)).append("\n");
  // A log that cannot be written is no reason to stop forwarding packets.
  [[maybe_unused]] const ssize_t written = ::write(fd_, line.data(), line.size());
}

}  // namespace espalier::tools
