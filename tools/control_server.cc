#include "tools/control_server.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>
#include <utility>

#include "tools/descriptors.h"
#include "tools/log.h"
#include "tools/request_keys.h"

namespace espalier::tools {
namespace {

using nlohmann::json;

constexpr int kRequestsPerTurn = 16;  // then the others, and the daemon's own work, have a turn
constexpr std::size_t kRead = 4096;   // at least, at a time

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

std::string line_of(const json& reply) {
  // `replace`: an error text may quote a path that is no UTF-8.
  return reply.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string refusal(std::string_view why, json members = json::object()) {
  members["version"] = kControlVersion;
  members["ok"] = false;
  members["error"] = why;
  return line_of(members);
}

std::string lost_line(std::uint64_t count) {
  return line_of({{"version", kControlVersion}, {"event", "lost"}, {"count", count}});
}

}  // namespace

ControlServer::ControlServer(const std::filesystem::path& path, std::optional<gid_t> group)
    : listener_(path, SOCK_STREAM, kMaxClients, "control", group) {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;  // the listener
  if (!epoll_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.fd(), &event) != 0)
    fail("epoll " + path.string());
}

void ControlServer::on(const std::string& op, Handler handler) {
  handlers_[op] = [handler = std::move(handler)](const ControlRequest& request) {
    return handler(request.body);
  };
}

void ControlServer::on_session(const std::string& op, SessionHandler handler) {
  handlers_[op] = std::move(handler);
}

void ControlServer::publish(json event) {
  event["version"] = kControlVersion;
  const std::string line = line_of(event);
  for (Client& client : listeners_) {
    if (client.out.size() - client.sent + line.size() > kMaxBacklog) {
      ++client.lost;
      continue;
    }
    if (client.lost != 0) client.out += lost_line(std::exchange(client.lost, 0));
    client.out.erase(0, std::exchange(client.sent, 0));
    client.out += line;
    // Who cannot be waited for is dropped at its next turn.
    static_cast<void>(wait_for_more(client));
  }
}

std::optional<std::chrono::steady_clock::time_point> ControlServer::deadline() const noexcept {
  if (clients_.empty()) return std::nullopt;
  return clients_.front().active + kIdle;
}

void ControlServer::serve() {
  std::array<epoll_event, kMaxClients + kMaxListeners + 1> events{};
  const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
  bool newcomers = false;
  for (int i = 0; i < count; ++i) {
    const void* const who = events[static_cast<std::size_t>(i)].data.ptr;
    if (who == nullptr) {
      newcomers = true;  // last: they may push out one that is still in `events`
      continue;
    }
    Client* const client = find(who);
    if (client != nullptr && !survives(*client)) drop(*client);
  }
  if (newcomers) accept_all();
  const auto now = std::chrono::steady_clock::now();
  while (!clients_.empty() && clients_.front().active + kIdle <= now) drop(clients_.front());
}

// Without memory for an answer a client is dropped.
bool ControlServer::survives(Client& client) noexcept {
  try {
    return advance(client);
  } catch (const std::exception&) {
    return false;
  }
}

void ControlServer::accept_all() {
  for (std::size_t i = 0; i < kMaxClients; ++i) {
    try {
      auto caller = listener_.accept();
      if (!caller) return;
      add_client(std::move(*caller));
    } catch (const std::bad_alloc&) {
      continue;  // hung up on
    }
  }
}

void ControlServer::add_client(UnixListener::Caller caller) {
  if (!caller.allowed) {
    const std::string text =
        refusal("only root, the daemon's own user and the group of its `group` option may ask");
    [[maybe_unused]] const ssize_t sent =
        ::send(caller.fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return;
  }
  if (clients_.size() >= kMaxClients) drop(clients_.front());
  clients_.emplace_back();
  clients_.back().fd = std::move(caller.fd);
  clients_.back().active = std::chrono::steady_clock::now();
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = &clients_.back();
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, clients_.back().fd.get(), &event) != 0)
    clients_.pop_back();
}

ControlServer::Client* ControlServer::find(const void* who) noexcept {
  for (Clients* list : {&clients_, &listeners_})
    for (Client& client : *list)
      if (&client == who) return &client;
  return nullptr;
}

void ControlServer::drop(const Client& client) noexcept {
  const auto same = [&client](const Client& c) { return &c == &client; };
  if (clients_.remove_if(same) == 0) listeners_.remove_if(same);
}

