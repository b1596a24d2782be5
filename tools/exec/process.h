// A process that is held in a trapped system call: its memory and its descriptors.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ifaces/unique_fd.h"

namespace espalier::tools {

class Process {
 public:
  explicit Process(pid_t thread) noexcept : thread_(thread) {}

  // False if not all of it can be read or written. The process may change its memory meanwhile:
  // what was read is input like any other.
  [[nodiscard]] bool read(std::uint64_t address, std::span<std::uint8_t> to) const noexcept;
  [[nodiscard]] bool write(std::uint64_t address,
                           std::span<const std::uint8_t> from) const noexcept;
  template <class T>
  [[nodiscard]] std::optional<T> read(std::uint64_t address) const noexcept {
    T value{};
    if (!read(address, {reinterpret_cast<std::uint8_t*>(&value), sizeof value}))
      return std::nullopt;
    return value;
  }
  template <class T>
  [[nodiscard]] bool write(std::uint64_t address, const T& value) const noexcept {
    return write(address, {reinterpret_cast<const std::uint8_t*>(&value), sizeof value});
  }

  // The thread group: what getpid() says there.
  [[nodiscard]] pid_t pid() const;
  // A copy of its descriptor; empty if it has none of that number.
  [[nodiscard]] ifaces::UniqueFd descriptor(int number) const;
  [[nodiscard]] bool has_descriptor(int number) const;
  // Is it in this process's network namespace?
  [[nodiscard]] bool shares_network() const { return same_namespace("net"); }
  // Would the kernel let it write to NETLINK_XFRM, or has it all that we have ourselves? What it
  // asks for is done with our rights.
  [[nodiscard]] bool may_configure() const;

 private:
  [[nodiscard]] bool same_namespace(const char* kind) const;
  [[nodiscard]] bool is_as_we_are() const;

  pid_t thread_;
};

// Has this process the capability (CAP_…), in its user namespace?
[[nodiscard]] bool has_capability(int capability);

}  // namespace espalier::tools
