#include "tools/exec/process.h"

#include <linux/capability.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <string_view>

namespace espalier::tools {
namespace {

constexpr const char* kEffective = "CapEff:";

std::string proc(pid_t thread, const std::string& what) {
  return "/proc/" + std::to_string(thread) + "/" + what;
}

// Of /proc/WHO/status; empty if it has none of that name. The kernel escapes line ends in the name
// that a process has given itself.
std::string field(const std::string& who, std::string_view name) {
  std::ifstream status("/proc/" + who + "/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name)) return line.substr(name.size());
  return {};
}
std::string field(pid_t thread, std::string_view name) {
  return field(std::to_string(thread), name);
}

bool capable(const std::string& capabilities, int which) {
  constexpr int kHex = 16;
  return !capabilities.empty() && (std::stoull(capabilities, nullptr, kHex) >> which & 1) != 0;
}

iovec remote(std::uint64_t address, std::size_t size) noexcept {
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address in the other process
  return {reinterpret_cast<void*>(address), size};
}

}  // namespace

bool Process::read(std::uint64_t address, std::span<std::uint8_t> to) const noexcept {
  const iovec local{to.data(), to.size()};
  const iovec there = remote(address, to.size());
  return ::process_vm_readv(thread_, &local, 1, &there, 1, 0) == static_cast<ssize_t>(to.size());
}

bool Process::write(std::uint64_t address, std::span<const std::uint8_t> from) const noexcept {
  // iovec has no const form.
  const iovec local{const_cast<std::uint8_t*>(from.data()), from.size()};
  const iovec there = remote(address, from.size());
  return ::process_vm_writev(thread_, &local, 1, &there, 1, 0) == static_cast<ssize_t>(from.size());
}

pid_t Process::pid() const {
  const std::string text = field(thread_, "Tgid:");
  return text.empty() ? thread_ : static_cast<pid_t>(std::stol(text));
}

bool Process::may_configure() const {
  return (capable(field(thread_, kEffective), CAP_NET_ADMIN) || is_as_we_are()) &&
         same_namespace("net") && same_namespace("user");
}

// espalierd decides for a user without rights of his own: by the group that it is told to let in.
bool Process::is_as_we_are() const {
  if (has_capability(CAP_NET_ADMIN)) return false;
  for (const char* const name : {"Uid:", "Gid:", "Groups:"})
    if (field(thread_, name) != field("self", name)) return false;
  return true;
}

bool has_capability(int capability) {
  return capable(field("self", kEffective), capability);
}

ifaces::UniqueFd Process::descriptor(int number) const {
  const ifaces::UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid(), 0)));
  if (!process) return {};
  return ifaces::UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0)));
}

bool Process::has_descriptor(int number) const {
  return ::access(proc(thread_, "fd/" + std::to_string(number)).c_str(), F_OK) == 0;
}

bool Process::same_namespace(const char* kind) const {
  struct stat theirs {};
  struct stat ours {};
  const std::string name = std::string("ns/") + kind;
  return ::stat(proc(thread_, name).c_str(), &theirs) == 0 &&
         ::stat(("/proc/self/" + name).c_str(), &ours) == 0 && theirs.st_ino == ours.st_ino;
}

}  // namespace espalier::tools
