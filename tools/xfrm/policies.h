// The policies as XFRM knows them, over those of the data plane.
//
// Thread safety: the control thread.
#pragma once

#include <cstdint>
#include <ctime>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "dataplane/dataplane.h"
#include "tools/keep.h"
#include "tools/xfrm/joins.h"
#include "tools/xfrm/message.h"
#include "tools/xfrm/migration.h"
#include "tools/xfrm/policy_routes.h"
#include "tools/xfrm/state.h"

namespace espalier::tools::xfrm {

struct Policy {
  xfrm_userpolicy_info info = zeroed<xfrm_userpolicy_info>();
  xfrm_mark mark = zeroed<xfrm_mark>();
  std::uint32_t if_id = 0;
  std::vector<xfrm_user_tmpl> templates;

  // The table's.
  std::uint64_t serial = 0;
  std::time_t added = 0;
  std::optional<dataplane::PolicyId> id;
  Joins::Join* join = nullptr;             // of the template
  std::unique_ptr<PolicyRoutes::Way> way;  // of one without a device
  Keep::Slot slot = Keep::kNone;
  State::Clock::time_point since;                     // `added`, of the steady clock
  std::optional<State::Clock::time_point> looked_at;  // when its limits of time are next
};

// NEWPOLICY and UPDPOLICY, checked as the kernel does. Throws Refused.
[[nodiscard]] Policy read_policy(Request& request);
// Policies of the sub type, which nobody uses, are refused.
void check_policy_type(const Request& request);
void check_direction(std::uint8_t direction);
// As bytes: between the members of the structure a copy of it would have what was on the stack.
inline void put_policy_type(Reply& reply) {
  constexpr std::array<std::uint8_t, sizeof(xfrm_userpolicy_type)> kMain{};
  reply.put(XFRMA_POLICY_TYPE, std::span<const std::uint8_t>(kMain));
}
// Has it one of time? The others are kept and listed only, as by the kernel.
[[nodiscard]] bool has_limits(const Policy& policy) noexcept;

class Policies {
 public:
  Policies(dataplane::Dataplane& dataplane, Joins& joins, PolicyRoutes& routes)
      : dataplane_(dataplane), joins_(joins), routes_(routes) {}
  Policies(const Policies&) = delete;
  Policies& operator=(const Policies&) = delete;

  // Policies are kept there from now on.
  void set_keep(Keep& keep) noexcept { keep_ = &keep; }
  // All of them are put into the memory that is in use now.
  void put_all() noexcept;

  // By direction and index if that is not 0, otherwise by what makes a policy the same one.
  [[nodiscard]] Policy* find(const xfrm_userpolicy_id& id, const xfrm_mark& mark,
                             std::uint32_t if_id) noexcept;
  [[nodiscard]] Policy* find(dataplane::PolicyId id) noexcept;
  [[nodiscard]] const Policy* find(dataplane::PolicyId id) const noexcept;

  // `replace`: in the place of the same policy, if there is one. Throws Refused; then nothing has
  // changed.
  Policy& add(Policy policy, bool replace);
  void remove(Policy& policy) noexcept;
  // The policy that is to move, and its move. It stays where it is in listings. Both throw Refused.
  [[nodiscard]] Policy& find(const xfrm_userpolicy_id& id, const Migration& migration);
  void migrate(Policy& policy, const Migration& migration);

  // One that has come to a limit of time; at a hard one it is the caller's to remove.
  struct Due {
    Policy* policy;
    bool hard;
  };
  [[nodiscard]] std::optional<Due> take_due(State::Clock::time_point now);
  [[nodiscard]] std::optional<State::Clock::time_point> next_due() const noexcept;

  // The structure and the attributes of NEWPOLICY.
  [[nodiscard]] xfrm_userpolicy_info info_of(const Policy& policy) const;
  static void put_attributes(const Policy& policy, Reply& reply);
  [[nodiscard]] static Policy foreign(const dataplane::PolicyStatus& status);

  [[nodiscard]] std::size_t count(std::uint8_t direction) const noexcept {
    return counts_[direction];
  }
  [[nodiscard]] const Policy* before(std::uint64_t serial) const noexcept;

 private:
  // Direction, mark, if_id, selector.
  using Key = std::tuple<std::uint8_t, std::uint32_t, std::uint32_t, std::uint32_t,
                         std::array<std::uint8_t, sizeof(xfrm_selector)>>;
  [[nodiscard]] static Key key_of(std::uint8_t direction, const xfrm_selector& selector,
                                  const xfrm_mark& mark, std::uint32_t if_id) noexcept;
  [[nodiscard]] static Key key_of(const Policy& policy) noexcept;
  // Gives it a policy of the data plane; and takes that away again.
  void install(Policy& policy);
  void uninstall(Policy& policy) noexcept;
  void put(Policy& policy) noexcept;
  [[nodiscard]] std::uint32_t free_index(std::uint8_t direction);
  void look_at(Policy& policy, State::Clock::time_point when);
  void forget_limits(const Policy& policy) noexcept;

  dataplane::Dataplane& dataplane_;
  Joins& joins_;
  PolicyRoutes& routes_;
  std::map<std::uint64_t, Policy> policies_;  // by serial
  std::map<Key, std::uint64_t> by_key_;
  std::unordered_map<dataplane::PolicyId, std::uint64_t> by_id_;
  std::unordered_map<std::uint32_t, std::uint64_t> by_index_;
  std::multimap<State::Clock::time_point, std::uint64_t> limits_;  // when to look at which
  std::array<std::size_t, XFRM_POLICY_MAX> counts_{};
  std::uint64_t next_serial_ = 1;
  std::uint32_t next_index_ = 0;
  Keep* keep_ = nullptr;
};

}  // namespace espalier::tools::xfrm
