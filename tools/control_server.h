// The control socket: a Unix stream socket on which programs of this host ask the daemon.
//
// A request is one line of JSON, {"version":1,"op":"status"}; so is its reply, {"version":1,
// "ok":true, …} or {"version":1,"ok":false,"error":"…"}. A connection may carry several, one after
// the other. Nothing that a client does can block or grow the daemon:
//   1. every descriptor is non-blocking; at most kMaxClients connections, the one that was idle
//      longest makes room for a new one;
//   2. a request is at most kMaxRequest bytes, a longer one is refused and its connection closed;
//   3. a client's next request is read only when its last reply has been taken, so a client holds
//      at most one reply;
//   4. a connection on which nothing moved for kIdle is closed, unless it listens to events;
//   5. at most kMaxListeners listen; one that does not read loses events, which are counted, and
//      holds at most kMaxBacklog bytes of them.
// Keys in a request (members "key") reach a handler as SecretBytes: neither the JSON library nor
// any other buffer here sees one.
// Who may ask: unix_listener.h.
//
// Thread safety: one thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "crypto/secret.h"
#include "ifaces/unique_fd.h"
#include "tools/line_buffer.h"
#include "tools/unix_listener.h"

namespace espalier::tools {

inline constexpr int kControlVersion = 1;

// Thrown by a handler whose refusal holds more than its text.
class Refusal : public std::runtime_error {
 public:
  Refusal(const std::string& what, nlohmann::json members)
      : std::runtime_error(what), members_(std::move(members)) {}
  [[nodiscard]] const nlohmann::json& members() const noexcept { return members_; }

 private:
  nlohmann::json members_;
};

// One connection, as a handler sees it.
struct ControlSession {
  std::shared_ptr<void> state;  // a handler's own; freed when the connection ends
  bool listening = false;       // to events, from this reply on
  ifaces::UniqueFd descriptor;  // goes with the reply (SCM_RIGHTS)
  bool hang_up = false;         // behind the reply
};

struct ControlRequest {
  const nlohmann::json& body;
  std::span<const crypto::SecretBytes> keys;  // their texts; "key" in `body` is the place of one
  ControlSession& session;
};

class ControlServer {
 public:
  static constexpr std::size_t kMaxClients = 64;
  static constexpr std::size_t kMaxListeners = 16;
  static constexpr std::size_t kMaxRequest = std::size_t{1} << 20;
  static constexpr std::size_t kMaxBacklog = std::size_t{256} * 1024;
  static constexpr std::chrono::seconds kIdle{30};

  // Gets the whole request, returns what the reply holds beside version and ok. What it throws
  // becomes the reply's error: no key material in it.
  using Handler = std::function<nlohmann::json(const nlohmann::json& request)>;
  using SessionHandler = std::function<nlohmann::json(const ControlRequest& request)>;

  // Listens on `path`; `group` may ask as well. Throws like UnixListener.
  explicit ControlServer(const std::filesystem::path& path, std::optional<gid_t> group = {});
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  void on(const std::string& op, Handler handler);
  void on_session(const std::string& op, SessionHandler handler);

  [[nodiscard]] bool has_listeners() const noexcept { return !listeners_.empty(); }
  // Sends `event` ("version" is added) to all who listen.
  void publish(nlohmann::json event);

  // Readable when serve() has something to do.
  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }
  // Does what can be done without waiting.
  void serve();
  // When serve() wants to be called at the latest, to drop who idles. Empty: no client.
  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> deadline() const noexcept;

 private:
  struct Client {
    ifaces::UniqueFd fd;
    LineBuffer in;
    std::string out;
    std::size_t sent = 0;    // of `out`
    std::uint64_t lost = 0;  // events that found no room in `out`
    bool closing = false;    // after `out` is written
    ControlSession session;
    std::chrono::steady_clock::time_point active;
  };
  using Clients = std::list<Client>;

  void accept_all();
  void add_client(UnixListener::Caller caller);
  // False: the client is gone.
  [[nodiscard]] bool advance(Client& client);
  [[nodiscard]] bool survives(Client& client) noexcept;
  [[nodiscard]] bool read_some(Client& client);
  [[nodiscard]] bool write_some(Client& client);
  [[nodiscard]] bool wait_for_more(Client& client);
  void touch(Client& client);
  void answer_next(Client& client);
  [[nodiscard]] std::string reply_to(std::span<char> line, ControlSession& session) const;
  // Null: it is gone.
  [[nodiscard]] Client* find(const void* who) noexcept;
  void drop(const Client& client) noexcept;

  UnixListener listener_;
  ifaces::UniqueFd epoll_;
  std::map<std::string, SessionHandler, std::less<>> handlers_;
  Clients clients_;    // the longest idle first
  Clients listeners_;  // those that have asked for events
};

}  // namespace espalier::tools
