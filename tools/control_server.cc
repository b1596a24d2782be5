#include "tools/control_server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>

#include "tools/log.h"
#include "tools/request_keys.h"

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;
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

// Like send(), with `descriptor` beside the first byte if there is one.
ssize_t send_with(int fd, std::string_view text, int descriptor) {
  if (descriptor < 0) return ::send(fd, text.data(), text.size(), MSG_NOSIGNAL);
  iovec part{const_cast<char*>(text.data()), text.size()};  // sendmsg only reads it
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof descriptor)> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof descriptor);
  std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  return ::sendmsg(fd, &message, MSG_NOSIGNAL);
}

sockaddr_un address_of(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.native().size() >= sizeof address.sun_path)
    throw std::runtime_error("control " + path.string() + ": longer than the " +
                             std::to_string(sizeof address.sun_path - 1) +
                             " bytes of a socket's path; choose a shorter one");
  std::memcpy(address.sun_path, path.c_str(), path.native().size());
  return address;
}

UniqueFd unix_socket() {
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) fail("socket AF_UNIX");
  return fd;
}

int with_address(int (*call)(int, const sockaddr*, socklen_t), int fd, const sockaddr_un& address) {
  return call(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
}

// Removes what a dead daemon left at `path`; throws if it is alive, or no socket.
void clear_stale(const std::filesystem::path& path, const sockaddr_un& address) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return;
    fail("lstat " + path.string());
  }
  if (!S_ISSOCK(st.st_mode))
    throw std::runtime_error("control " + path.string() +
                             ": something else is there; move it, or "
                             "choose another path");
  const UniqueFd probe = unix_socket();
  if (with_address(::connect, probe.get(), address) == 0 || errno == EAGAIN)
    throw std::runtime_error("control " + path.string() +
                             ": already running, a daemon answers "
                             "there; stop it, or choose another path");
  if (errno != ECONNREFUSED) fail("connect " + path.string());
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail("unlink " + path.string());
}

// Two daemons that start at once must not take each other's fresh socket for a stale one.
UniqueFd lock_directory(const std::filesystem::path& directory) {
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) fail("open " + directory.string());
  for (int tries = 0; ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0; ++tries) {
    if (errno != EWOULDBLOCK || tries == 100) fail("flock " + directory.string());
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return fd;
}

bool may_ask(int fd) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return false;
  return peer.uid == 0 || peer.uid == ::geteuid();
}

}  // namespace

ControlServer::ControlServer(const std::filesystem::path& path) : path_(path) {
  const sockaddr_un address = address_of(path_);
  std::filesystem::path directory = path_.parent_path();
  if (directory.empty()) directory = ".";
  std::filesystem::create_directories(directory);
  const UniqueFd lock = lock_directory(directory);
  clear_stale(path_, address);

  listen_ = unix_socket();
  // Before bind, so that the file never exists with another mode.
  if (::fchmod(listen_.get(), S_IRUSR | S_IWUSR) != 0) fail("fchmod " + path_.string());
  if (with_address(::bind, listen_.get(), address) != 0) fail("bind " + path_.string());
  struct stat st {};
  if (::lstat(path_.c_str(), &st) == 0) inode_ = st.st_ino;
  if (::listen(listen_.get(), kMaxClients) != 0) fail("listen " + path_.string());

  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  spare_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;  // the listener
  if (!epoll_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listen_.get(), &event) != 0)
    fail("epoll " + path_.string());
}

ControlServer::~ControlServer() {
  struct stat st {};
  if (::lstat(path_.c_str(), &st) == 0 && st.st_ino == inode_) ::unlink(path_.c_str());
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
    if (client != nullptr && !advance(*client)) drop(*client);
  }
  if (newcomers) accept_all();
  const auto now = std::chrono::steady_clock::now();
  while (!clients_.empty() && clients_.front().active + kIdle <= now) drop(clients_.front());
}

void ControlServer::accept_all() {
  for (std::size_t i = 0; i < kMaxClients; ++i) {
    UniqueFd fd(::accept4(listen_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (fd) {
      add_client(std::move(fd));
      continue;
    }
    if (errno != EMFILE && errno != ENFILE) return;
    // Out of descriptors: give one up to turn the caller away, or epoll would report it for ever.
    spare_.reset(-1);
    fd.reset(::accept4(listen_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    fd.reset(-1);
    spare_.reset(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    return;
  }
}

void ControlServer::add_client(UniqueFd fd) {
  if (!may_ask(fd.get())) {
    const std::string text = refusal("only root and the daemon's own user may ask");
    [[maybe_unused]] const ssize_t sent =
        ::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return;
  }
  if (clients_.size() >= kMaxClients) drop(clients_.front());
  clients_.emplace_back();
  clients_.back().fd = std::move(fd);
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
