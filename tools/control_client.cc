#include "tools/control_client.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <system_error>

#include "ifaces/unique_fd.h"
#include "tools/control_server.h"
#include "tools/log.h"

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

// A daemon of ours with 100,000 SAs stays below this; anything longer is none of ours.
constexpr std::size_t kMaxReply = std::size_t{256} * 1024 * 1024;

[[noreturn]] void fail(const std::filesystem::path& path, const std::string& what) {
  throw ControlError(path.string() + ": " + what);
}

std::string reason() {
  return std::generic_category().message(errno);
}

UniqueFd connect_to(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.native().size() >= sizeof address.sun_path) fail(path, "too long for a socket's path");
  std::memcpy(address.sun_path, path.c_str(), path.native().size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) fail(path, "socket: " + reason());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return fd;
  if (errno == ENOENT || errno == ECONNREFUSED)
    fail(path, "no daemon answers here; start espalierd, or name its socket with --control");
  if (errno == EACCES || errno == EPERM) fail(path, "not permitted; ask as root");
  fail(path, "connect: " + reason());
}

void wait_for(const std::filesystem::path& path, int fd, short what, Clock::time_point until) {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) fail(path, "the daemon does not answer");
    pollfd entry{fd, what, 0};
    const int ready = ::poll(&entry, 1, static_cast<int>(left));
    if (ready > 0) return;
    if (ready < 0 && errno != EINTR) fail(path, "poll: " + reason());
  }
}

void send_line(const std::filesystem::path& path, int fd, std::string_view line,
               Clock::time_point until) {
  while (!line.empty()) {
    wait_for(path, fd, POLLOUT, until);
    const ssize_t sent = ::send(fd, line.data(), line.size(), MSG_NOSIGNAL);
    if (sent >= 0) line.remove_prefix(static_cast<std::size_t>(sent));
    if (sent < 0 && errno == EPIPE) return;  // refused before its end: the reply says why
    if (sent < 0 && errno != EAGAIN && errno != EINTR) fail(path, "send: " + reason());
  }
}

std::string receive_line(const std::filesystem::path& path, int fd, Clock::time_point until) {
  std::string text;
  std::array<char, std::size_t{64} * 1024> buffer{};
  for (;;) {
    wait_for(path, fd, POLLIN, until);
    const ssize_t got = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got < 0) fail(path, "recv: " + reason());
    if (got == 0) fail(path, "the daemon hung up");
    const std::string_view part(buffer.data(), static_cast<std::size_t>(got));
    const std::size_t end = part.find('\n');
    text.append(part.substr(0, end));
    if (end != std::string_view::npos) return text;
    if (text.size() > kMaxReply) fail(path, "the reply has no end");
  }
}

}  // namespace

json ask(const std::filesystem::path& path, json request, std::chrono::milliseconds patience) {
  const Clock::time_point until = Clock::now() + patience;
  const UniqueFd fd = connect_to(path);
  request["version"] = kControlVersion;
  send_line(path, fd.get(), request.dump() + "\n", until);
  json reply = json::parse(receive_line(path, fd.get(), until), nullptr, false);
  if (!reply.is_object() || !reply.contains("ok") || !reply["ok"].is_boolean())
    fail(path, "this is no espalierd that answers here");
  if (!reply["ok"].get<bool>()) {
    const auto error = reply.find("error");
    fail(path, error != reply.end() && error->is_string() ? printable(error->get<std::string>())
                                                          : "refused");
  }
  return reply;
}

}  // namespace espalier::tools
