// One question to a running daemon.
#pragma once

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace espalier::tools {

inline const std::filesystem::path kDefaultControl = "/run/espalier/control.sock";

// what() is one line that says what to do.
class ControlError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Sends `request` ("version" is added) and waits for its reply. Throws ControlError if no daemon
// answers at `path`, if it takes longer than `patience`, or if the reply says that it failed.
[[nodiscard]] nlohmann::json ask(const std::filesystem::path& path, nlohmann::json request,
                                 std::chrono::milliseconds patience = std::chrono::seconds(10));

}  // namespace espalier::tools
