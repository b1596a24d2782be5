#include "tools/exec/keeper.h"

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "tools/descriptors.h"

namespace espalier::tools {
namespace {

constexpr int kAnswerMs = std::chrono::milliseconds(front::kPatience).count();

}  // namespace

bool Keeper::connect() {
  if (daemon_) return true;
  daemon_ = front::dial(path_);
  if (!daemon_) return false;
  front::Message message{};
  message.header.nlmsg_len = sizeof message;
  message.header.nlmsg_type = front::kKeep;
  message.version = front::kVersion;
  message.pid = pid_;
  const std::span bytes(reinterpret_cast<const char*>(&message), sizeof message);
  answered_ = send_with(daemon_.get(), bytes, memory_.get()) < 0;
  for (old_.merge(queues_); daemon_ && !answered_;) {
    pollfd ready{daemon_.get(), POLLIN, 0};
    if (::poll(&ready, 1, kAnswerMs) != 1 || !read_one(0)) daemon_.reset(-1);
  }
  return bool{daemon_};
}

void Keeper::serve() {
  if (!read_one(MSG_DONTWAIT)) daemon_.reset(-1);
}

bool Keeper::read_one(int flags) {
  std::array<char, sizeof(front::Message)> bytes{};
  std::vector<ifaces::UniqueFd> descriptors;
  const ssize_t got = receive_with(daemon_.get(), bytes, descriptors, flags);
  if (got < 0 && errno == EAGAIN) return true;
  return got > 0 &&
         take(std::span(bytes).first(static_cast<std::size_t>(got)), std::move(descriptors));
}

bool Keeper::take(std::span<const char> bytes, std::vector<ifaces::UniqueFd> descriptors) {
  front::Message message{};
  front::Hold hold{};
  ifaces::UniqueFd descriptor;
  if (!descriptors.empty()) descriptor = std::move(descriptors.front());
  if (bytes.size() == sizeof message) {
    std::memcpy(&message, bytes.data(), sizeof message);
    if (message.header.nlmsg_type != front::kKeep) return false;
    if (message.error == EPERM) return answered_ = true;  // to us it shows no keys
    if (message.error != 0) return false;
    if (descriptor) memory_ = std::move(descriptor);
    if (!answered_) awaited_ = message.groups;
    answered_ = true;
    if (awaited_ == 0) old_.clear();
    return true;
  }
  if (bytes.size() != sizeof hold) return false;
  std::memcpy(&hold, bytes.data(), sizeof hold);
  const std::string device(hold.device.data(), ::strnlen(hold.device.data(), hold.device.size()));
  if (descriptor)
    queues_.insert_or_assign(device, std::move(descriptor));
  else
    queues_.erase(device);
  if (awaited_ != 0 && --awaited_ == 0) old_.clear();
  return true;
}

}  // namespace espalier::tools
