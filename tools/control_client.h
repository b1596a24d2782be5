// The other end of the control socket: questions to a running daemon, and its events.
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "crypto/secret.h"
#include "ifaces/unique_fd.h"
#include "tools/secret_text.h"

namespace espalier::tools {

inline const std::filesystem::path kDefaultControl = "/run/espalier/control.sock";
inline constexpr std::chrono::seconds kPatience{20};  // it may be busy with very many SAs

// what() is one line that says what to do.
class ControlError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The daemon's answer was no. `reply` is all of it.
class ControlRefused : public ControlError {
 public:
  ControlRefused(const std::string& what, nlohmann::json reply)
      : ControlError(what), reply_(std::move(reply)) {}
  [[nodiscard]] const nlohmann::json& reply() const noexcept { return reply_; }

 private:
  nlohmann::json reply_;
};

// Operations whose "key", where they have one, is the place of its text in `keys`: as one text with
// the keys in it, which only a SecretText may hold.
[[nodiscard]] SecretText render(nlohmann::json operation,
                                std::span<const crypto::SecretBytes> keys);

// One connection, for several questions. Throws ControlError, here and below.
class ControlConnection {
 public:
  explicit ControlConnection(std::filesystem::path path);

  // Sends `request` ("version" is added) and waits for its reply.
  nlohmann::json ask(nlohmann::json request, std::span<const crypto::SecretBytes> keys = {},
                     std::chrono::milliseconds patience = kPatience);
  // A whole line, version included, without its end.
  nlohmann::json ask_line(std::string_view line, std::chrono::milliseconds patience = kPatience);
  // The next event, after subscribe; waits for ever. Empty: the daemon is gone.
  [[nodiscard]] std::optional<nlohmann::json> next_event();

 private:
  [[noreturn]] void fail(const std::string& what) const;
  void wait(short what, std::optional<std::chrono::steady_clock::time_point> until) const;
  void send_all(std::string_view text, std::chrono::steady_clock::time_point until) const;
  [[nodiscard]] std::optional<std::string> receive_line(
      std::optional<std::chrono::steady_clock::time_point> until);

  std::filesystem::path path_;
  ifaces::UniqueFd fd_;
  std::string received_;
};

// One question on a connection of its own.
[[nodiscard]] nlohmann::json ask(const std::filesystem::path& path, nlohmann::json request,
                                 std::chrono::milliseconds patience = kPatience);

// Asks `op` page by page and hands on every entry of `member`.
void ask_pages(ControlConnection& daemon, const std::string& op, const std::string& member,
               const std::function<void(const nlohmann::json&)>& each);

}  // namespace espalier::tools
