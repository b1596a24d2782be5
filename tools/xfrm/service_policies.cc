// The requests about policies.
#include <algorithm>
#include <cerrno>

#include "tools/xfrm/service.h"

namespace espalier::tools::xfrm {
namespace {

constexpr std::size_t kPage = 32;

}  // namespace

Reply Service::describe(const Policy& policy, Reply::To to, std::uint16_t flags,
                        std::uint16_t type) const {
  Reply reply(type, to, flags);
  reply.append(policies_.info_of(policy));
  Policies::put_attributes(policy, reply);
  return reply;
}

void Service::notify_policy(std::uint16_t type, const Policy& policy, Reply::To to,
                            Output& output) noexcept {
  tell(XFRMNLGRP_POLICY, output, [&] {
    if (type != XFRM_MSG_DELPOLICY) return describe(policy, to, 0, type);
    Reply reply(type, to);
    auto id = zeroed<xfrm_userpolicy_id>();
    id.sel = policy.info.sel;
    id.dir = policy.info.dir;
    reply.append(id);
    reply.put(XFRMA_POLICY, policies_.info_of(policy));
    Policies::put_attributes(policy, reply);
    return reply;
  });
}

void Service::add_policy(const Call& call) {
  const std::uint16_t type = call.request.header().nlmsg_type;
  const Policy& policy = policies_.add(read_policy(call.request), type == XFRM_MSG_UPDPOLICY);
  notify_policy(type, policy, call.to(), call.output);
}

Policy& Service::policy_named(const Call& call) {
  const auto id = call.request.read<xfrm_userpolicy_id>();
  check_policy_type(call.request);
  check_direction(id.dir);
  Policy* const policy = policies_.find(id, read_mark(call.request), call.request.u32(XFRMA_IF_ID));
  if (policy == nullptr) throw Refused(ENOENT);
  return *policy;
}

void Service::delete_policy(const Call& call) {
  Policy& policy = policy_named(call);
  notify_policy(XFRM_MSG_DELPOLICY, policy, call.to(), call.output);
  policies_.remove(policy);
}

void Service::get_policy(const Call& call) {
  call.output.replies.push_back(describe(policy_named(call), call.to(), 0).datagram());
}

void Service::flush_policies(const Call& call) {
  call.request.read_attributes(0);
  check_policy_type(call.request);
  bool any = false;
  while (const Policy* const policy = policies_.before(~std::uint64_t{0})) {
    policies_.remove(const_cast<Policy&>(*policy));  // NOLINT(*-const-cast): ours
    any = true;
  }
  if (!any) return;
  tell(XFRMNLGRP_POLICY, call.output, [&] {
    Reply reply(XFRM_MSG_FLUSHPOLICY, call.to());
    put_policy_type(reply);
    return reply;
  });
}

void Service::tell_policy_expired(const Policy& policy, bool hard, Output& output,
                                  std::uint32_t portid) noexcept {
  tell(XFRMNLGRP_EXPIRE, output, [&] {
    Reply reply(XFRM_MSG_POLEXPIRE, {portid, 0});
    auto body = zeroed<xfrm_user_polexpire>();
    body.pol = policies_.info_of(policy);
    body.hard = hard ? 1 : 0;
    reply.append(body);
    Policies::put_attributes(policy, reply);
    return reply;
  });
}

void Service::expire_policy(const Call& call) {
  const auto body = call.request.read<xfrm_user_polexpire>();
  check_policy_type(call.request);
  check_direction(body.pol.dir);
  auto id = zeroed<xfrm_userpolicy_id>();
  id.sel = body.pol.sel;
  id.index = body.pol.index;
  id.dir = body.pol.dir;
  Policy* const policy = policies_.find(id, read_mark(call.request), call.request.u32(XFRMA_IF_ID));
  if (policy == nullptr) throw Refused(ENOENT);
  tell_policy_expired(*policy, body.hard != 0, call.output, call.client.portid);
  if (body.hard != 0) policies_.remove(*policy);
}

std::optional<Reply> Service::next_policy(Dump& dump, Reply::To to) {
  if (!dump.own_done) {
    if (const Policy* const policy = policies_.before(dump.before)) {
      dump.before = policy->serial;
      return describe(*policy, to, NLM_F_MULTI);
    }
    dump.own_done = true;
  }
  for (;;) {
    const auto page = dataplane_.policies(dataplane::PolicyId{dump.after}, kPage);
    if (page.empty()) return std::nullopt;
    for (const dataplane::PolicyStatus& status : page) {
      dump.after = static_cast<std::uint32_t>(status.id);
      if (policies_.find(status.id) == nullptr)
        return describe(Policies::foreign(status), to, NLM_F_MULTI);
    }
  }
}

// ------------------------------------------------------------------------- figures and defaults

void Service::get_policy_info(const Call& call) {
  const auto flags = call.request.fixed<std::uint32_t>();
  auto counts = zeroed<xfrmu_spdinfo>();
  counts.incnt = static_cast<std::uint32_t>(policies_.count(XFRM_POLICY_IN));
  counts.outcnt = static_cast<std::uint32_t>(policies_.count(XFRM_POLICY_OUT));
  counts.fwdcnt = static_cast<std::uint32_t>(policies_.count(XFRM_POLICY_FWD));
  for (const dataplane::PolicyStatus& status : dataplane_.policies()) {
    if (policies_.find(status.id) != nullptr) continue;
    ++(status.spec.direction == dataplane::Direction::out ? counts.outcnt : counts.incnt);
  }
  Reply reply(XFRM_MSG_NEWSPDINFO, call.to());
  reply.append(flags);
  reply.put(XFRMA_SPD_INFO, counts);
  constexpr std::uint32_t kBuckets = 7, kMostBuckets = 1 << 20;
  reply.put(XFRMA_SPD_HINFO, xfrmu_spdhinfo{kBuckets, kMostBuckets});
  reply.put(XFRMA_SPD_IPV4_HTHRESH, threshold4_);
  reply.put(XFRMA_SPD_IPV6_HTHRESH, threshold6_);
  call.output.replies.push_back(reply.datagram());
}

// A matter of the kernel's hash tables: kept and given back.
void Service::set_policy_info(const Call& call) {
  constexpr std::uint8_t kBits4 = 32, kBits6 = 128;
  call.request.read_plain_attributes(sizeof(call.request.fixed<std::uint32_t>()));
  const auto four = call.request.get<xfrmu_spdhthresh>(XFRMA_SPD_IPV4_HTHRESH);
  const auto six = call.request.get<xfrmu_spdhthresh>(XFRMA_SPD_IPV6_HTHRESH);
  if (four && (four->lbits > kBits4 || four->rbits > kBits4))
    throw Refused(EINVAL, "Invalid hash threshold (must be <= 32 for IPv4)");
  if (six && (six->lbits > kBits6 || six->rbits > kBits6))
    throw Refused(EINVAL, "Invalid hash threshold (must be <= 128 for IPv6)");
  if (four) threshold4_ = *four;
  if (six) threshold6_ = *six;
}

// What no policy names never passes a device of ours, whatever the default is.
void Service::set_default(const Call& call) {
  const auto asked = call.request.fixed<xfrm_userpolicy_default>();
  const auto take = [](std::uint8_t& value, std::uint8_t wish) {
    if (wish == XFRM_USERPOLICY_BLOCK || wish == XFRM_USERPOLICY_ACCEPT) value = wish;
  };
  take(default_.in, asked.in);
  take(default_.fwd, asked.fwd);
  take(default_.out, asked.out);
  tell(XFRMNLGRP_POLICY, call.output, [&] {
    Reply reply(XFRM_MSG_GETDEFAULT, call.to());
    reply.append(default_);
    return reply;
  });
}

void Service::get_default(const Call& call) {
  Reply reply(XFRM_MSG_GETDEFAULT, call.to());
  reply.append(default_);
  call.output.replies.push_back(reply.datagram());
}

}  // namespace espalier::tools::xfrm
