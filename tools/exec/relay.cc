#include "tools/exec/relay.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <random>
#include <span>
#include <system_error>
#include <utility>

#include "tools/descriptors.h"

namespace espalier::tools {
namespace {

constexpr int kAnswerMs = std::chrono::milliseconds(front::kPatience).count();

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// The name of our end is what the command's recvfrom() reports as the sender. Twelve bytes, read as
// a sockaddr_nl: nl_pid, which must be 0 (the kernel), are the bytes 4 to 7.
void bind_as_kernel(int fd) {
  std::random_device random;
  for (int attempt = 0; attempt < 16; ++attempt) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    const std::uint32_t unique = random();
    address.sun_path[1] = static_cast<char>(random());
    std::memcpy(address.sun_path + 6, &unique, sizeof unique);
    constexpr socklen_t kLength = sizeof(sockaddr_nl);
    if (::bind(fd, reinterpret_cast<const sockaddr*>(&address), kLength) == 0) return;
    if (errno != EADDRINUSE) break;
  }
  fail("bind");
}

// Sends `message`, with a descriptor unless it is -1, and waits for the answer; what comes before
// it goes to `other`. False: no daemon.
bool converse(int fd, front::Message& message, int descriptor,
              const std::function<void(std::span<const std::uint8_t>)>& other) {
  const std::span sent(reinterpret_cast<const char*>(&message), sizeof message);
  if (send_with(fd, sent, descriptor, MSG_DONTWAIT) < 0) return false;
  const std::uint16_t type = message.header.nlmsg_type;
  crypto::SecretBytes memory(front::kMaxMessage);  // keys pass through
  const std::span<std::uint8_t> bytes = memory.bytes();
  for (;;) {
    pollfd ready{fd, POLLIN, 0};
    if (::poll(&ready, 1, kAnswerMs) != 1) return false;
    const ssize_t got = ::recv(fd, bytes.data(), bytes.size(), MSG_DONTWAIT);
    nlmsghdr answer{};
    if (got < ssize_t{sizeof answer}) return false;
    std::memcpy(&answer, bytes.data(), sizeof answer);
    if (answer.nlmsg_type != type) {
      other(bytes.first(static_cast<std::size_t>(got)));
      continue;
    }
    if (got != ssize_t{sizeof message}) return false;
    std::memcpy(&message, bytes.data(), sizeof message);
    return true;
  }
}

}  // namespace

Relay::Relay(std::filesystem::path daemon, std::uint32_t pid, std::uint32_t portid)
    : path_(std::move(daemon)), state_(front_message(front::kState, pid)) {
  state_.portid = portid;
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()) != 0) fail("socketpair");
  command_ = ifaces::UniqueFd(pair[0]);
  command_end_ = ifaces::UniqueFd(pair[1]);
  bind_as_kernel(command_.get());
  socklen_t length = sizeof cookie_;
  if (::getsockopt(command_end_.get(), SOL_SOCKET, SO_COOKIE, &cookie_, &length) != 0)
    fail("SO_COOKIE");
  connect();
}

bool Relay::connect() {
  if (daemon_) return true;
  daemon_ = front::dial(path_);
  if (daemon_) tell_state();
  return bool{daemon_};
}

void Relay::tell_state() {
  front::Message message = state_;
  if (!daemon_) return;
  const auto pass_on = [this](std::span<const std::uint8_t> bytes) { forward(bytes); };
  if (!converse(daemon_.get(), message, -1, pass_on) || message.error != 0) lose_daemon();
}

void Relay::set_name(std::uint32_t portid, std::uint32_t groups) {
  if (portid != 0) state_.portid = portid;
  state_.groups |= groups;
  tell_state();
}

void Relay::set_option(int option, int value) {
  const auto flag = [&](std::uint32_t bit) {
    state_.flags = value != 0 ? state_.flags | bit : state_.flags & ~bit;
  };
  switch (option) {
    case NETLINK_ADD_MEMBERSHIP:
    case NETLINK_DROP_MEMBERSHIP: {
      if (value < 1 || value > 32) return;
      const std::uint32_t bit = 1U << (value - 1);
      state_.groups = option == NETLINK_ADD_MEMBERSHIP ? state_.groups | bit : state_.groups & ~bit;
      break;
    }
    case NETLINK_EXT_ACK:
      flag(front::kExtAck);
      break;
    case NETLINK_CAP_ACK:
      flag(front::kCapAck);
      break;
    default:
      return;
  }
  tell_state();
}

