#include "tools/xfrm/service.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <new>

#include "crypto/secret.h"

namespace espalier::tools::xfrm {

Service::Handler Service::handler_of(std::uint16_t type) noexcept {
  switch (type) {
    case XFRM_MSG_NEWSA:
      return &Service::add_state;
    case XFRM_MSG_UPDSA:
      return &Service::update_state;
    case XFRM_MSG_DELSA:
      return &Service::delete_state;
    case XFRM_MSG_GETSA:
      return &Service::get_state;
    case XFRM_MSG_ALLOCSPI:
      return &Service::allocate_spi;
    case XFRM_MSG_FLUSHSA:
      return &Service::flush_states;
    case XFRM_MSG_GETAE:
      return &Service::get_event_values;
    case XFRM_MSG_NEWAE:
      return &Service::set_event_values;
    case XFRM_MSG_EXPIRE:
      return &Service::expire_state;
    case XFRM_MSG_POLEXPIRE:
      return &Service::expire_policy;
    case XFRM_MSG_GETSADINFO:
      return &Service::get_state_info;
    case XFRM_MSG_NEWPOLICY:
    case XFRM_MSG_UPDPOLICY:
      return &Service::add_policy;
    case XFRM_MSG_DELPOLICY:
      return &Service::delete_policy;
    case XFRM_MSG_GETPOLICY:
      return &Service::get_policy;
    case XFRM_MSG_FLUSHPOLICY:
      return &Service::flush_policies;
    case XFRM_MSG_GETSPDINFO:
      return &Service::get_policy_info;
    case XFRM_MSG_NEWSPDINFO:
      return &Service::set_policy_info;
    case XFRM_MSG_SETDEFAULT:
      return &Service::set_default;
    case XFRM_MSG_GETDEFAULT:
      return &Service::get_default;
    case XFRM_MSG_MIGRATE:
      return &Service::migrate;
    default:
      return nullptr;
  }
}

bool Service::is_dump(const nlmsghdr& header) noexcept {
  return (header.nlmsg_type == XFRM_MSG_GETSA || header.nlmsg_type == XFRM_MSG_GETPOLICY) &&
         (header.nlmsg_flags & NLM_F_DUMP) != 0;
}

namespace {

// Also when there is no memory for an answer.
class Wiped {
 public:
  explicit Wiped(std::span<std::uint8_t> bytes) : bytes_(bytes) {}
  ~Wiped() { crypto::wipe(bytes_); }
  Wiped(const Wiped&) = delete;
  Wiped& operator=(const Wiped&) = delete;

