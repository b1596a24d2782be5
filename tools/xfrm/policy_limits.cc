// Policies that end: limits of time, since they were added and since they were used.
#include <algorithm>

#include "tools/xfrm/policies.h"

namespace espalier::tools::xfrm {
namespace {

using Clock = State::Clock;
using std::chrono::seconds;

constexpr seconds kAgain{30};  // XFRM_KM_TIMEOUT: that often a soft limit is told
constexpr std::uint64_t kLongest = std::uint64_t{1} << 32;

struct Outlook {
  bool hard = false, soft = false;
  seconds next = seconds(kLongest);  // until there is something to tell
};

// As the kernel's xfrm_policy_timer(). `age`, `idle`: since it was added, and used.
Outlook outlook(const xfrm_lifetime_cfg& limits, seconds age, seconds idle) {
  Outlook out;
  const auto left = [](std::uint64_t limit, seconds since) {
    return seconds(std::min(limit, kLongest)) - since;
  };
  for (const auto& [limit, since] :
       {std::pair(limits.hard_add_expires_seconds, age), {limits.hard_use_expires_seconds, idle}}) {
    if (limit == 0) continue;
    if (left(limit, since) <= seconds(0)) out.hard = true;
    out.next = std::min(out.next, left(limit, since));
  }
  for (const auto& [limit, since] :
       {std::pair(limits.soft_add_expires_seconds, age), {limits.soft_use_expires_seconds, idle}}) {
    if (limit == 0) continue;
    const bool reached = left(limit, since) <= seconds(0);
    if (reached) out.soft = true;
    out.next = std::min(out.next, reached ? kAgain : left(limit, since));
  }
  return out;
}

}  // namespace

bool has_limits(const Policy& policy) noexcept {
  const xfrm_lifetime_cfg& limits = policy.info.lft;
  return (limits.hard_add_expires_seconds | limits.hard_use_expires_seconds |
          limits.soft_add_expires_seconds | limits.soft_use_expires_seconds) != 0;
}

void Policies::look_at(Policy& policy, Clock::time_point when) {
  limits_.emplace(when, policy.serial);
  policy.looked_at = when;
}

void Policies::forget_limits(const Policy& policy) noexcept {
  if (!policy.looked_at) return;
  const auto [first, last] = limits_.equal_range(*policy.looked_at);
  const auto is_it = [&](const auto& entry) { return entry.second == policy.serial; };
  if (const auto it = std::find_if(first, last, is_it); it != last) limits_.erase(it);
}

std::optional<Policies::Due> Policies::take_due(Clock::time_point now) {
  while (!limits_.empty() && limits_.begin()->first <= now) {
    Policy& policy = policies_.at(limits_.begin()->second);
    const xfrm_lifetime_cur used = info_of(policy).curlft;
    const seconds age = std::chrono::floor<seconds>(now - policy.since);
    const auto since_use = static_cast<std::int64_t>(used.use_time - used.add_time);
    const seconds idle = used.use_time == 0 ? age : age - seconds(since_use);
    const Outlook next = outlook(policy.info.lft, age, idle);
    if (next.hard) return Due{&policy, true};
    auto entry = limits_.extract(limits_.begin());
    entry.key() = now + std::max(next.next, seconds(1));
    policy.looked_at = entry.key();
    limits_.insert(std::move(entry));
    if (next.soft) return Due{&policy, false};
  }
  return std::nullopt;
}

std::optional<Clock::time_point> Policies::next_due() const noexcept {
  if (limits_.empty()) return std::nullopt;
  return limits_.begin()->first;
}

}  // namespace espalier::tools::xfrm
