// The operations of the control socket that look at and change what runs: SAs, policies, devices,
// batches and events. tools/CONTROL.md describes them.
//
// Thread safety: the control thread.
#pragma once

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "dataplane/dataplane.h"
#include "tools/control_server.h"
#include "tools/installed.h"

namespace espalier::tools {

class ControlApi {
 public:
  // Adds its operations to `server`. All of these outlive it.
  ControlApi(ControlServer& server, dataplane::Dataplane& dataplane, DevicePool& devices,
             ifaces::Netlink& netlink);
  // As in Installed.
  UsedKeys& set_used_keys(std::filesystem::path file) {
    return installed_.set_used_keys(std::move(file));
  }
  ControlApi(const ControlApi&) = delete;
  ControlApi& operator=(const ControlApi&) = delete;

  // Where SAs and policies come from that are neither the configuration's nor ours.
  class Others {
   public:
    virtual ~Others() = default;
    [[nodiscard]] virtual bool owns(dataplane::SaId id) const = 0;
    [[nodiscard]] virtual bool owns(dataplane::PolicyId id) const = 0;
  };
  // `others`: those of XFRM; it outlives this.
  void set_xfrm(const Others* others) noexcept { xfrm_ = others; }

  // Devices are kept there from now on.
  KeptDevices& set_keep(Keep& keep) noexcept {
    installed_.set_keep(keep);
    return installed_;
  }

  // Tells those who listen, and removes what has expired.
  void take(std::span<const dataplane::Event> events);
  void publish(nlohmann::json event);

 private:
  // Operations of a batch that is not complete, on one connection.
  struct Pending {
    explicit Pending(std::shared_ptr<std::size_t> total_queued) : total(std::move(total_queued)) {}
    Pending(const Pending&) = delete;
    Pending& operator=(const Pending&) = delete;
    ~Pending() { *total -= changes.size(); }
    std::shared_ptr<std::size_t> total;  // the connection may outlive the ControlApi
    std::vector<Change> changes;
  };

  nlohmann::json change(const ControlRequest& request);
  nlohmann::json ike_socket(const ControlRequest& request);
  nlohmann::json batch(const ControlRequest& request);
  void queue(Pending& pending, const nlohmann::json& ops,
             std::span<const crypto::SecretBytes> keys);
  [[nodiscard]] nlohmann::json sa_get(const nlohmann::json& request) const;
  nlohmann::json sa_dummy(const nlohmann::json& request);
  [[nodiscard]] nlohmann::json sa_list(const nlohmann::json& request) const;
  [[nodiscard]] nlohmann::json policy_list(const nlohmann::json& request) const;
  [[nodiscard]] nlohmann::json vti_list(const nlohmann::json& request) const;
  [[nodiscard]] std::string routed_to(const ifaces::IpAddress& address);
  [[nodiscard]] nlohmann::json explain(const nlohmann::json& request);
  nlohmann::json flush(const nlohmann::json& request);

  ControlServer& server_;
  dataplane::Dataplane& dataplane_;
  DevicePool& devices_;
  [[nodiscard]] nlohmann::json listed(const dataplane::SaStatus& sa,
                                      std::chrono::steady_clock::time_point now) const;

  ifaces::Netlink& netlink_;
  Installed installed_;
  const Others* xfrm_ = nullptr;
  // Operations of all batches that are not complete.
  std::shared_ptr<std::size_t> queued_ = std::make_shared<std::size_t>(0);
};

}  // namespace espalier::tools
