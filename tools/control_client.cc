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

[[noreturn]] void fail_at(const std::filesystem::path& path, const std::string& what) {
  throw ControlError(path.string() + ": " + what);
}

std::string reason() {
  return std::generic_category().message(errno);
}

UniqueFd connect_to(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.native().size() >= sizeof address.sun_path)
    fail_at(path, "too long for a socket's path");
  std::memcpy(address.sun_path, path.c_str(), path.native().size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) fail_at(path, "socket: " + reason());
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0)
    return fd;
  if (errno == ENOENT || errno == ECONNREFUSED)
    fail_at(path, "no daemon answers here; start espalierd, or name its socket with --control");
  if (errno == EACCES || errno == EPERM) fail_at(path, "not permitted; ask as root");
  fail_at(path, "connect: " + reason());
}

}  // namespace

SecretText render(json operation, std::span<const crypto::SecretBytes> keys) {
  const auto key = operation.find("key");
  const bool of_sa = operation.value("op", "").starts_with("sa-");  // a device's key is none
  if (key == operation.end() || !of_sa || !key->is_number_unsigned()) {
    const std::string text = operation.dump();
    return {text.begin(), text.end()};
  }
  const auto place_of_key = key->get<std::size_t>();
  if (place_of_key >= keys.size())
    throw ControlError("key: write it as text, of hex digits or in base64");
  const auto secret = keys[place_of_key].bytes();
  *key = "";
  // Inside a text the quotes would have a backslash.
  constexpr std::string_view kEmpty = "\"key\":\"\"";
  const std::string text = operation.dump();
  const std::size_t place = text.find(kEmpty) + kEmpty.size() - 1;
  SecretText out;
  out.reserve(text.size() + secret.size());
  out.append(text, 0, place);
  out.append(reinterpret_cast<const char*>(secret.data()), secret.size());
  out.append(text, place);
  return out;
}

ControlConnection::ControlConnection(std::filesystem::path path)
    : path_(std::move(path)), fd_(connect_to(path_)) {}

void ControlConnection::fail(const std::string& what) const {
  fail_at(path_, what);
}

void ControlConnection::wait(short what, std::optional<Clock::time_point> until) const {
  for (;;) {
    int patience = -1;
    if (until) {
      const auto left = std::chrono::ceil<std::chrono::milliseconds>(*until - Clock::now()).count();
      if (left <= 0) fail("the daemon does not answer");
      patience = static_cast<int>(left);
    }
    pollfd entry{fd_.get(), what, 0};
    const int ready = ::poll(&entry, 1, patience);
    if (ready > 0) return;
    if (ready < 0 && errno != EINTR) fail("poll: " + reason());
  }
}

void ControlConnection::send_all(std::string_view text, Clock::time_point until) const {
  while (!text.empty()) {
    wait(POLLOUT, until);
    const ssize_t sent = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
    if (sent >= 0) text.remove_prefix(static_cast<std::size_t>(sent));
    if (sent < 0 && (errno == EPIPE || errno == ECONNRESET)) return;  // the reply says why
    if (sent < 0 && errno != EAGAIN && errno != EINTR) fail("send: " + reason());
  }
}

std::optional<std::string> ControlConnection::receive_line(std::optional<Clock::time_point> until) {
  std::array<char, std::size_t{64} * 1024> buffer{};
  for (std::size_t looked = 0;;) {
    const std::size_t end = received_.find('\n', looked);
    if (end != std::string::npos) {
      std::string line = received_.substr(0, end);
      received_.erase(0, end + 1);
      return line;
    }
    looked = received_.size();
    if (looked > kMaxReply) fail("the reply has no end");
    wait(POLLIN, until);
    const ssize_t got = ::recv(fd_.get(), buffer.data(), buffer.size(), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) continue;
    if (got < 0) fail("recv: " + reason());
    if (got == 0) return std::nullopt;
    received_.append(buffer.data(), static_cast<std::size_t>(got));
  }
}

json ControlConnection::ask(json request, std::span<const crypto::SecretBytes> keys,
                            std::chrono::milliseconds patience) {
  request["version"] = kControlVersion;
  return ask_line(render(std::move(request), keys), patience);
}

json ControlConnection::ask_line(std::string_view line, std::chrono::milliseconds patience) {
  const Clock::time_point until = Clock::now() + patience;
  send_all(line, until);
  send_all("\n", until);
  const auto answer = receive_line(until);
  if (!answer) fail("the daemon hung up");
  json reply = json::parse(*answer, nullptr, false);
  if (!reply.is_object() || !reply.contains("ok") || !reply["ok"].is_boolean())
    fail("this is no espalierd that answers here");
  if (reply["ok"].get<bool>()) return reply;
  const auto error = reply.find("error");
  const std::string why = error != reply.end() && error->is_string()
                              ? printable(error->get<std::string>())
                              : "the daemon refused, and did not say why";
  throw ControlRefused(why, std::move(reply));
}

std::optional<json> ControlConnection::next_event() {
  const auto line = receive_line(std::nullopt);
  if (!line) return std::nullopt;
  json event = json::parse(*line, nullptr, false);
  if (!event.is_object()) fail("this is no espalierd that answers here");
  return event;
}

json ask(const std::filesystem::path& path, json request, std::chrono::milliseconds patience) {
  return ControlConnection(path).ask(std::move(request), {}, patience);
}

void ask_pages(ControlConnection& daemon, const std::string& op, const std::string& member,
               const std::function<void(const json&)>& each) {
  json after = 0;
  do {
    const json reply = daemon.ask({{"op", op}, {"after", after}});
    const auto list = reply.find(member);
    if (list == reply.end() || !list->is_array()) return;
    for (const json& entry : *list) each(entry);
    after = reply.value("next", json());
  } while (after.is_number_unsigned());
}

}  // namespace espalier::tools
