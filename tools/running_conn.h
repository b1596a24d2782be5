// A conn that is up: its device, policies, SAs, routes and sequence numbers, as one thing that
// comes and goes whole.
//
// Thread safety: the control thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dataplane/dataplane.h"
#include "ifaces/netlink.h"
#include "tools/compile.h"
#include "tools/config.h"
#include "tools/device_pool.h"
#include "tools/keys.h"
#include "tools/log.h"
#include "tools/sequence_keeper.h"
#include "tools/status.h"

namespace espalier::tools {

// What conns are made of; all of it outlives them.
struct Site {
  dataplane::Dataplane& dataplane;
  ifaces::Netlink& netlink;
  DevicePool& devices;
  const Log& log;
};

// Tells whether two readings of a conn and its key file make the same tunnel.
struct ConnIdentity {
  Conn conn;                // without its line
  ifaces::IpAddress local;  // what %defaultroute is now
  std::string fingerprint;  // of the outbound keys
  dataplane::Spi spi_in{};
  crypto::SecretBytes keymat_in;
  std::filesystem::path state_file;

  [[nodiscard]] bool operator==(const ConnIdentity& other) const noexcept;
};

// What the configuration alone says of it: not up.
[[nodiscard]] ConnStatus describe(const Conn& conn);

// A conn that is read, oriented and keyed, and touches nothing yet.
struct PreparedConn {
  ConnIdentity identity;
  Side own{};
  Compiled compiled;
  std::unique_ptr<SequenceKeeper> keeper;  // if it is open already
};

// Opens the conn's state file. Throws like SequenceState and SequenceKeeper.
[[nodiscard]] std::unique_ptr<SequenceKeeper> open_keeper(const ConnIdentity& identity,
                                                          const Log& log);

// `reqid` is the conn's own, and not 0. Throws ConfigError, or std::system_error if rtnetlink
// fails.
[[nodiscard]] PreparedConn prepare(const Conn& conn, const Globals& globals,
                                   ifaces::Netlink& netlink, std::uint32_t reqid);

class RunningConn {
 public:
  // Brings it up. Throws ConfigError, std::invalid_argument or std::system_error; then everything
  // is as before.
  RunningConn(const Site& site, PreparedConn prepared);
  ~RunningConn();  // takes it down; numbers that were not used are given back
  RunningConn(const RunningConn&) = delete;
  RunningConn& operator=(const RunningConn&) = delete;

  [[nodiscard]] const ConnIdentity& identity() const noexcept { return identity_; }
  [[nodiscard]] const dataplane::DeviceSpec& device_spec() const noexcept { return device_spec_; }
  // Has somebody deleted the device? False without one.
  [[nodiscard]] bool device_is_gone() const;
  [[nodiscard]] const DeviceLease& device() const noexcept { return device_; }
  [[nodiscard]] ConnStatus status() const;
  // For the log: "192.0.2.1:4500 <=> 192.0.2.2:4500, ESP in UDP, aes_gcm256, vti01, MTU 1438".
  [[nodiscard]] std::string summary() const;

  [[nodiscard]] std::uint32_t reqid() const noexcept { return reqid_; }

  // Reserves sequence numbers ahead of the traffic; to be called at kBusyLook while busy().
  void look(std::chrono::steady_clock::time_point now);

  // Takes it down but for its state file: what is returned gives back the numbers that were not
  // used, in any thread, while this lives.
  [[nodiscard]] std::function<void()> stop() noexcept;
  [[nodiscard]] bool busy() const noexcept { return keeper_ && keeper_->busy(); }

 private:
  void bring_up(Compiled compiled);
  void take_down() noexcept;
  void warn_of_strict_reverse_path() const;
  [[nodiscard]] unsigned derive_mtu(const Compiled& compiled) const;

  const Site& site_;
  ConnIdentity identity_;
  std::uint32_t reqid_;
  dataplane::DeviceSpec device_spec_;
  std::unique_ptr<SequenceKeeper> keeper_;  // null: policies only
  DeviceLease device_;
  std::vector<dataplane::PolicyId> policies_;
  std::optional<dataplane::SaId> out_, in_;
  ifaces::Endpoint local_, peer_;
  bool stopped_ = false;
  std::chrono::steady_clock::time_point since_;
};

}  // namespace espalier::tools
