// The kernel asks its policies about every packet, whatever its route. Here a packet must be in one
// of our devices first. One that has a device's mark or if_id is led there by the owner's routes;
// for the policies that have neither, and so no device, the ways are made here: rules (ip-rule(8))
// with the policy's selector, to a table that leads into the default device.
// If the device goes because this process is killed, a barrier in the table stays: nothing leaves
// in clear.
//
// Thread safety: the control thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "ifaces/netlink.h"
#include "ifaces/policy_rule.h"
#include "tools/device_pool.h"
#include "tools/keep.h"
#include "tools/xfrm/convert.h"

namespace espalier::tools::xfrm {

class PolicyRoutes {
 public:
  PolicyRoutes(DevicePool& devices, ifaces::Netlink& netlink, const Log& log)
      : devices_(devices), netlink_(netlink), log_(log) {}
  PolicyRoutes(const PolicyRoutes&) = delete;
  PolicyRoutes& operator=(const PolicyRoutes&) = delete;

  // The device of the ways outlives us from now on, with those who hold it.
  void set_keep(Keep& keep) noexcept { keep_ = &keep; }
  // What is there stays when this goes: somebody holds the device for the next daemon.
  void leave() noexcept { leaving_ = true; }

  // The way of one policy; it is there while this lives.
  class Way {
   public:
    explicit Way(PolicyRoutes& owner) noexcept : owner_(owner) {}
    ~Way() { owner_.close(*this); }
    Way(const Way&) = delete;
    Way& operator=(const Way&) = delete;

   private:
    friend class PolicyRoutes;
    PolicyRoutes& owner_;
    DeviceLease device_;
    std::vector<ifaces::PolicyRule> rules_;
    std::vector<ifaces::Prefix> routes_;
    ifaces::Family behind_barrier_ = ifaces::Family::none;
  };

  // For packets of `selector` that leave between `local` and `remote` (which may be unknown): those
  // that are outer packets or IKE go their own way. Throws std::system_error.
  [[nodiscard]] std::unique_ptr<Way> open(const dataplane::Selector& selector,
                                          const ifaces::IpAddress& local,
                                          const ifaces::IpAddress& remote);

 private:
  void add(Way& way, const ifaces::PolicyRule& rule);
  void close(Way& way) noexcept;
  void hold();

  DevicePool& devices_;
  ifaces::Netlink& netlink_;
  const Log& log_;
  Keep* keep_ = nullptr;
  bool leaving_ = false;
  ifaces::PolicyRules policy_rules_;
  // And how many ways want it.
  std::map<ifaces::PolicyRule, unsigned> rules_;
  std::map<ifaces::Prefix, unsigned> routes_;
  std::map<ifaces::Family, unsigned> barriers_;
};

}  // namespace espalier::tools::xfrm
