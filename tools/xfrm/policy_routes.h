// The kernel asks its policies about every packet, whatever its route. Here a packet must be in one
// of our devices first. One that has a device's mark or if_id is led there by the owner's routes;
// for the policies that have neither, and so no device, the ways are made here: rules (ip-rule(8))
// with the policy's selector, to a table that leads into the default device.
//   210  past the ways: our own ESP and what IKE daemons send; what a policy lets pass
//   211  the ways
//   212  where those of 210 go on
// If the device goes because this process is killed, a barrier in the table stays: nothing leaves
// in clear.
//
// Thread safety: the control thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "dataplane/dataplane.h"
#include "ifaces/netlink.h"
#include "ifaces/policy_rule.h"
#include "tools/device_pool.h"
#include "tools/keep.h"
#include "tools/xfrm/convert.h"

namespace espalier::tools::xfrm {

class PolicyRoutes {
 public:
  PolicyRoutes(const dataplane::Dataplane& dataplane, DevicePool& devices, ifaces::Netlink& netlink,
               const Log& log)
      : dataplane_(dataplane), devices_(devices), netlink_(netlink), log_(log) {}
  PolicyRoutes(const PolicyRoutes&) = delete;
  PolicyRoutes& operator=(const PolicyRoutes&) = delete;

  // The device of the ways outlives us from now on, with those who hold it.
  void set_keep(Keep& keep) noexcept { keep_ = &keep; }
  // What is there stays when this goes: somebody holds the device for the next daemon.
  void leave() noexcept { leaving_ = true; }

  // What the data plane asks about a packet: selector, priority, action.
  struct Wish {
    dataplane::PolicySpec spec;
    dataplane::PolicyId id{};
    ifaces::IpAddress local{}, remote{};  // of the outer packets; any: not known
  };

  // The way of one policy; it is there while this lives.
  class Way {
   public:
    Way(PolicyRoutes& owner, Wish wish) noexcept : owner_(owner), wish_(std::move(wish)) {}
    ~Way() { owner_.close(*this); }
    Way(const Way&) = delete;
    Way& operator=(const Way&) = delete;

   private:
    friend class PolicyRoutes;
    PolicyRoutes& owner_;
    Wish wish_;
    DeviceLease device_;
    std::vector<ifaces::PolicyRule> rules_;
    std::optional<ifaces::Prefix> route_;
    ifaces::Family behind_barrier_ = ifaces::Family::none;
  };

  // For packets that one policy protects or discards: into the device. For those that it lets pass:
  // past it, as long as no policy that comes before it wants one of them. Throws std::system_error.
  [[nodiscard]] std::unique_ptr<Way> open(Wish wish);

  // What this host sends from the data plane's UDP ports, IKE and ESP, never goes into the device.
  // To be called when they may have changed.
  void look_at_ports() noexcept;
  // This host has got or lost addresses (an IKE daemon gives it a virtual one behind the policy):
  // what it sends by our routes gets a source that is in their selectors, as soon as it has one.
  void addresses_changed() noexcept;
  // Has it a way into the device?
  [[nodiscard]] bool any() const noexcept { return !barriers_.empty(); }

 private:
  struct Route {
    unsigned wanted = 0;  // by how many ways
    std::optional<ifaces::IpAddress> source;
  };
  void set_source(const ifaces::Prefix& to, Route& route);
  void lead_unsourced(Way& way, const ifaces::PolicyRule& rule);
  void add(Way& way, const ifaces::PolicyRule& rule);
  void drop_rules(Way& way) noexcept;
  void remove_if_there(const ifaces::PolicyRule& rule);
  void clear_stale(ifaces::Family family);
  void close(Way& way) noexcept;
  void hold();
  void lead(Way& way);
  void let_pass(Way& way);
  // Each of those that let pass, after a change of the others: also if that cannot be.
  void look_again() noexcept;
  [[nodiscard]] bool may_pass(const Way& way) const noexcept;
  void open_family(ifaces::Family family);
  void close_family(ifaces::Family family) noexcept;
  template <class Action>
  void attempt(const Action& action) const noexcept;

  const dataplane::Dataplane& dataplane_;
  DevicePool& devices_;
  ifaces::Netlink& netlink_;
  const Log& log_;
  Keep* keep_ = nullptr;
  bool leaving_ = false;
  ifaces::PolicyRules policy_rules_;
  std::set<Way*> ways_;
  std::set<std::uint16_t> ports_;
  // And how many ways want it.
  std::map<ifaces::PolicyRule, unsigned> rules_;
  std::map<ifaces::Prefix, Route> routes_;
  std::map<ifaces::Family, unsigned> barriers_;
};

}  // namespace espalier::tools::xfrm
