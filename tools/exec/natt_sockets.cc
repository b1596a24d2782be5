#include "tools/exec/natt_sockets.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "tools/exec/process.h"
#include "tools/exec/relay.h"

namespace espalier::tools {
namespace {

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
  if (const int error = tell(process, socket.get()); error != 0) return error;
  const std::uint64_t cookie = cookie_of(socket);
  std::erase_if(known_, [cookie](const Known& k) { return k.cookie == cookie; });
  known_.push_back({process, number, cookie});
  return 0;
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
    const ifaces::UniqueFd socket = Process(known->process).descriptor(known->number);
    if (cookie_of(socket) != known->cookie) {
      known = known_.erase(known);
      continue;
    }
    if (tell(known->process, socket.get()) == ECONNREFUSED) return;
    ++known;
  }
}

}  // namespace espalier::tools
