// Holds for espalierd what outlives it (tools/keep.h) and gives it to the next one, as long as the
// command runs: memory with states and policies, and queues that keep its devices and their routes
// there, so that nothing leaves in the clear meanwhile. Looks at none of it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "ifaces/unique_fd.h"
#include "tools/exec/front.h"

namespace espalier::tools {

class Keeper {
 public:
  Keeper(std::filesystem::path daemon, std::uint32_t pid) : path_(std::move(daemon)), pid_(pid) {}

  [[nodiscard]] int fd() const noexcept { return daemon_.get(); }  // -1: away
  // Gives the daemon what is held, and waits until it has taken it. False: it is not there.
  bool connect();
  // To be called when fd() is readable.
  void serve();

 private:
  // False: not a word of the daemon's.
  [[nodiscard]] bool take(std::span<const char> bytes, std::vector<ifaces::UniqueFd> descriptors);
  [[nodiscard]] bool read_one(int flags);

  std::filesystem::path path_;
  std::uint32_t pid_;
  ifaces::UniqueFd daemon_, memory_;
  std::map<std::string, ifaces::UniqueFd> queues_, old_;  // old_: of the daemon before
  std::uint32_t awaited_ = 0;                             // kHold messages; then old_ goes
  bool answered_ = false;
};

}  // namespace espalier::tools
