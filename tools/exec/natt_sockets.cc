#include "tools/exec/natt_sockets.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "tools/exec/process.h"
#include "tools/exec/relay.h"

namespace espalier::tools {
namespace {

constexpr std::chrono::milliseconds kFirstPause{20}, kLastPause{30'000}, kLookForDaemon{100};

std::uint64_t cookie_of(const ifaces::UniqueFd& socket) noexcept {
  std::uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (!socket || ::getsockopt(socket.get(), SOL_SOCKET, SO_COOKIE, &cookie, &length) != 0) return 0;
  return cookie;
}

}  // namespace

int NattSockets::tell(pid_t process, int socket) {
  front::Message message = front_message(front::kNatt, static_cast<std::uint32_t>(process));
  ifaces::UniqueFd link = converse(daemon_, message, socket);
  if (!link) return ECONNREFUSED;
  if (message.error == 0) link_ = std::move(link);
  return message.error;
}

int NattSockets::hand_over(pid_t process, int number, const ifaces::UniqueFd& socket) {
  const int error = tell(process, socket.get());
  if (error != 0 && error != EBUSY) return error;
  const std::uint64_t cookie = cookie_of(socket);
  std::erase_if(known_, [cookie](const Known& k) { return k.cookie == cookie; });
  note(known_.emplace_back(Known{process, number, cookie, false}), error);
  return 0;
}

void NattSockets::note(Known& known, int error) noexcept {
  known.is_given = error == 0;
  if (error == 0 || error == ECONNREFUSED) {
    known.pause = {};
    known.next = {};
    return;
  }
  known.pause = std::clamp(2 * known.pause, kFirstPause, kLastPause);
  known.next = Clock::now() + known.pause;
}

void NattSockets::lose_daemon() noexcept {
  link_.reset(-1);
  for (Known& known : known_) note(known, ECONNREFUSED);
}

std::optional<std::chrono::milliseconds> NattSockets::next_try() const noexcept {
  std::optional<std::chrono::milliseconds> wait;
  for (const Known& known : known_) {
    if (known.is_given) continue;
    const auto left = known.next == Clock::time_point{}
                          ? kLookForDaemon
                          : std::chrono::ceil<std::chrono::milliseconds>(known.next - Clock::now());
    wait = std::clamp(left, std::chrono::milliseconds{0}, wait.value_or(kLastPause));
  }
  return wait;
}

bool NattSockets::has(const ifaces::UniqueFd& socket) const noexcept {
  const std::uint64_t cookie = cookie_of(socket);
  return std::any_of(known_.begin(), known_.end(),
                     [cookie](const Known& k) { return k.cookie == cookie; });
}

bool NattSockets::may_share(const ifaces::Endpoint& local) const {
  front::Message message = front_message(front::kBind, 0);
  sockaddr_storage name{};
  static_cast<void>(local.to(name));
  std::copy_n(reinterpret_cast<const std::uint8_t*>(&name), message.name.size(),
              message.name.begin());
  return converse(daemon_, message, -1) && message.error == 0;
}

void NattSockets::look_for_daemon() {
  for (auto known = known_.begin(); known != known_.end();) {
    if (known->is_given || Clock::now() < known->next) {
      ++known;
      continue;
    }
    const ifaces::UniqueFd socket = Process(known->process).descriptor(known->number);
    if (cookie_of(socket) != known->cookie) {
      known = known_.erase(known);
      continue;
    }
    const int error = tell(known->process, socket.get());
    note(*known, error);
    if (error == ECONNREFUSED) return;
    ++known;
  }
}

}  // namespace espalier::tools