bool ControlServer::advance(Client& client) {
  for (int turn = 0; turn < kRequestsPerTurn; ++turn) {
    if (!client.out.empty()) {
      if (!write_some(client)) return false;
      if (!client.out.empty()) break;
    }
    if (client.in.has_line() || client.in.size() > kMaxRequest) {
      answer_next(client);
      continue;
    }
    if (client.closing) return false;
    const std::size_t before = client.in.size();
    if (!read_some(client)) return false;
    if (client.in.size() == before && !client.closing) break;
  }
  return wait_for_more(client);
}

bool ControlServer::wait_for_more(Client& client) {
  const bool waits = client.out.empty() && !client.in.has_line() &&
                     client.in.size() <= kMaxRequest && !client.closing;
  epoll_event event{};
  event.events = waits ? EPOLLIN : EPOLLOUT;
  event.data.ptr = &client;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, client.fd.get(), &event) == 0;
}

bool ControlServer::read_some(Client& client) {
  const std::span<char> room = client.in.room(kRead);
  const ssize_t got = ::recv(client.fd.get(), room.data(), room.size(), 0);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) {
    client.closing = true;
    client.in.clear();  // a request without its end is none
    return true;
  }
  client.in.filled(static_cast<std::size_t>(got));
  touch(client);
  return true;
}

bool ControlServer::write_some(Client& client) {
  const std::string_view rest = std::string_view(client.out).substr(client.sent);
  const ssize_t sent = send_with(client.fd.get(), rest, client.session.descriptor.get());
  if (sent < 0) return errno == EAGAIN || errno == EINTR;
  client.session.descriptor.reset(-1);
  client.sent += static_cast<std::size_t>(sent);
  if (client.sent == client.out.size()) {
    client.out.clear();
    client.sent = 0;
    if (client.lost != 0) client.out = lost_line(std::exchange(client.lost, 0));
  }
  touch(client);
  return true;
}

void ControlServer::touch(Client& client) {
  client.active = std::chrono::steady_clock::now();
  const auto self = std::find_if(clients_.begin(), clients_.end(),
                                 [&client](const Client& c) { return &c == &client; });
  if (self != clients_.end()) clients_.splice(clients_.end(), clients_, self);
}

void ControlServer::answer_next(Client& client) {
  if (!client.in.has_line() || client.in.line().size() > kMaxRequest) {
    client.out = refusal("a request is at most " + std::to_string(kMaxRequest) +
                         " bytes; send a long batch in several, with \"more\":true");
    client.in.clear();
    client.closing = true;
    return;
  }
  const bool listened = client.session.listening;
  client.out += reply_to(client.in.line(), client.session);
  client.in.drop_line();
  if (client.session.hang_up) {
    client.in.clear();
    client.closing = true;
  }
  if (!client.session.listening || listened) return;
  const auto self = std::find_if(clients_.begin(), clients_.end(),
                                 [&client](const Client& c) { return &c == &client; });
  if (listeners_.size() < kMaxListeners) {
    listeners_.splice(listeners_.end(), clients_, self);
    return;
  }
  client.session.listening = false;
  client.out = refusal(std::to_string(kMaxListeners) + " listen already; end one of them");
}

std::string ControlServer::reply_to(std::span<char> line, ControlSession& session) const {
  const std::vector<crypto::SecretBytes> keys = take_keys(line);
  const json request = json::parse(line.begin(), line.end(), nullptr, false);
  if (request.is_discarded() || !request.is_object())
    return refusal(R"(a request is one line of JSON: {"version":1,"op":"status"})");
  const auto version = request.find("version");
  if (version == request.end() || !version->is_number_integer() || *version != kControlVersion)
    return refusal("this daemon speaks version " + std::to_string(kControlVersion) +
                   " of the control protocol");
  const auto op = request.find("op");
  const auto handler = op != request.end() && op->is_string()
                           ? handlers_.find(op->get_ref<const std::string&>())
                           : handlers_.end();
  if (handler == handlers_.end()) {
    std::string known;
    for (const auto& [name, unused] : handlers_)
      known.append(known.empty() ? "" : ", ").append(name);
    return refusal("unknown op; this daemon has: " + known);
  }
  try {
    json reply = handler->second({request, keys, session});
    reply["version"] = kControlVersion;
    reply["ok"] = true;
    return line_of(reply);
  } catch (const Refusal& e) {
    return refusal(printable(e.what()), e.members());
  } catch (const std::exception& e) {
    return refusal(printable(e.what()));
  }
}

}  // namespace espalier::tools
