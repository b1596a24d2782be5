// What a kernel's NETLINK_XFRM does with a datagram: the requests, their answers, and who else is
// told. No sockets here.
//
// Thread safety: the control thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "dataplane/dataplane.h"
#include "ifaces/netlink.h"
#include "tools/xfrm/joins.h"
#include "tools/xfrm/message.h"
#include "tools/xfrm/policies.h"
#include "tools/xfrm/states.h"

namespace espalier::tools::xfrm {

// A listing in progress. Made on demand, newest first; what is added meanwhile is not in it.
struct Dump {
  std::uint16_t type = 0;  // of its messages: NEWSA or NEWPOLICY
  std::uint32_t seq = 0;
  std::uint8_t protocol = 0;                  // 0: all
  std::optional<xfrm_address_filter> filter;  // of states
  std::uint64_t before = ~std::uint64_t{0};   // the serial it has come to
  bool own_done = false;                      // then come those that others have made
  std::uint32_t after = 0;                    // the id of those
  bool done = false;
};

// What a client has said of itself.
struct Client {
  std::uint32_t portid = 0;
  std::uint32_t groups = 0;
  bool extended_ack = false;
  bool capped_ack = false;
  Keys keys = Keys::without;  // for root and the daemon's own user alone
};

struct Notice {
  unsigned group = 0;  // XFRMNLGRP_…
  Datagram message;
  std::optional<Keys> keys = {};  // only for clients of that kind; none: for all
};

struct Output {
  std::vector<Datagram> replies;
  std::vector<Notice> notices;
  std::optional<Dump> dump;  // set: goes on until `done`
};

class Service {
 public:
  using Clock = std::chrono::steady_clock;

  Service(dataplane::Dataplane& dataplane, ifaces::Netlink& netlink, DevicePool& devices,
          const Log& log)
      : dataplane_(dataplane),
        states_(dataplane, netlink, joins_),
        routes_(dataplane, devices, netlink, log),
        policies_(dataplane, joins_, routes_) {}

  // What it makes outlives it there, and comes back by restore().
  void set_keep(Keep& keep) noexcept {
    states_.set_keep(keep);
    policies_.set_keep(keep);
    routes_.set_keep(keep);
    keep_ = &keep;
  }
  void set_used_keys(UsedKeys& used) noexcept { states_.set_used_keys(used); }
  // The next daemon finds the ways of policies as they are.
  void leave() noexcept { routes_.leave(); }
  void addresses_changed() noexcept { routes_.addresses_changed(); }
  struct Restored {
    std::size_t states = 0, policies = 0;
    std::size_t lost = 0;  // who listens has been told that they have expired
  };
  Restored restore(std::span<const Keep::Record> records, Output& output);
  void put_all() noexcept {
    states_.put_all();
    policies_.put_all();
  }

  // Any bytes. What is in it is wiped.
  void handle(const Client& client, std::span<std::uint8_t> datagram, Output& output);
  // The next datagram of a listing.
  [[nodiscard]] Datagram next(Dump& dump, const Client& client);

  // Did it come through here?
  [[nodiscard]] bool owns(dataplane::SaId id) const noexcept { return states_.find(id) != nullptr; }
  [[nodiscard]] bool owns(dataplane::PolicyId id) const noexcept {
    return policies_.find(id) != nullptr;
  }

  // What the data plane tells, and what is due.
  void take(std::span<const dataplane::Event> events, Output& output);
  void take_due(Clock::time_point now, Output& output);
  // When take_due() wants to be called at the latest.
  [[nodiscard]] std::optional<Clock::time_point> deadline() const noexcept { return deadline_; }

 private:
  // Where a request comes from, and where its output goes.
  struct Call {
    const Client& client;
    Request& request;
    Output& output;
    [[nodiscard]] Reply::To to() const noexcept {
      return {client.portid, request.header().nlmsg_seq};
    }
  };
  using Handler = void (Service::*)(const Call&);
  [[nodiscard]] static Handler handler_of(std::uint16_t type) noexcept;

  void answer(const Client& client, nlmsghdr& header, Output& output);
  void acknowledge(const Client& client, const Request& request, int error, const char* text,
                   Output& output) const;
  static bool is_dump(const nlmsghdr& header) noexcept;
  void start_dump(const Call& call);

  // states
  void add_state(const Call& call);
  void update_state(const Call& call);
  void delete_state(const Call& call);
  void get_state(const Call& call);
  void allocate_spi(const Call& call);
  void flush_states(const Call& call);
  void get_event_values(const Call& call);
  void set_event_values(const Call& call);
  [[nodiscard]] Reply event_values(const State& state, std::uint32_t flags, Reply::To to) const;
  void expire_state(const Call& call);
  void get_state_info(const Call& call);
  State& state_named(const Call& call, const xfrm_usersa_id& id);
  void notify_state(std::uint16_t type, const State& state, Reply::To to, Output& output) noexcept;
  // `portid`: of who has asked for it.
  void tell_expired(const State& state, bool hard, Output& output,
                    std::uint32_t portid = 0) noexcept;
  [[nodiscard]] Reply describe(const State& state, Reply::To to, std::uint16_t flags, Keys keys,
                               std::uint16_t type = XFRM_MSG_NEWSA) const;

  // both
  void migrate(const Call& call);

  // policies
  void add_policy(const Call& call);
  void delete_policy(const Call& call);
  void get_policy(const Call& call);
  void flush_policies(const Call& call);
  void expire_policy(const Call& call);
  void tell_policy_expired(const Policy& policy, bool hard, Output& output,
                           std::uint32_t portid) noexcept;
  void get_policy_info(const Call& call);
  void set_policy_info(const Call& call);
  void set_default(const Call& call);
  void get_default(const Call& call);
  Policy& policy_named(const Call& call);
  void notify_policy(std::uint16_t type, const Policy& policy, Reply::To to,
                     Output& output) noexcept;
  [[nodiscard]] Reply describe(const Policy& policy, Reply::To to, std::uint16_t flags,
                               std::uint16_t type = XFRM_MSG_NEWPOLICY) const;

  [[nodiscard]] std::optional<Reply> next_state(Dump& dump, Reply::To to, Keys keys);
  [[nodiscard]] std::optional<Reply> next_policy(Dump& dump, Reply::To to);

  void tell_acquire(const dataplane::Event& event, Output& output) noexcept;
  void tell_mapping(const dataplane::Event& event, Output& output) noexcept;
  // Events and notifications: never the failure of what they tell of.
  static void tell(unsigned group, Output& output, const std::function<Reply()>& make) noexcept;

  bool restore_one(const Keep::Record& record, Output& output);

  dataplane::Dataplane& dataplane_;
  Keep* keep_ = nullptr;
  std::optional<Clock::time_point> deadline_;
  Joins joins_;
  States states_;
  PolicyRoutes routes_;
  Policies policies_;
  xfrm_userpolicy_default default_{XFRM_USERPOLICY_ACCEPT, XFRM_USERPOLICY_ACCEPT,
                                   XFRM_USERPOLICY_ACCEPT};
  xfrmu_spdhthresh threshold4_{32, 32}, threshold6_{128, 128};
  std::uint32_t next_acquire_ = 1;
};

}  // namespace espalier::tools::xfrm
