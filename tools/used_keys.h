// Which keys the outbound SAs of both sockets have had, in a file: a daemon that starts again
// must not number packets from 1 under one of them (RFC 4106 §2). Of a key half a SHA-256 is kept.
//
// Thread safety: the control thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "ifaces/unique_fd.h"

namespace espalier::tools {

class UsedKeys {
 public:
  // The last ones; those before are forgotten at a start, or when there are as many of them. 33
  // bytes each.
  static constexpr std::size_t kMost = std::size_t{1} << 20;

  explicit UsedKeys(std::filesystem::path file) : file_(std::move(file)) {}

  using Name = std::string;
  [[nodiscard]] static Name name_of(std::span<const std::uint8_t> keymat);

  // Did an SA of an earlier daemon have it, and none of this one since? Throws std::runtime_error
  // if the file cannot be read, with what to do.
  [[nodiscard]] bool is_from_before(const Name& name);
  // Before an SA has them: on disk when it returns; or later, but not lost if only this process
  // ends. Throws std::runtime_error.
  enum class Sync : std::uint8_t { later, now };
  void add(const std::vector<Name>& names, Sync sync = Sync::now);
  // An SA has them now: from here on the data plane knows how far they are used.
  void in_use(const std::vector<Name>& names) noexcept;

 private:
  void open();
  // What counts of the file, and how long that is in all.
  [[nodiscard]] std::string read_last(std::size_t& size) const;
  void cut(std::size_t size) const;
  void replace(const std::string& text);
  [[noreturn]] void fail(const char* what) const;

  std::filesystem::path file_;
  ifaces::UniqueFd fd_;  // not open before it is needed
  std::size_t lines_ = 0;
  std::unordered_set<Name> from_before_;
};

}  // namespace espalier::tools
