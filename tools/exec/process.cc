#include "tools/exec/process.h"

#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace espalier::tools {
namespace {

std::string proc(pid_t thread, const std::string& what) {
  return "/proc/" + std::to_string(thread) + "/" + what;
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
  std::ifstream status(proc(thread_, "status"));
  for (std::string word; status >> word;) {
    pid_t group = 0;
    if (word == "Tgid:" && status >> group) return group;
  }
  return thread_;
}

ifaces::UniqueFd Process::descriptor(int number) const {
  const ifaces::UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid(), 0)));
  if (!process) return {};
  return ifaces::UniqueFd(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0)));
}

bool Process::has_descriptor(int number) const {
  return ::access(proc(thread_, "fd/" + std::to_string(number)).c_str(), F_OK) == 0;
}

bool Process::shares_network() const {
  struct stat theirs {};
  struct stat ours {};
  return ::stat(proc(thread_, "ns/net").c_str(), &theirs) == 0 &&
         ::stat("/proc/self/ns/net", &ours) == 0 && theirs.st_ino == ours.st_ino;
}

}  // namespace espalier::tools
