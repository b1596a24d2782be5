// The daemon: brings the conns of a configuration file up, keeps their sequence numbers ahead of
// the traffic, answers on the control socket, follows SIGHUP, and takes everything down again.
//
// Thread safety: one thread, the main one, which must have blocked the signals (block_signals())
// before it made this, so that the workers leave them alone.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "crypto/registry.h"
#include "dataplane/dataplane.h"
#include "ifaces/netlink.h"
#include "ifaces/unique_fd.h"
#include "tools/config.h"
#include "tools/control_api.h"
#include "tools/control_server.h"
#include "tools/device_pool.h"
#include "tools/event_log.h"
#include "tools/keep.h"
#include "tools/log.h"
#include "tools/running_conn.h"

namespace espalier::tools {

namespace xfrm {
class Server;
}

// What the command line says; what it leaves open the file decides.
struct DaemonOptions {
  std::filesystem::path config;  // empty: none, all comes over the control socket
  std::optional<std::string> io, crypto, log;
  std::optional<unsigned> workers;  // 0: auto
  std::optional<OffloadChoice> offloads;
  std::optional<std::filesystem::path> control;
  std::optional<std::string> group;
};

// SIGTERM, SIGINT and SIGHUP as a descriptor. Throws std::system_error.
[[nodiscard]] ifaces::UniqueFd block_signals();

class Daemon {
 public:
  // Brings everything up. Throws std::exception with one line that says what to do; then nothing is
  // left behind.
  Daemon(DaemonOptions options, Log& log);
  ~Daemon();  // takes everything down
  Daemon(const Daemon&) = delete;
  Daemon& operator=(const Daemon&) = delete;

  // Until SIGTERM or SIGINT arrives on `signals`.
  void run(const ifaces::UniqueFd& signals);

  // Makes what runs what the file says now: conns that are the same are not touched. A file that
  // cannot be used changes nothing.
  void reload() noexcept;

  [[nodiscard]] DaemonStatus status() const;

 private:
  using Clock = std::chrono::steady_clock;
  // A conn of the file: up, or the reason why not.
  struct Slot {
    std::uint32_t reqid = 0;
    std::unique_ptr<RunningConn> running;
    std::string error;
    Clock::time_point failed_at;
    bool device_gone = false;
    bool down = false;  // by conn-down: stays so until conn-up
  };
  using Prepared = std::map<std::string, PreparedConn>;

  [[nodiscard]] Config load() const;
  void log_start() const;
  // All conns of `config`, none of them touched yet. Throws like prepare().
  [[nodiscard]] Prepared prepare_all(const Config& config);
  // Brings `conn` up. What a killed daemon held (devices, ports) the kernel takes back a moment
  // after its end: waits for that, at most until `until`.
  [[nodiscard]] std::unique_ptr<RunningConn> make(const Conn& conn, const Globals& globals,
                                                  PreparedConn prepared, Clock::time_point until);
  void take_over(Config next, Prepared prepared);
  void stop_removed(const Prepared& prepared);
  // Brings up what replaces `before` (null: nothing), or `before` again if that fails. `hold`
  // keeps the device and its routes there meanwhile.
  void start(const Conn& conn, PreparedConn prepared, DeviceLease hold, const Conn* before,
             Clock::time_point until);
  void note_fixed(const Globals& next) const;
  void add_operations();
  // By its name; throws std::invalid_argument, which names those that are there.
  [[nodiscard]] const Conn& conn_of(const nlohmann::json& request) const;
  nlohmann::json conn_up(const nlohmann::json& request);
  nlohmann::json conn_down(const nlohmann::json& request);
  void log_up(const RunningConn& conn);
  void log_clients() const;
  void open_clients(Prepared& prepared) const;
  static void close_clients(Prepared& prepared);

  // Without its socket the daemon runs all the same: only `espalier exec` needs it.
  void open_xfrm(UsedKeys& used_keys);
  void take_events();
  // Tells once of each device that somebody else has deleted; the next reload makes it again.
  void watch_devices();
  // False: it is time to stop.
  [[nodiscard]] bool follow_signals(const ifaces::UniqueFd& signals);
  // Does what is due; returns when there is something to do again.
  Clock::time_point turn(Clock::time_point now);

  DaemonOptions options_;
  Log& log_;
  Config config_;
  Clock::time_point started_;
  std::optional<crypto::Registry> registry_;
  std::optional<gid_t> group_;  // of the sockets
  std::optional<ControlServer> control_;
  ifaces::Netlink netlink_;
  std::optional<dataplane::Dataplane> dataplane_;
  std::optional<DevicePool> devices_;
  std::optional<Site> site_;
  std::optional<Keep> keep_;
  std::optional<ControlApi> api_;
  std::optional<EventLog> event_log_;
  std::unique_ptr<xfrm::Server> xfrm_;
  std::map<std::string, Slot> conns_;  // by name; those of config_
  std::uint32_t next_reqid_;
  Clock::time_point look_at_, keepalive_at_, watch_at_, paths_at_;
  std::uint64_t events_lost_ = 0;  // that were told
};

}  // namespace espalier::tools
