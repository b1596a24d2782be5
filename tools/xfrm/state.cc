#include "tools/xfrm/state.h"

#include <netinet/in.h>
#include <netinet/udp.h>

#include <algorithm>
#include <cerrno>

namespace espalier::tools::xfrm {
namespace {

using dataplane::Direction;

void check_selector(const xfrm_usersa_info& info) {
  xfrm_selector selector = info.sel;
  if (selector.family == AF_UNSPEC) {
    if (selector.prefixlen_s == 0 && selector.prefixlen_d == 0) return;
    selector.family = info.family;
  }
  if (selector.family != AF_INET && selector.family != AF_INET6)
    throw Refused(EINVAL, "Invalid address family in selector");
  dataplane::Selector all;
  const dataplane::Selector asked = to_selector(selector);
  all.source.address = ifaces::IpAddress::any(asked.source.address.family);
  all.destination.address = all.source.address;
  if (asked != all)
    throw Refused(EINVAL, "a selector of a state is not looked at: give it to the policies");
}

void check_algorithm_attributes(const Request& request) {
  if (request.has(XFRMA_ALG_COMP)) throw Refused(EINVAL, "Invalid attribute for ESP: COMP");
  const bool aead = request.has(XFRMA_ALG_AEAD);
  const bool other = request.has(XFRMA_ALG_AUTH) || request.has(XFRMA_ALG_AUTH_TRUNC) ||
                     request.has(XFRMA_ALG_CRYPT);
  if (!aead && !other)
    throw Refused(EINVAL,
                  "Missing required attribute for ESP: at least one of AUTH, AUTH_TRUNC, CRYPT, "
                  "AEAD");
  if (aead && other)
    throw Refused(EINVAL,
                  "Invalid attribute combination for ESP: AEAD can't be used with AUTH, "
                  "AUTH_TRUNC, CRYPT");
}

std::size_t length_of(const ReplaySizes& esn) {
  return sizeof esn + std::size_t{esn.bmp_len} * sizeof(std::uint32_t);
}

void read_replay(const Request& request, State& state) {
  if (const auto old = request.get<xfrm_replay_state>(XFRMA_REPLAY_VAL)) {
    state.oseq = old->oseq;
    state.seq = old->seq;
  }
  state.esn = request.get<ReplaySizes>(XFRMA_REPLAY_ESN_VAL);
  const bool extended = (state.info.flags & XFRM_STATE_ESN) != 0;
  if (!state.esn) {
    if (extended) throw Refused(EINVAL, "Missing required attribute for ESN");
    return;
  }
  const std::size_t length = request.data(XFRMA_REPLAY_ESN_VAL).size();
  if (state.esn->bmp_len > XFRMA_REPLAY_ESN_MAX / 32)
    throw Refused(EINVAL, "ESN bitmap length must be <= 128");
  if (length < length_of(*state.esn) && length != sizeof(ReplaySizes))
    throw Refused(EINVAL, "ESN attribute is too short to fit the full bitmap length");
  if (state.info.replay_window != 0)
    throw Refused(EINVAL, "ESN not compatible with legacy replay_window");
  if (state.esn->replay_window > state.esn->bmp_len * 32)
    throw Refused(EINVAL, "ESN replay window is larger than the bitmap");
  state.oseq = std::uint64_t{extended ? state.esn->oseq_hi : 0} << 32 | state.esn->oseq;
  state.seq = std::uint64_t{extended ? state.esn->seq_hi : 0} << 32 | state.esn->seq;
}

void check_protocol_and_mode(const xfrm_usersa_info& info) {
  if (info.id.proto == IPPROTO_AH || info.id.proto == IPPROTO_COMP)
    throw Refused(EPROTONOSUPPORT, "Requested type not found");
  if (info.id.proto != IPPROTO_ESP) throw Refused(EINVAL, "Unsupported protocol");
  if (info.mode >= XFRM_MODE_MAX) throw Refused(EINVAL, "Unsupported mode");
  if (info.mode != XFRM_MODE_TUNNEL)
    throw Refused(EPROTONOSUPPORT, "Requested mode not found: there is tunnel mode only");
}

// The kernel takes no window for "no anti-replay", which would be silence about replays for
// everybody who forgets the option: then it is ours. A window under 32 is made 32: what is in it is
// checked all the same.
std::uint32_t window_of(const State& state) {
  constexpr std::uint32_t kLeast = 32;
  const std::uint32_t asked = state.esn ? state.esn->replay_window : state.info.replay_window;
  return asked == 0 ? dataplane::SaSpec{}.window_bits : std::max(asked, kLeast);
}

}  // namespace

xfrm_mark read_mark(const Request& request) {
  xfrm_mark mark = request.get<xfrm_mark>(XFRMA_MARK).value_or(zeroed<xfrm_mark>());
  mark.v &= mark.m;
  return mark;
}

void read_thresholds(const Request& request, State& state) {
  const auto take = [&](int attribute, std::uint32_t& value) {
    if (request.has(attribute)) value = request.u32(attribute);
  };
  take(XFRMA_REPLAY_THRESH, state.replay_threshold);
  take(XFRMA_ETIMER_THRESH, state.timer_threshold);
  take(XFRMA_MTIMER_THRESH, state.mapping_threshold);
}

std::optional<Numbers> read_numbers(const Request& request, const State& state) {
  if (!state.esn) {
    const auto given = request.get<xfrm_replay_state>(XFRMA_REPLAY_VAL);
    return given ? std::optional(Numbers{given->oseq, given->seq}) : std::nullopt;
  }
  const auto given = request.get<ReplaySizes>(XFRMA_REPLAY_ESN_VAL);
  if (!given) return std::nullopt;
  const std::size_t length = request.data(XFRMA_REPLAY_ESN_VAL).size();
  if (given->bmp_len > XFRMA_REPLAY_ESN_MAX / 32 || length < length_of(*given))
    throw Refused(EINVAL, "ESN attribute is too short");
  if (given->bmp_len != state.esn->bmp_len)
    throw Refused(EINVAL, "New ESN size doesn't match the existing SA's ESN size");
  if (given->replay_window > given->bmp_len * 32)
    throw Refused(EINVAL, "ESN replay window is longer than the bitmap");
  const bool extended = (state.info.flags & XFRM_STATE_ESN) != 0;
  return Numbers{std::uint64_t{extended ? given->oseq_hi : 0} << 32 | given->oseq,
                 std::uint64_t{extended ? given->seq_hi : 0} << 32 | given->seq};
}

State read_state(Request& request) {
  State state;
  state.info = request.read<xfrm_usersa_info>();
  if (state.info.family != AF_INET && state.info.family != AF_INET6)
    throw Refused(EINVAL, "Invalid address family");
  check_selector(state.info);
  check_protocol_and_mode(state.info);
  check_algorithm_attributes(request);
  if (state.info.id.spi == 0) throw Refused(EINVAL, "SPI 0 is reserved; choose another");
  if (request.has(XFRMA_OFFLOAD_DEV))
    throw Refused(EINVAL, "Kernel doesn't support hardware offload");
  if (request.has(XFRMA_SEC_CTX)) throw Refused(EINVAL, "there are no security labels");
  read_replay(request, state);
  state.algorithms = read_algorithms(request);

  state.encap = request.get<xfrm_encap_tmpl>(XFRMA_ENCAP);
  if (state.encap && state.encap->encap_type != UDP_ENCAP_ESPINUDP)
    throw Refused(EPROTONOSUPPORT, "of the encapsulations there is espinudp only");
  state.coaddr = request.get<xfrm_address_t>(XFRMA_COADDR);
  state.mark = read_mark(request);
  if (const auto value = request.get<std::uint32_t>(XFRMA_SET_MARK))
    state.output_mark = {*value, request.get<std::uint32_t>(XFRMA_SET_MARK_MASK).value_or(~0U)};
  state.if_id = request.u32(XFRMA_IF_ID);
  state.tfc_padding = request.u32(XFRMA_TFCPAD);
  state.extra_flags = request.u32(XFRMA_SA_EXTRA_FLAGS);
  if (request.has(XFRMA_MTIMER_THRESH) && !state.encap)
    throw Refused(EINVAL, "MTIMER_THRESH attribute can only be set on ENCAP states");
  read_thresholds(request, state);
  if (const auto carried = request.get<xfrm_lifetime_cur>(XFRMA_LTIME_VAL))
    state.carried = *carried;
  if (const auto direction = request.get<std::uint8_t>(kSaDir)) {
    if (*direction != 1 && *direction != 2)
      throw Refused(EINVAL, "Invalid attribute value: SA_DIR is 1 (in) or 2 (out)");
    state.direction = *direction == 1 ? Direction::in : Direction::out;
  }
  if (state.info.sel.family == AF_UNSPEC && (state.info.flags & XFRM_STATE_AF_UNSPEC) == 0)
    state.info.sel.family = state.info.family;
  return state;
}

dataplane::SaSpec spec_of(const State& state, Direction direction) {
  const bool in = direction == Direction::in;
  const xfrm_usersa_info& info = state.info;
  dataplane::SaSpec spec;
  spec.direction = direction;
  spec.spi = dataplane::Spi{state.spi()};
  spec.local.address = in ? state.destination() : state.source();
  spec.peer.address = in ? state.source() : state.destination();
  spec.encapsulation = dataplane::Encapsulation::esp;
  if (state.encap) {
    const std::uint16_t source = host_order16(state.encap->encap_sport);
    const std::uint16_t destination = host_order16(state.encap->encap_dport);
    spec.encapsulation = dataplane::Encapsulation::udp;
    spec.local.port = in ? destination : source;
    spec.peer.port = in ? source : destination;
  }
  spec.esn = (info.flags & XFRM_STATE_ESN) != 0;
  if (in) spec.window_bits = window_of(state);
  spec.next_seq = (in ? state.seq : state.oseq) + 1;
  if (spec.next_seq == 0)
    throw Refused(EINVAL, "all sequence numbers are used up; make a state with a fresh key");
  spec.outer_mark = in ? 0 : state.output_mark.v & state.output_mark.m;
  spec.mark = {state.mark.v, state.mark.m};
  spec.if_id = state.if_id;
  spec.lifetime = lifetime_left(state);
  spec.tfc_padding = in ? 0 : state.tfc_padding;
  spec.outer.ecn = (info.flags & XFRM_STATE_NOECN) == 0;
  spec.outer.dscp_inwards = (info.flags & XFRM_STATE_DECAP_DSCP) != 0;
  if ((info.flags & XFRM_STATE_NOPMTUDISC) != 0) spec.outer.df = dataplane::OuterHeader::Df::clear;
  if ((state.extra_flags & XFRM_SA_XFLAG_DONT_ENCAP_DSCP) != 0)
    spec.outer.dscp = dataplane::OuterHeader::Dscp::no;
  return spec;
}

// What was carried over counts: from a state before it, or a daemon before this one.
dataplane::Lifetime lifetime_left(const State& state) {
  const auto left = [](dataplane::Limit limit, std::uint64_t used) {
    // Below 0: a NEWAE has said that there were fewer than were counted.
    const std::uint64_t more = static_cast<std::int64_t>(used) < 0 ? 0 - used : 0;
    for (std::uint64_t* value : {&limit.soft, &limit.hard}) {
      if (*value == 0) continue;
      *value = more != 0 ? *value + std::min(more, ~*value) : *value > used ? *value - used : 1;
    }
    if (limit.soft >= limit.hard && limit.hard != 0) limit.soft = 0;
    return limit;
  };
  dataplane::Lifetime out = to_lifetime(state.info.lft);
  out.bytes = left(out.bytes, state.carried.bytes);
  out.packets = left(out.packets, state.carried.packets);
  out.seconds = left(out.seconds, static_cast<std::uint64_t>(state.age.count()));
  return out;
}

Reply message_of(const State& state, const Status& status, std::uint16_t type, Reply::To to,
                 std::uint16_t flags, Keys keys) {
  Reply reply(type, to, flags);
  reply.append(info_of(state, status));
  put_attributes(state, status, reply, keys);
  return reply;
}

State foreign_state(const dataplane::SaStatus& status) {
  State state;
  const bool in = status.direction == Direction::in;
  const ifaces::Endpoint& source = in ? status.peer : status.local;
  const ifaces::Endpoint& destination = in ? status.local : status.peer;
  state.info.family = family_of(status.local.address);
  state.info.sel.family = state.info.family;
  state.info.id.daddr = from_address(destination.address);
  state.info.saddr = from_address(source.address);
  state.info.id.spi = htonl(static_cast<std::uint32_t>(status.spi));
  state.info.id.proto = IPPROTO_ESP;
  state.info.reqid = status.reqid;
  state.info.mode = XFRM_MODE_TUNNEL;
  state.info.flags = XFRM_STATE_AF_UNSPEC;
  state.info.lft = from_lifetime(status.lifetime);
  if (status.esn) state.info.flags |= XFRM_STATE_ESN;
  if (status.esn || status.window_bits > 255) {
    state.esn = zeroed<ReplaySizes>();
    state.esn->replay_window = std::min(status.window_bits, std::uint32_t{XFRMA_REPLAY_ESN_MAX});
    state.esn->bmp_len = std::max((state.esn->replay_window + 31) / 32, 1U);
  } else {
    state.info.replay_window = static_cast<std::uint8_t>(status.window_bits);
  }
  if (status.encapsulation == dataplane::Encapsulation::udp) {
    state.encap = zeroed<xfrm_encap_tmpl>();
    state.encap->encap_type = UDP_ENCAP_ESPINUDP;
    state.encap->encap_sport = htons(source.port);
    state.encap->encap_dport = htons(destination.port);
  }
  state.algorithms = algorithms_of(status.suite);
  state.sa = status.id;
  state.added = wall(status.added);
  return state;
}

std::time_t wall(State::Clock::time_point when) noexcept {
  using std::chrono::system_clock;
  return system_clock::to_time_t(
      system_clock::now() +
      std::chrono::duration_cast<system_clock::duration>(when - State::Clock::now()));
}

xfrm_lifetime_cur lifetime_of(const State& state, const Status& status) {
  auto out = state.carried;
  if (out.add_time == 0) out.add_time = static_cast<std::uint64_t>(state.added);
  if (!status) return out;
  out.bytes += status->traffic.bytes;
  out.packets += status->traffic.packets;
  if (status->last_packet) out.use_time = static_cast<std::uint64_t>(wall(*status->last_packet));
  return out;
}

xfrm_usersa_info info_of(const State& state, const Status& status) {
  xfrm_usersa_info out = state.info;
  out.curlft = lifetime_of(state, status);
  out.stats = zeroed<xfrm_stats>();
  if (!status) return out;
  const auto drops = [&](dataplane::Drop drop) {
    return static_cast<std::uint32_t>(status->drops[static_cast<std::size_t>(drop)]);
  };
  out.stats.replay_window = drops(dataplane::Drop::late);
  out.stats.replay = drops(dataplane::Drop::duplicate);
  out.stats.integrity_failed = drops(dataplane::Drop::integrity);
  return out;
}

void put_replay(const State& state, const Status& status, Reply& reply) {
  std::uint64_t oseq = state.oseq, seq = state.seq;
  if (status && status->direction == Direction::out && status->seq > 0) oseq = status->seq - 1;
  if (status && status->direction == Direction::in) seq = status->seq;
  // Which numbers of the window were seen is not told: all of them.
  if (!state.esn) {
    auto out = zeroed<xfrm_replay_state>();
    out.oseq = static_cast<std::uint32_t>(oseq);
    out.seq = static_cast<std::uint32_t>(seq);
    out.bitmap = seq == 0 ? 0 : seq >= 32 ? ~0U : (1U << seq) - 1;
    reply.put(XFRMA_REPLAY_VAL, out);
    return;
  }
  ReplaySizes out = *state.esn;
  out.oseq = static_cast<std::uint32_t>(oseq);
  out.oseq_hi = static_cast<std::uint32_t>(oseq >> 32);
  out.seq = static_cast<std::uint32_t>(seq);
  out.seq_hi = static_cast<std::uint32_t>(seq >> 32);
  std::vector<std::uint8_t> bytes(length_of(out), seq == 0 ? 0 : 0xff);
  std::memcpy(bytes.data(), &out, sizeof out);
  reply.put(XFRMA_REPLAY_ESN_VAL, std::span<const std::uint8_t>(bytes));
}

void put_attributes(const State& state, const Status& status, Reply& reply, Keys keys) {
  if (state.extra_flags != 0) reply.put(XFRMA_SA_EXTRA_FLAGS, state.extra_flags);
  if (state.coaddr) reply.put(XFRMA_COADDR, *state.coaddr);
  if (status && status->last_packet)
    reply.put(XFRMA_LASTUSED, static_cast<std::uint64_t>(wall(*status->last_packet)));
  state.algorithms.put(reply, keys);
  if (state.encap) reply.put(XFRMA_ENCAP, *state.encap);
  if (state.tfc_padding != 0) reply.put(XFRMA_TFCPAD, state.tfc_padding);
  if ((state.mark.v | state.mark.m) != 0) reply.put(XFRMA_MARK, state.mark);
  if ((state.output_mark.v | state.output_mark.m) != 0) {
    reply.put(XFRMA_SET_MARK, state.output_mark.v);
    reply.put(XFRMA_SET_MARK_MASK, state.output_mark.m);
  }
  put_replay(state, status, reply);
  if (state.if_id != 0) reply.put(XFRMA_IF_ID, state.if_id);
  if (state.mapping_threshold != 0) reply.put(XFRMA_MTIMER_THRESH, state.mapping_threshold);
  if (state.direction) {
    const std::uint8_t direction = *state.direction == Direction::in ? 1 : 2;
    reply.put(kSaDir, direction);
  }
}

}  // namespace espalier::tools::xfrm