bool Relay::from_command() {
  crypto::SecretBytes memory(front::kMaxMessage);  // keys pass through
  const std::span<std::uint8_t> bytes = memory.bytes();
  const ssize_t got = ::recv(command_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;
  if (got < ssize_t{sizeof(nlmsghdr)}) return true;
  nlmsghdr request{};
  std::memcpy(&request, bytes.data(), sizeof request);
  if (request.nlmsg_type < NLMSG_MIN_TYPE) return true;  // only we may speak those
  if (!connect() || ::send(daemon_.get(), bytes.data(), static_cast<std::size_t>(got),
                           MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    // Gone, or so far behind that waiting for it would hold every other call.
    lose_daemon();
    refuse(request);
    return true;
  }
  pending_ = request;
  return true;
}

void Relay::from_daemon() {
  crypto::SecretBytes memory(front::kMaxMessage);  // keys pass through
  const std::span<std::uint8_t> bytes = memory.bytes();
  const ssize_t got = ::recv(daemon_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got < ssize_t{sizeof(nlmsghdr)}) return lose_daemon();
  forward(bytes.first(static_cast<std::size_t>(got)));
}

void Relay::forward(std::span<const std::uint8_t> bytes) {
  nlmsghdr answer{};
  std::memcpy(&answer, bytes.data(), sizeof answer);
  if (answer.nlmsg_type < NLMSG_MIN_TYPE && answer.nlmsg_type != NLMSG_ERROR &&
      answer.nlmsg_type != NLMSG_DONE)
    return;
  if (pending_ && answer.nlmsg_seq == pending_->nlmsg_seq &&
      ((answer.nlmsg_flags & NLM_F_MULTI) == 0 || answer.nlmsg_type == NLMSG_DONE))
    pending_.reset();
  deliver(bytes, answer.nlmsg_pid == state_.portid);
}

// A command that does not read loses events, as with the kernel, but no answers: a listing would
// stop without its end.
void Relay::deliver(std::span<const std::uint8_t> bytes, bool is_answer) {
  if (held_.empty() &&
      ::send(command_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
    return;
  if (is_answer && (!held_.empty() || errno == EAGAIN || errno == ENOBUFS))
    held_.emplace_back(bytes);
}

void Relay::flush() {
  for (; !held_.empty(); held_.pop_front()) {
    const std::span<const std::uint8_t> bytes = std::as_const(held_.front()).bytes();
    if (::send(command_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0 &&
        (errno == EAGAIN || errno == ENOBUFS))
      return;
  }
}

void Relay::lose_daemon() {
  daemon_.reset(-1);
  if (pending_) refuse(*pending_);
  pending_.reset();
}

void Relay::refuse(const nlmsghdr& request) {
  struct {
    nlmsghdr header;
    nlmsgerr error;
  } answer{};
  answer.header.nlmsg_len = sizeof answer;
  answer.header.nlmsg_type = NLMSG_ERROR;
  answer.header.nlmsg_seq = request.nlmsg_seq;
  answer.header.nlmsg_pid = state_.portid;
  answer.error.error = -ECONNREFUSED;
  answer.error.msg = request;
  deliver({reinterpret_cast<const std::uint8_t*>(&answer), sizeof answer}, true);
}

front::Message front_message(std::uint16_t type, std::uint32_t pid) {
  front::Message message{};
  message.header.nlmsg_len = sizeof message;
  message.header.nlmsg_type = type;
  message.version = front::kVersion;
  message.pid = pid;
  return message;
}

ifaces::UniqueFd converse(const std::filesystem::path& daemon, front::Message& message,
                          int descriptor) {
  ifaces::UniqueFd fd = front::dial(daemon);
  if (fd && !converse(fd.get(), message, descriptor, [](auto) {})) fd.reset(-1);
  return fd;
}

}  // namespace espalier::tools
