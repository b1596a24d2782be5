// The XFRM socket: each connection is a NETLINK_XFRM socket of some program (tools/exec/front.h).
// Nothing that a client does can block or grow the daemon:
//   1. every descriptor is non-blocking, there are at most kMaxSessions of them;
//   2. a client's next datagram is read only when it has taken the answers to its last one;
//   3. events that a client does not take are lost, as with the kernel.
// Who may ask: tools/unix_listener.h.
//
// Thread safety: the control thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <list>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "crypto/secret.h"
#include "dataplane/dataplane.h"
#include "ifaces/address_watch.h"
#include "ifaces/netlink.h"
#include "ifaces/unique_fd.h"
#include "tools/control_api.h"
#include "tools/exec/front.h"
#include "tools/keep.h"
#include "tools/log.h"
#include "tools/unix_listener.h"
#include "tools/xfrm/service.h"

namespace espalier::tools::xfrm {

class Server : public ControlApi::Others {
 public:
  static constexpr std::size_t kMaxSessions = 256;

  // Listens on `path`; `group` may ask as well. What is made outlives it in `keep`, `kept` are the
  // devices of the control socket. Throws like UnixListener.
  Server(const std::filesystem::path& path, dataplane::Dataplane& dataplane,
         ifaces::Netlink& netlink, DevicePool& devices, const Log& log, std::optional<gid_t> group,
         Keep& keep, KeptDevices& kept);
  ~Server() override;
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // Readable when serve() has something to do.
  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }
  // Does what can be done without waiting.
  void serve();
  void set_used_keys(UsedKeys& used) noexcept { service_.set_used_keys(used); }
  // What the data plane told.
  void take(std::span<const dataplane::Event> events);
  [[nodiscard]] bool owns(dataplane::SaId id) const override { return service_.owns(id); }
  [[nodiscard]] bool owns(dataplane::PolicyId id) const override { return service_.owns(id); }
  // When serve() wants to be called at the latest.
  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> deadline() const noexcept {
    return service_.deadline();
  }

 private:
  struct Session {
    ifaces::UniqueFd fd;
    Client client;
    std::vector<Datagram> replies;  // those from `sent` on are still to be sent
    std::size_t sent = 0;
    std::optional<Dump> dump;
    bool keeper = false;                   // holds what is to outlive us
    std::optional<front::Message> memory;  // to be told it, with the memory
    std::set<std::string> untold;          // devices that are held, or no longer
    bool trusted = false;                  // may do so
  };
  using Sessions = std::list<Session>;

  void accept_all();
  void accept_one(UnixListener::Caller caller);
  // What a keeper is still to be told; false: later.
  [[nodiscard]] bool tell_keeper(Session& session, bool& gone);
  void tell_soon(Session& session);
  // False: the client is gone.
  [[nodiscard]] bool advance(Session& session);
  [[nodiscard]] bool survives(Session& session) noexcept;
  // False: nothing to read. Sets `gone`.
  [[nodiscard]] bool read_one(Session& session, bool& gone);
  void take_keeper(Session& session, front::Message message, ifaces::UniqueFd memory);
  void take_back(ifaces::UniqueFd memory);
  void tell_hold(const std::string& device);
  void take_message(Session& session, const front::Message& message, ifaces::UniqueFd descriptor);
  [[nodiscard]] int share_port(const ifaces::UniqueFd& socket) noexcept;
  [[nodiscard]] int may_share(const front::Message& message) noexcept;
  // True if all is sent.
  [[nodiscard]] bool flush(Session& session, bool& gone);
  [[nodiscard]] bool wait_for_more(Session& session);
  void publish(const std::vector<Notice>& notices);

  const Log& log_;
  dataplane::Dataplane& dataplane_;
  UnixListener listener_;
  ifaces::UniqueFd epoll_;
  ifaces::AddressWatch addresses_;
  Service service_;
  Keep& keep_;
  KeptDevices& devices_;
  Sessions sessions_;
  crypto::SecretBytes buffer_;  // keys pass through it
};

}  // namespace espalier::tools::xfrm