 private:
  std::span<std::uint8_t> bytes_;
};

}  // namespace

void Service::handle(const Client& client, std::span<std::uint8_t> datagram, Output& output) {
  const Wiped wiped(datagram);
  const dataplane::Dataplane::Batch batch(dataplane_);
  std::span<std::uint8_t> rest = datagram;
  while (rest.size() >= NLMSG_HDRLEN) {
    auto* const header = reinterpret_cast<nlmsghdr*>(rest.data());
    const std::size_t length = header->nlmsg_len;
    if (length < NLMSG_HDRLEN || length > rest.size()) break;
    answer(client, *header, output);
    rest = rest.subspan(std::min<std::size_t>(NLMSG_ALIGN(length), rest.size()));
  }
}

void Service::answer(const Client& client, nlmsghdr& header, Output& output) {
  Request request(&header);
  const Call call{client, request, output};
  try {
    if ((header.nlmsg_flags & NLM_F_REQUEST) != 0 && header.nlmsg_type >= NLMSG_MIN_TYPE) {
      if (is_dump(header)) return start_dump(call);
      const Handler handler = handler_of(header.nlmsg_type);
      if (handler == nullptr) throw Refused(EINVAL);
      (this->*handler)(call);
    }
  } catch (const Refused& e) {
    return acknowledge(client, request, e.error(), e.what(), output);
  } catch (const std::bad_alloc&) {
    return acknowledge(client, request, ENOMEM, "", output);
  } catch (const std::exception& e) {
    return acknowledge(client, request, EINVAL, e.what(), output);
  }
  if ((header.nlmsg_flags & NLM_F_ACK) != 0) acknowledge(client, request, 0, "", output);
}

void Service::acknowledge(const Client& client, const Request& request, int error, const char* text,
                          Output& output) const {
  const bool whole = error != 0 && !client.capped_ack;
  const bool with_text = client.extended_ack && *text != '\0';
  std::uint16_t flags = whole ? 0 : NLM_F_CAPPED;
  if (with_text) flags |= NLM_F_ACK_TLVS;
  constexpr std::size_t kTextRoom = 1024;
  Reply reply(NLMSG_ERROR, {client.portid, request.header().nlmsg_seq}, flags,
              request.bytes().size() + kTextRoom);
  auto answer = zeroed<nlmsgerr>();
  answer.error = -error;
  answer.msg = request.header();
  reply.append(answer);
  if (whole) reply.append(request.bytes().subspan(NLMSG_HDRLEN));
  if (with_text) {
    const std::string_view cut = std::string_view(text).substr(0, kTextRoom / 2);
    std::vector<std::uint8_t> bytes(cut.begin(), cut.end());
    bytes.push_back(0);
    reply.put(NLMSGERR_ATTR_MSG, std::span<const std::uint8_t>(bytes));
  }
  output.replies.push_back(reply.datagram());
}

// ---------------------------------------------------------------------------------- listings

void Service::start_dump(const Call& call) {
  if (call.output.dump) throw Refused(EBUSY);
  Dump dump;
  dump.seq = call.request.header().nlmsg_seq;
  dump.type = XFRM_MSG_NEWPOLICY;
  if (call.request.header().nlmsg_type == XFRM_MSG_GETSA) {
    dump.type = XFRM_MSG_NEWSA;
    call.request.read_attributes(0);
    dump.protocol = call.request.get<std::uint8_t>(XFRMA_PROTO).value_or(0);
    dump.filter = call.request.get<xfrm_address_filter>(XFRMA_ADDRESS_FILTER);
    const unsigned bits = dump.filter && dump.filter->family == AF_INET6 ? 128 : 32;
    if (dump.filter && (dump.filter->splen > bits || dump.filter->dplen > bits))
      throw Refused(EINVAL);
  }
  call.output.dump = dump;
}

Datagram Service::next(Dump& dump, const Client& client) {
  const Reply::To to{client.portid, dump.seq};
  Datagram out;
  for (;;) {
    const Dump here = dump;
    const std::optional<Reply> reply =
        dump.type == XFRM_MSG_NEWSA ? next_state(dump, to, client.keys) : next_policy(dump, to);
    if (!reply) break;
    if (!out.empty() && out.bytes().size() + reply->bytes().size() > kMaxDatagram) {
      dump = here;
      return out;
    }
    out.append(reply->bytes());
  }
  if (!out.empty()) return out;
  dump.done = true;
  Reply last(NLMSG_DONE, to, NLM_F_MULTI);
  last.append(std::int32_t{0});
  return last.datagram();
}

// -------------------------------------------------------------------------------------- events

void Service::tell(unsigned group, Output& output, const std::function<Reply()>& make) noexcept {
  try {
    output.notices.push_back({group, make().datagram()});
  } catch (const std::exception&) {
    // No memory: whoever listens loses it, as with the kernel.
  }
}

void Service::take(std::span<const dataplane::Event> events, Output& output) {
  const dataplane::Dataplane::Batch batch(dataplane_);
  for (const dataplane::Event& event : events) {
    switch (event.kind) {
      case dataplane::EventKind::acquire:
        tell_acquire(event, output);
        break;
      case dataplane::EventKind::mapping_changed:
        tell_mapping(event, output);
        break;
      case dataplane::EventKind::soft_expire:
        if (const State* const state = states_.find(event.sa)) tell_expired(*state, false, output);
        break;
      case dataplane::EventKind::hard_expire:
        if (State* const state = states_.find(event.sa)) {
          tell_expired(*state, true, output);
          states_.remove(*state);
        }
        break;
      case dataplane::EventKind::seq_exhausted:
        states_.ran_out(event.sa);
        break;
      case dataplane::EventKind::replay:
      case dataplane::EventKind::integrity:
      case dataplane::EventKind::selector_mismatch:
      case dataplane::EventKind::no_spi:
      case dataplane::EventKind::path_mtu:
        break;
    }
  }
}

void Service::take_due(Clock::time_point now, Output& output) {
  routes_.look_at_ports();
  std::optional<dataplane::Dataplane::Batch> batch;  // its end disturbs the workers
  while (State* const state = states_.ended(now)) {
    if (!batch) batch.emplace(dataplane_);
    tell_expired(*state, true, output);
    states_.remove(*state);
  }
  while (const auto due = policies_.take_due(now)) {
    tell_policy_expired(*due->policy, due->hard, output, 0);
    if (due->hard) policies_.remove(*due->policy);
  }
  batch.reset();
  deadline_ = std::nullopt;
  for (const auto next : {states_.next_end(), states_.look(now), policies_.next_due()})
    if (next) deadline_ = deadline_ ? std::min(*deadline_, *next) : *next;
  // Ports come and go without a word to us.
  constexpr std::chrono::seconds kLookAtPorts{1};
  if (routes_.any())
    deadline_ = std::min(deadline_.value_or(now + kLookAtPorts), now + kLookAtPorts);
}

bool Service::restore_one(const Keep::Record& record, Output& output) {
  crypto::SecretBytes copy(record.bytes.bytes());  // aligned, and written to
  const std::span<std::uint8_t> bytes = copy.bytes();
  auto* const header = reinterpret_cast<nlmsghdr*>(bytes.data());
  State lost;  // enough of it to be told of
  try {
    if (bytes.size() < NLMSG_HDRLEN || header->nlmsg_len != bytes.size()) throw Refused(EINVAL);
    Request request(header);
    if (record.kind == Keep::Kind::policy) {
      Policy policy = read_policy(request);
      policy.since = Clock::time_point(std::chrono::nanoseconds(record.numbers.added_ns));
      policies_.add(std::move(policy), false);
      keep_->erase(record.slot);
      return true;
    }
    State state = read_state(request);
    lost.info = state.info;
    lost.mark = state.mark;
    lost.if_id = state.if_id;
    state.slot = record.slot;
    states_.restore(std::move(state), record.numbers);
    return true;
  } catch (const std::exception&) {
    keep_->erase(record.slot);
    const xfrm_usersa_info& info = lost.info;
    if (info.id.spi != 0 && states_.find(info.id, info.family, lost.mark.v) == nullptr)
      tell_expired(lost, true, output);
    return false;
  }
}

Service::Restored Service::restore(std::span<const Keep::Record> records, Output& output) {
  const dataplane::Dataplane::Batch batch(dataplane_);
  Restored restored;
  for (const Keep::Kind kind : {Keep::Kind::state, Keep::Kind::policy})
    for (const Keep::Record& record : records) {
      if (record.kind != kind) continue;
      const bool good = restore_one(record, output);
      ++(!good ? restored.lost : kind == Keep::Kind::state ? restored.states : restored.policies);
    }
  return restored;
}

void Service::tell_expired(const State& state, bool hard, Output& output,
                           std::uint32_t portid) noexcept {
  tell(XFRMNLGRP_EXPIRE, output, [&] {
    Reply reply(XFRM_MSG_EXPIRE, {portid, 0});
    auto body = zeroed<xfrm_user_expire>();
    body.state = info_of(state, states_.status(state));
    body.hard = hard ? 1 : 0;
    reply.append(body);
    if ((state.mark.v | state.mark.m) != 0) reply.put(XFRMA_MARK, state.mark);
    if (state.if_id != 0) reply.put(XFRMA_IF_ID, state.if_id);
    return reply;
  });
}

void Service::tell_mapping(const dataplane::Event& event, Output& output) noexcept {
  State* const state = states_.find(event.sa);
  if (state == nullptr || !state->encap) return;
  const auto now = Clock::now();
  if (state->mapping_threshold != 0 && state->mapping_told &&
      now - *state->mapping_told <= std::chrono::seconds(state->mapping_threshold))
    return;
  state->mapping_told = now;
  tell(XFRMNLGRP_MAPPING, output, [&] {
    auto body = zeroed<xfrm_user_mapping>();
    body.id.daddr = state->info.id.daddr;
    body.id.spi = state->info.id.spi;
    body.id.family = state->info.family;
    body.id.proto = state->info.id.proto;
    body.reqid = state->info.reqid;
    body.old_saddr = from_address(event.old_peer.address);
    body.new_saddr = from_address(event.peer.address);
    body.old_sport = host_order16(event.old_peer.port);
    body.new_sport = host_order16(event.peer.port);
    Reply reply(XFRM_MSG_MAPPING, {});
    reply.append(body);
    return reply;
  });
}

// The flow alone, as the larval state that a kernel makes has it.
xfrm_selector selector_of(const dataplane::Flow& flow) {
  dataplane::Selector selector;
  selector.source = {flow.source, static_cast<std::uint8_t>(flow.source.bits())};
  selector.destination = {flow.destination, static_cast<std::uint8_t>(flow.destination.bits())};
  selector.protocol = flow.protocol;
  xfrm_selector out = from_selector(selector);
  const bool has_ports = flow.source_port != 0 || flow.destination_port != 0;
  if (!has_ports) return out;
  out.sport = host_order16(flow.source_port);
  out.dport = host_order16(flow.destination_port);
  out.sport_mask = out.dport_mask = 0xffff;
  return out;
}

void Service::tell_acquire(const dataplane::Event& event, Output& output) noexcept {
  const Policy* const policy = policies_.find(event.policy);
  if (policy == nullptr || policy->templates.empty()) return;
  tell(XFRMNLGRP_ACQUIRE, output, [&] {
    const xfrm_user_tmpl& wanted = policy->templates.front();
    auto body = zeroed<xfrm_user_acquire>();
    body.id = wanted.id;
    body.saddr = wanted.saddr;
    body.sel = selector_of(event.flow);
    body.policy = policies_.info_of(*policy);
    body.aalgos = wanted.aalgos;
    body.ealgos = wanted.ealgos;
    body.calgos = wanted.calgos;
    body.seq = next_acquire_++;
    Reply reply(XFRM_MSG_ACQUIRE, {});
    reply.append(body);
    Policies::put_attributes(*policy, reply);
    return reply;
  });
}

}  // namespace espalier::tools::xfrm
