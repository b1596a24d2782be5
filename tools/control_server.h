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
//   4. a connection on which nothing moved for kIdle is closed.
// Only root and the daemon's own user may ask (the mode is 0600, and the kernel's word on who is
// at the other end is checked).
//
// Thread safety: one thread.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <list>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "ifaces/unique_fd.h"

namespace espalier::tools {

inline constexpr int kControlVersion = 1;

class ControlServer {
 public:
  static constexpr std::size_t kMaxClients = 64;
  static constexpr std::size_t kMaxRequest = std::size_t{64} * 1024;
  static constexpr std::chrono::seconds kIdle{30};

  // Gets the whole request, returns what the reply holds beside version and ok. What it throws
  // becomes the reply's error: no key material in it.
  using Handler = std::function<nlohmann::json(const nlohmann::json& request)>;

  // Listens on `path`. Replaces the socket of a daemon that is gone; throws std::runtime_error if
  // one lives there, if something else is in the way, or if a system call fails (named).
  explicit ControlServer(const std::filesystem::path& path);
  ~ControlServer();  // removes the socket, if it is still the one it made
  ControlServer(const ControlServer&) = delete;
  ControlServer& operator=(const ControlServer&) = delete;

  void on(const std::string& op, Handler handler);

  // Readable when serve() has something to do.
  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }
  // Does what can be done without waiting.
  void serve();
  // When serve() wants to be called at the latest, to drop who idles. Empty: no client.
  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> deadline() const noexcept;

 private:
  struct Client {
    ifaces::UniqueFd fd;
    std::string in, out;
    std::size_t sent = 0;  // of `out`
    bool closing = false;  // after `out` is written
    std::chrono::steady_clock::time_point active;
  };
  using Clients = std::list<Client>;  // the longest idle first

  void accept_all();
  void add_client(ifaces::UniqueFd fd);
  // False: the client is gone.
  [[nodiscard]] bool advance(Client& client);
  [[nodiscard]] bool read_some(Client& client);
  [[nodiscard]] bool write_some(Client& client);
  void touch(Client& client);
  void answer_next(Client& client);
  [[nodiscard]] std::string reply_to(const std::string& line) const;
  void drop(Clients::iterator client);

  std::filesystem::path path_;
  ino_t inode_ = 0;
  ifaces::UniqueFd epoll_;
  ifaces::UniqueFd listen_;
  ifaces::UniqueFd spare_;  // given up for a moment when there is no other descriptor
  std::map<std::string, Handler, std::less<>> handlers_;
  Clients clients_;
};

}  // namespace espalier::tools
