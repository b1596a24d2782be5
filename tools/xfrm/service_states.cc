// The requests about states.
#include <netinet/in.h>

#include <algorithm>
#include <cerrno>
#include <fstream>

#include "tools/xfrm/service.h"

namespace espalier::tools::xfrm {
namespace {

constexpr std::size_t kPage = 32;

// How long a larval state waits for its keys; IKE daemons set it.
std::chrono::seconds larval_life() {
  constexpr unsigned kKernelDefault = 30, kLongest = 86400;
  unsigned seconds = 0;
  std::ifstream file("/proc/sys/net/core/xfrm_acq_expires");
  if (!(file >> seconds) || seconds == 0) seconds = kKernelDefault;
  return std::chrono::seconds(std::min(seconds, kLongest));
}

bool begins_with(const xfrm_address_t& address, const xfrm_address_t& prefix, std::uint16_t family,
                 std::uint8_t length) {
  return ifaces::Prefix{to_address(prefix, family), length}.contains(to_address(address, family));
}

bool passes(const Dump& dump, const State& state) {
  if (dump.protocol != 0 && dump.protocol != state.info.id.proto) return false;
  if (!dump.filter) return true;
  const xfrm_address_filter& filter = *dump.filter;
  if (filter.family != AF_UNSPEC && filter.family != state.info.family) return false;
  return begins_with(state.info.saddr, filter.saddr, state.info.family, filter.splen) &&
         begins_with(state.info.id.daddr, filter.daddr, state.info.family, filter.dplen);
}

xfrm_usersa_id id_of(const State& state) {
  auto id = zeroed<xfrm_usersa_id>();
  id.daddr = state.info.id.daddr;
  id.spi = state.info.id.spi;
  id.family = state.info.family;
  id.proto = state.info.id.proto;
  return id;
}

}  // namespace

Reply Service::describe(const State& state, Reply::To to, std::uint16_t flags, Keys keys,
                        std::uint16_t type) const {
  return message_of(state, states_.status(state), type, to, flags, keys);
}

void Service::notify_state(std::uint16_t type, const State& state, Reply::To to,
                           Output& output) noexcept {
  for (const Keys keys : {Keys::with, Keys::without}) {
    const std::size_t before = output.notices.size();
    tell(XFRMNLGRP_SA, output, [&] {
      if (type != XFRM_MSG_DELSA) return describe(state, to, 0, keys, type);
      const Status status = states_.status(state);
      Reply reply(type, to);
      reply.append(id_of(state));
      reply.put(XFRMA_SA, info_of(state, status));
      put_attributes(state, status, reply, keys);
      return reply;
    });
    if (output.notices.size() > before) output.notices.back().keys = keys;
  }
}

void Service::add_state(const Call& call) {
  const State& state = states_.add(read_state(call.request));
  notify_state(XFRM_MSG_NEWSA, state, call.to(), call.output);
}

void Service::update_state(const Call& call) {
  const State& state = states_.update(read_state(call.request));
  notify_state(XFRM_MSG_UPDSA, state, call.to(), call.output);
}

State& Service::state_named(const Call& call, const xfrm_usersa_id& id) {
  const xfrm_mark mark = read_mark(call.request);
  if (id.family != AF_INET && id.family != AF_INET6) throw Refused(ESRCH);
  auto key = zeroed<xfrm_id>();
  key.daddr = id.daddr;
  key.spi = id.spi;
  key.proto = id.proto;
  State* const state = states_.find(key, id.family, mark.v & mark.m);
  if (state != nullptr) return *state;
  const ifaces::IpAddress destination = to_address(id.daddr, id.family);
  for (const auto direction : {dataplane::Direction::in, dataplane::Direction::out}) {
    const auto other =
        dataplane_.find_sa(direction, dataplane::Spi{host_order(id.spi)}, destination);
    if (other && id.proto == IPPROTO_ESP && !owns(*other))
      throw Refused(EPERM, "the SA belongs to the configuration or the control socket");
  }
  throw Refused(ESRCH);
}

void Service::delete_state(const Call& call) {
  State& state = state_named(call, call.request.read<xfrm_usersa_id>());
  notify_state(XFRM_MSG_DELSA, state, call.to(), call.output);
  states_.remove(state);
}

void Service::get_state(const Call& call) {
  const State& state = state_named(call, call.request.read<xfrm_usersa_id>());
  call.output.replies.push_back(describe(state, call.to(), 0, call.client.keys).datagram());
}

void Service::allocate_spi(const Call& call) {
  const auto body = call.request.read<xfrm_userspi_info>();
  const std::uint8_t protocol = body.info.id.proto;
  if (protocol != IPPROTO_ESP && protocol != IPPROTO_AH && protocol != IPPROTO_COMP)
    throw Refused(EINVAL, "Invalid protocol, must be one of AH, ESP, IPCOMP");
  if (body.min > body.max) throw Refused(EINVAL, "Invalid SPI range: min > max");
  if (protocol != IPPROTO_ESP) throw Refused(EPROTONOSUPPORT, "of the protocols there is ESP only");
  if (body.info.family != AF_INET && body.info.family != AF_INET6)
    throw Refused(EINVAL, "Invalid address family");
  State state;
  state.info.id = body.info.id;
  state.info.saddr = body.info.saddr;
  state.info.family = state.info.sel.family = body.info.family;
  state.info.sel.saddr = body.info.saddr;
  state.info.sel.daddr = body.info.id.daddr;
  constexpr std::uint8_t kBits4 = 32, kBits6 = 128;
  state.info.sel.prefixlen_s = state.info.sel.prefixlen_d =
      body.info.family == AF_INET ? kBits4 : kBits6;
  state.info.mode = body.info.mode;
  state.info.reqid = body.info.reqid;
  state.info.seq = body.info.seq;
  state.info.lft = from_lifetime({});
  state.mark = read_mark(call.request);
  state.if_id = call.request.u32(XFRMA_IF_ID);
  const std::chrono::seconds life = larval_life();
  state.info.lft.hard_add_expires_seconds = static_cast<std::uint64_t>(life.count());
  const State& made =
      states_.allocate_spi(std::move(state), body.min, body.max, Clock::now() + life);
  call.output.replies.push_back(describe(made, call.to(), 0, call.client.keys).datagram());
}

void Service::flush_states(const Call& call) {
  const auto body = call.request.fixed<xfrm_usersa_flush>();
  bool any = false;
  std::uint64_t at = ~std::uint64_t{0};
  while (const State* const state = states_.before(at)) {
    at = state->serial;
    if (body.proto != 0 && body.proto != 255 && body.proto != state->info.id.proto) continue;
    states_.remove(*states_.find(at));
    any = true;
  }
  if (!any) return;
  tell(XFRMNLGRP_SA, call.output, [&] {
    Reply reply(XFRM_MSG_FLUSHSA, call.to());
    reply.append(body);
    return reply;
  });
}

std::optional<Reply> Service::next_state(Dump& dump, Reply::To to, Keys keys) {
  while (!dump.own_done) {
    const State* const state = states_.before(dump.before);
    if (state == nullptr) {
      dump.own_done = true;
      break;
    }
    dump.before = state->serial;
    if (passes(dump, *state)) return describe(*state, to, NLM_F_MULTI, keys);
  }
  for (;;) {
    const auto page = dataplane_.sas(dataplane::SaId{dump.after}, kPage);
    if (page.empty()) return std::nullopt;
    for (const dataplane::SaStatus& status : page) {
      dump.after = static_cast<std::uint32_t>(status.id);
      if (states_.find(status.id) != nullptr) continue;
      const State state = foreign_state(status);
      if (passes(dump, state)) return describe(state, to, NLM_F_MULTI, keys);
    }
  }
}

void Service::get_state_info(const Call& call) {
  const auto flags = call.request.fixed<std::uint32_t>();
  const auto count = static_cast<std::uint32_t>(dataplane_.sa_count() + states_.larval_count());
  Reply reply(XFRM_MSG_NEWSADINFO, call.to());
  reply.append(flags);
  reply.put(XFRMA_SAD_CNT, count);
  constexpr std::uint32_t kBuckets = 8, kMostBuckets = 1 << 20;
  reply.put(XFRMA_SAD_HINFO, xfrmu_sadhinfo{kBuckets, kMostBuckets});
  call.output.replies.push_back(reply.datagram());
}

Reply Service::event_values(const State& state, std::uint32_t flags, Reply::To to) const {
  const Status status = states_.status(state);
  auto body = zeroed<xfrm_aevent_id>();
  body.sa_id = id_of(state);
  body.saddr = state.info.saddr;
  body.reqid = state.info.reqid;
  body.flags = flags;
  Reply reply(XFRM_MSG_NEWAE, to);
  reply.append(body);
  put_replay(state, status, reply);
  reply.put(XFRMA_LTIME_VAL, lifetime_of(state, status));
  if ((flags & XFRM_AE_RTHR) != 0) reply.put(XFRMA_REPLAY_THRESH, state.replay_threshold);
  if ((flags & XFRM_AE_ETHR) != 0) reply.put(XFRMA_ETIMER_THRESH, state.timer_threshold);
  if ((state.mark.v | state.mark.m) != 0) reply.put(XFRMA_MARK, state.mark);
  if (state.if_id != 0) reply.put(XFRMA_IF_ID, state.if_id);
  return reply;
}

void Service::get_event_values(const Call& call) {
  const auto asked = call.request.read<xfrm_aevent_id>();
  const State& state = state_named(call, asked.sa_id);
  call.output.replies.push_back(event_values(state, asked.flags, call.to()).datagram());
}

void Service::set_event_values(const Call& call) {
  const auto body = call.request.read<xfrm_aevent_id>();
  const Request& request = call.request;
  if (!request.has(XFRMA_REPLAY_VAL) && !request.has(XFRMA_REPLAY_ESN_VAL) &&
      !request.has(XFRMA_LTIME_VAL) && !request.has(XFRMA_ETIMER_THRESH) &&
      !request.has(XFRMA_REPLAY_THRESH))
    throw Refused(EINVAL, "Missing required attribute for AE");
  if ((request.header().nlmsg_flags & NLM_F_REPLACE) == 0)
    throw Refused(EINVAL, "NLM_F_REPLACE flag is required");
  State& state = state_named(call, body.sa_id);
  if (state.larval()) throw Refused(EINVAL, "SA must be in VALID state");
  if (const auto numbers = read_numbers(request, state)) states_.advance(state, *numbers);
  if (const auto counted = request.get<xfrm_lifetime_cur>(XFRMA_LTIME_VAL))
    states_.count_from(state, *counted);
  read_thresholds(request, state);
  states_.put(state);
  tell(XFRMNLGRP_AEVENTS, call.output, [&] { return event_values(state, XFRM_AE_CU, call.to()); });
}

// An IKE daemon's word that a state has come to an end: as if its own limit had.
void Service::expire_state(const Call& call) {
  const auto body = call.request.read<xfrm_user_expire>();
  const xfrm_usersa_info& info = body.state;
  const xfrm_mark mark = read_mark(call.request);
  State* const state = info.family == AF_INET || info.family == AF_INET6
                           ? states_.find(info.id, info.family, mark.v & mark.m)
                           : nullptr;
  if (state == nullptr) throw Refused(ENOENT);
  if (state->larval()) throw Refused(EINVAL, "SA must be in VALID state");
  tell_expired(*state, body.hard != 0, call.output, call.client.portid);
  if (body.hard != 0) states_.remove(*state);
}

}  // namespace espalier::tools::xfrm
