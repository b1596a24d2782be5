#include "tools/xfrm/policies.h"

#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>

#include "tools/xfrm/state.h"

namespace espalier::tools::xfrm {
namespace {

PolicyRoutes::Wish wish_of(const Policy& policy, const dataplane::PolicySpec& spec) {
  PolicyRoutes::Wish wish{spec, *policy.id, {}, {}};
  if (policy.templates.empty()) return wish;
  const xfrm_user_tmpl& t = policy.templates.front();
  wish.local = to_address(t.saddr, t.family);
  wish.remote = to_address(t.id.daddr, t.family);
  return wish;
}

using dataplane::Direction;
using dataplane::PolicyAction;
using dataplane::PolicyId;

constexpr std::size_t kMaxPolicies = std::size_t{1} << 20;
constexpr std::size_t kMaxTemplates = 6;  // XFRM_MAX_DEPTH

void check_template(const xfrm_user_tmpl& t) {
  if (t.family != AF_INET && t.family != AF_INET6)
    throw Refused(EINVAL, "Invalid family in template");
  if (t.mode >= XFRM_MODE_MAX) throw Refused(EINVAL, "Invalid mode in template");
  if (t.id.proto != IPPROTO_ESP && t.id.proto != IPPROTO_AH && t.id.proto != IPPROTO_COMP &&
      t.id.proto != 255 && t.id.proto != 0)
    throw Refused(EINVAL, "Invalid XFRM protocol in template");
  if (t.id.proto == IPPROTO_AH || t.id.proto == IPPROTO_COMP)
    throw Refused(EPROTONOSUPPORT, "of the protocols there is ESP only");
  // Without a state it is a trap like any other, and that is what libreswan has it for.
  if (t.mode != XFRM_MODE_TUNNEL && t.mode != XFRM_MODE_TRANSPORT)
    throw Refused(EPROTONOSUPPORT, "of the modes there is tunnel only");
}

std::vector<xfrm_user_tmpl> read_templates(const Request& request) {
  const std::span<const std::uint8_t> bytes = request.data(XFRMA_TMPL);
  const std::size_t count = bytes.size() / sizeof(xfrm_user_tmpl);
  if (count > kMaxTemplates) throw Refused(EINVAL, "Template count must be <= XFRM_MAX_DEPTH (6)");
  std::vector<xfrm_user_tmpl> out(count);
  for (std::size_t i = 0; i < count; ++i) {
    std::memcpy(&out[i], bytes.data() + i * sizeof(xfrm_user_tmpl), sizeof(xfrm_user_tmpl));
    if (out[i].family == 0) out[i].family = AF_INET;
    check_template(out[i]);
  }
  if (count > 1) throw Refused(EPROTONOSUPPORT, "one transform a policy: no bundles");
  return out;
}

// Which no mark and no interface leads into a device.
bool has_no_device(const Policy& policy) {
  return policy.info.dir == XFRM_POLICY_OUT && policy.mark.m == 0 && policy.if_id == 0;
}

}  // namespace

void check_direction(std::uint8_t direction) {
  if (direction >= XFRM_POLICY_MAX) throw Refused(EINVAL, "Invalid policy direction");
}

void check_policy_type(const Request& request) {
  const auto type = request.get<xfrm_userpolicy_type>(XFRMA_POLICY_TYPE);
  if (type && type->type != XFRM_POLICY_TYPE_MAIN) throw Refused(EINVAL, "Invalid policy type");
}

Policy read_policy(Request& request) {
  Policy policy;
  policy.info = request.read<xfrm_userpolicy_info>();
  const xfrm_userpolicy_info& info = policy.info;
  if (info.share > XFRM_SHARE_UNIQUE) throw Refused(EINVAL, "Invalid policy share");
  if (info.action > XFRM_POLICY_BLOCK) throw Refused(EINVAL, "Invalid policy action");
  static_cast<void>(to_selector(info.sel));
  check_direction(info.dir);
  if (info.index != 0 && (info.index & XFRM_POLICY_MASK) != info.dir)
    throw Refused(EINVAL, "Policy index doesn't match direction");
  check_policy_type(request);
  if (request.has(XFRMA_SEC_CTX)) throw Refused(EINVAL, "there are no security labels");
  policy.templates = read_templates(request);
  policy.mark = read_mark(request);
  policy.if_id = request.u32(XFRMA_IF_ID);
  return policy;
}

Policies::Key Policies::key_of(std::uint8_t direction, const xfrm_selector& selector,
                               const xfrm_mark& mark, std::uint32_t if_id) noexcept {
  std::array<std::uint8_t, sizeof(xfrm_selector)> bytes{};
  xfrm_selector clean = selector;
  // The bytes behind `proto` are no part of it.
  std::memset(&clean.proto + 1, 0,
              offsetof(xfrm_selector, ifindex) - offsetof(xfrm_selector, proto) - 1);
  std::memcpy(bytes.data(), &clean, sizeof clean);
  return {direction, mark.v, mark.m, if_id, bytes};
}

Policies::Key Policies::key_of(const Policy& policy) noexcept {
  return key_of(policy.info.dir, policy.info.sel, policy.mark, policy.if_id);
}

Policy* Policies::find(const xfrm_userpolicy_id& id, const xfrm_mark& mark,
                       std::uint32_t if_id) noexcept {
  std::uint64_t serial = 0;
  if (id.index != 0) {
    const auto found = by_index_.find(id.index);
    if (found != by_index_.end()) serial = found->second;
  } else {
    const auto found = by_key_.find(key_of(id.dir, id.sel, mark, if_id));
    if (found != by_key_.end()) serial = found->second;
  }
  const auto found = policies_.find(serial);
  if (found == policies_.end() || found->second.info.dir != id.dir) return nullptr;
  return &found->second;
}

Policy* Policies::find(PolicyId id) noexcept {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &policies_.at(found->second);
}

const Policy* Policies::find(PolicyId id) const noexcept {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : &policies_.at(found->second);
}

const Policy* Policies::before(std::uint64_t serial) const noexcept {
  const auto next = policies_.lower_bound(serial);
  return next == policies_.begin() ? nullptr : &std::prev(next)->second;
}

// The kernel's way: the direction in the lowest bits, 0 never.
std::uint32_t Policies::free_index(std::uint8_t direction) {
  for (;;) {
    std::uint32_t index = next_index_ | direction;
    next_index_ += 8;
    if (index == 0) index = 8;
    if (!by_index_.contains(index)) return index;
  }
}

// Packets that are forwarded and packets for this host come out of the same device: `in` and `fwd`
// are one check, which each of the two permits.
void Policies::install(Policy& policy) {
  dataplane::PolicySpec spec;
  spec.direction = policy.info.dir == XFRM_POLICY_OUT ? Direction::out : Direction::in;
  spec.selector = to_selector(policy.info.sel);
  spec.mark = {policy.mark.v, policy.mark.m};
  spec.priority = policy.info.priority;
  spec.if_id = policy.if_id;
  if (policy.info.action == XFRM_POLICY_BLOCK)
    spec.action = PolicyAction::discard;
  else if (policy.templates.empty())
    spec.action = PolicyAction::bypass;
  if (spec.action == PolicyAction::protect) {
    const xfrm_user_tmpl& t = policy.templates.front();
    policy.join = &joins_.take(t.reqid, to_address(t.saddr, t.family),
                               to_address(t.id.daddr, t.family), t.mode == XFRM_MODE_TUNNEL);
    spec.reqid = policy.join->number;
    spec.trap = spec.direction == Direction::out;
    // strongSwan makes the next SA before its peer has it, and changes over by the policy.
    if (spec.trap) spec.spi = dataplane::Spi{host_order(t.id.spi)};
  }
  try {
    policy.id = dataplane_.add_policy(spec);
    if (has_no_device(policy)) policy.way = routes_.open(wish_of(policy, spec));
  } catch (const std::invalid_argument& e) {
    uninstall(policy);
    throw Refused(EINVAL, e.what());
  } catch (const std::system_error& e) {
    uninstall(policy);
    throw Refused(e.code().value(), e.what());
  } catch (...) {
    uninstall(policy);
    throw;
  }
}

void Policies::uninstall(Policy& policy) noexcept {
  if (policy.id) dataplane_.remove_policy(*policy.id);
  if (policy.join != nullptr) joins_.drop(*policy.join);
  policy.way.reset();
  if (keep_ != nullptr) keep_->erase(policy.slot);
  policy.slot = Keep::kNone;
  policy.id.reset();
  policy.join = nullptr;
}

Policy& Policies::add(Policy policy, bool replace) {
  if (policies_.size() >= kMaxPolicies) throw Refused(ENOMEM, "too many policies");
  const auto same = by_key_.find(key_of(policy));
  Policy* const old = same == by_key_.end() ? nullptr : &policies_.at(same->second);
  if (old != nullptr && !replace) throw Refused(EEXIST);
  std::uint32_t& index = policy.info.index;
  if (old != nullptr)
    index = old->info.index;
  else if (index == 0 || by_index_.contains(index))
    index = free_index(policy.info.dir);
  // The new one first: at no moment is there none.
  install(policy);
  if (policy.since == State::Clock::time_point()) policy.since = State::Clock::now();
  policy.added = wall(policy.since);
  policy.serial = next_serial_++;
  const Policy& made = policy;
  try {
    by_id_.emplace(*made.id, made.serial);
    if (old == nullptr) by_key_.emplace(key_of(made), made.serial);
    if (old == nullptr) by_index_.emplace(index, made.serial);
    if (has_limits(policy)) look_at(policy, State::Clock::now());
    policies_.emplace(made.serial, std::move(policy));
  } catch (...) {
    forget_limits(policy);
    by_id_.erase(*made.id);
    if (old == nullptr) by_key_.erase(key_of(made));
    if (old == nullptr) by_index_.erase(index);
    uninstall(policy);
    throw;
  }
  Policy& kept = policies_.at(made.serial);
  put(kept);  // before the old one's record goes: a daemon after us finds one of the two
  if (old != nullptr) {
    same->second = by_index_.at(index) = made.serial;
    by_id_.erase(*old->id);
    forget_limits(*old);
    uninstall(*old);
    policies_.erase(old->serial);
  } else {
    ++counts_[made.info.dir];
  }
  return kept;
}

void Policies::put(Policy& policy) noexcept {
  if (keep_ == nullptr) return;
  try {
    Reply message(XFRM_MSG_NEWPOLICY, {});
    message.append(info_of(policy));
    put_attributes(policy, message);
    Keep::Numbers numbers;
    numbers.added_ns = static_cast<std::uint64_t>(
        std::chrono::nanoseconds(policy.since.time_since_epoch()).count());
    policy.slot = keep_->put(Keep::Kind::policy, message.bytes(), numbers);
  } catch (const std::bad_alloc&) {
    policy.slot = Keep::kNone;
  }
}

void Policies::put_all() noexcept {
  for (auto& [serial, policy] : policies_) put(policy);
}

void Policies::remove(Policy& policy) noexcept {
  by_key_.erase(key_of(policy));
  by_id_.erase(*policy.id);
  by_index_.erase(policy.info.index);
  --counts_[policy.info.dir];
  forget_limits(policy);
  uninstall(policy);
  policies_.erase(policy.serial);
}

// As the kernel, whatever its mark; but where several are named, as those of routed tunnels with
// marks are, the one that has such a template.
Policy& Policies::find(const xfrm_userpolicy_id& id, const Migration& migration) {
  Policy* found = nullptr;
  bool named = false;
  for (auto& [serial, policy] : policies_) {
    if (policy.info.dir != id.dir || !names(id.sel, policy.info.sel)) continue;
    if (migration.if_id != 0 && policy.if_id != migration.if_id) continue;
    named = true;
    if (found != nullptr && found->info.priority <= policy.info.priority) continue;
    if (!moved(migration, policy.templates).empty()) found = &policy;
  }
  if (!named) throw Refused(ENOENT, "Target policy not found");
  if (found == nullptr) throw Refused(ENODATA, "no template of the policy has these addresses");
  return *found;
}

void Policies::migrate(Policy& policy, const Migration& migration) {
  Policy next;
  next.info = policy.info;
  next.mark = policy.mark;
  next.if_id = policy.if_id;
  next.added = policy.added;
  next.since = policy.since;
  next.looked_at = policy.looked_at;
  next.serial = policy.serial;
  next.templates = moved(migration, policy.templates);
  install(next);
  try {
    by_id_.emplace(*next.id, next.serial);
  } catch (...) {
    uninstall(next);
    throw;
  }
  put(next);
  by_id_.erase(*policy.id);
  uninstall(policy);
  policy = std::move(next);
}

// The time of the last packet: strongSwan takes it for a sign of life of its peer.
xfrm_userpolicy_info Policies::info_of(const Policy& policy) const {
  xfrm_userpolicy_info out = policy.info;
  out.curlft = zeroed<xfrm_lifetime_cur>();
  out.curlft.add_time = static_cast<std::uint64_t>(policy.added);
  if (policy.join == nullptr) return out;
  const Direction direction = policy.info.dir == XFRM_POLICY_OUT ? Direction::out : Direction::in;
  for (const dataplane::SaId id : policy.join->states) {
    const auto status = dataplane_.sa(id);
    if (!status || status->direction != direction || !status->last_packet) continue;
    const auto used = static_cast<std::uint64_t>(wall(*status->last_packet));
    out.curlft.use_time = std::max<std::uint64_t>(out.curlft.use_time, used);
  }
  return out;
}

void Policies::put_attributes(const Policy& policy, Reply& reply) {
  if (!policy.templates.empty())
    reply.put(XFRMA_TMPL, std::span(reinterpret_cast<const std::uint8_t*>(policy.templates.data()),
                                    policy.templates.size() * sizeof(xfrm_user_tmpl)));
  put_policy_type(reply);
  if ((policy.mark.v | policy.mark.m) != 0) reply.put(XFRMA_MARK, policy.mark);
  if (policy.if_id != 0) reply.put(XFRMA_IF_ID, policy.if_id);
}

Policy Policies::foreign(const dataplane::PolicyStatus& status) {
  Policy policy;
  const dataplane::PolicySpec& spec = status.spec;
  policy.info.sel = from_selector(spec.selector);
  policy.info.lft = from_lifetime({});
  policy.info.priority = spec.priority;
  policy.info.dir = spec.direction == Direction::out ? XFRM_POLICY_OUT : XFRM_POLICY_IN;
  policy.info.action = spec.action == PolicyAction::discard ? XFRM_POLICY_BLOCK : XFRM_POLICY_ALLOW;
  policy.mark = {spec.mark.value, spec.mark.mask};
  policy.if_id = spec.if_id;
  policy.id = status.id;
  if (spec.action != PolicyAction::protect) return policy;
  xfrm_user_tmpl& t = policy.templates.emplace_back(zeroed<xfrm_user_tmpl>());
  t.family = policy.info.sel.family;
  t.id.proto = IPPROTO_ESP;
  t.reqid = spec.reqid;
  t.mode = XFRM_MODE_TUNNEL;
  t.aalgos = t.ealgos = t.calgos = ~0U;
  return policy;
}

}  // namespace espalier::tools::xfrm
