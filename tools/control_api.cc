#include "tools/control_api.h"

#include <fcntl.h>

#include <array>
#include <cerrno>
#include <memory>
#include <system_error>
#include <utility>

#include "tools/config_values.h"
#include "tools/packet_json.h"
#include "tools/status.h"

namespace espalier::tools {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kPage = 500;     // entries in a reply of a list, unless it asks for less
constexpr std::size_t kMaxIds = 1000;  // in a reply; a larger batch gets none
constexpr std::size_t kMaxQueued = std::size_t{1} << 18;

std::size_t page_size(Fields& fields) {
  return fields.number("limit", 1, kPage).value_or(kPage);
}

std::uint32_t page_start(Fields& fields) {
  return static_cast<std::uint32_t>(fields.number("after", 0, 0xffffffff).value_or(0));
}

// What `next` of a page says: the id to go on behind, if there may be more.
json next_of(std::size_t count, std::size_t asked, std::uint32_t last) {
  return count < asked ? json(nullptr) : json(last);
}

json vti_json(const dataplane::DeviceStatus& device, const DevicePool& pool, bool ours) {
  json out = device_json(device);
  const dataplane::DeviceSpec* const spec = pool.spec(device.name);
  if (spec == nullptr) return out;
  const auto text = [](const ifaces::IpAddress& a) { return a.is_any() ? "any" : a.str(); };
  out["local"] = text(spec->local);
  out["remote"] = text(spec->remote);
  out["if_id"] = spec->if_id;
  out["mtu"] = pool.mtu(device.name);
  out["users"] = pool.users(device.name);
  out["from"] = ours ? "control" : "config";
  return out;
}

const char* origin(bool control, bool xfrm) {
  return control ? "control" : xfrm ? "xfrm" : "config";
}

}  // namespace

ControlApi::ControlApi(ControlServer& server, dataplane::Dataplane& dataplane, DevicePool& devices,
                       ifaces::Netlink& netlink)
    : server_(server),
      dataplane_(dataplane),
      devices_(devices),
      netlink_(netlink),
      installed_(dataplane, devices, netlink) {
  for (const char* const op :
       {"sa-add", "sa-update", "sa-delete", "policy-add", "policy-delete", "vti-add", "vti-delete"})
    server.on_session(op, [this](const ControlRequest& r) { return change(r); });
  server.on_session("batch", [this](const ControlRequest& r) { return batch(r); });
  server.on("sa-get", [this](const json& r) { return sa_get(r); });
  server.on("sa-dummy", [this](const json& r) { return sa_dummy(r); });
  server.on("sa-list", [this](const json& r) { return sa_list(r); });
  server.on("sa-count", [this](const json& r) {
    Fields(r).done();
    return json{{"count", dataplane_.sa_count()}};
  });
  server.on("policy-list", [this](const json& r) { return policy_list(r); });
  server.on("vti-list", [this](const json& r) { return vti_list(r); });
  server.on("explain", [this](const json& r) { return explain(r); });
  server.on("flush", [this](const json& r) { return flush(r); });
  server.on_session("ike-socket", [this](const ControlRequest& r) { return ike_socket(r); });
  server.on_session("subscribe", [](const ControlRequest& r) {
    Fields(r.body).done();
    r.session.listening = true;
    return json::object();
  });
}

json ControlApi::ike_socket(const ControlRequest& request) {
  Fields fields(request.body);
  const auto address = fields.address("local");
  const auto port = static_cast<std::uint16_t>(fields.number("port", 1, 65535).value_or(4500));
  const auto mark = static_cast<std::uint32_t>(fields.number("mark", 0, 0xffffffff).value_or(0));
  fields.done();
  if (!address || address->is_any())
    fields.refuse("local", "is missing; write an address of this host, as SAs have it");
  const ifaces::Endpoint local{*address, port};
  const int fd = ::fcntl(dataplane_.ike_socket(local, mark), F_DUPFD_CLOEXEC, 0);
  if (fd < 0) throw std::system_error(errno, std::generic_category(), "fcntl F_DUPFD_CLOEXEC");
  request.session.descriptor.reset(fd);
  return {{"local", local.str()}};
}

json ControlApi::change(const ControlRequest& request) {
  std::vector<Change> changes;
  changes.push_back(installed_.parse(request.body, request.keys));
  const Installed::Outcome outcome = installed_.apply(std::move(changes));
  json reply = json::object();
  if (!outcome.ids.empty() && outcome.ids.front() != 0) reply["id"] = outcome.ids.front();
  return reply;
}

void ControlApi::queue(Pending& pending, const json& ops,
                       std::span<const crypto::SecretBytes> keys) {
  for (const json& op : ops) {
    if (*queued_ == kMaxQueued)
      throw Refusal("a batch is at most " + std::to_string(kMaxQueued) +
                        " operations, and so are all that wait; send several",
                    {{"index", pending.changes.size()}});
    try {
      pending.changes.push_back(installed_.parse(op, keys));
    } catch (const std::exception& e) {
      throw Refusal(e.what(), {{"index", pending.changes.size()}});
    }
    ++*queued_;
  }
}

json ControlApi::batch(const ControlRequest& request) {
  // What the client has sent behind a batch that fails may be the rest of it: nothing of that is
  // to be done, so an error ends the connection.
  request.session.hang_up = true;
  Fields fields(request.body);
  const bool more = fields.flag("more").value_or(false);
  const json* const ops = fields.find("ops");
  if (ops == nullptr || !ops->is_array()) fields.refuse("ops", "write a list of operations");
  fields.done();
  if (!request.session.state) request.session.state = std::make_shared<Pending>(queued_);
  Pending& pending = *static_cast<Pending*>(request.session.state.get());
  queue(pending, *ops, request.keys);
  if (more) {
    request.session.hang_up = false;
    return {{"queued", pending.changes.size()}};
  }
  *queued_ -= pending.changes.size();
  const Installed::Outcome outcome =
      installed_.apply(std::exchange(pending.changes, std::vector<Change>()));
  request.session.state.reset();
  request.session.hang_up = false;
  json reply = {
      {"added", outcome.added}, {"updated", outcome.updated}, {"deleted", outcome.deleted}};
  if (outcome.ids.size() <= kMaxIds) reply["ids"] = outcome.ids;
  return reply;
}

// Dummy packets, made on request (RFC 4303 §2.6).
json ControlApi::sa_dummy(const json& request) {
  constexpr std::uint64_t kMostPackets = 10000;
  constexpr std::uint64_t kMostBytes = 9000;
  constexpr std::uint64_t kBytes = 64;
  Fields fields(request);
  const dataplane::SaId id = installed_.find_sa(fields);
  const auto count = fields.number("count", 1, kMostPackets).value_or(1);
  const auto length = fields.number("length", 0, kMostBytes).value_or(kBytes);
  fields.done();
  dataplane_.send_dummies(id, static_cast<unsigned>(count), static_cast<unsigned>(length));
  return json::object();
}

json ControlApi::sa_get(const json& request) const {
  Fields fields(request);
  const dataplane::SaId id = installed_.find_sa(fields);
  fields.done();
  const auto status = dataplane_.sa(id);
  if (!status) fields.refuse("id", "there is no such SA any more");
  return {{"sa", listed(*status, Clock::now())}};
}

json ControlApi::sa_list(const json& request) const {
  Fields fields(request);
  const std::size_t limit = page_size(fields);
  const dataplane::SaId after{page_start(fields)};
  fields.done();
  const auto page = dataplane_.sas(after, limit);
  json list = json::array();
  const Clock::time_point now = Clock::now();
  for (const dataplane::SaStatus& sa : page) list.push_back(listed(sa, now));
  return {{"sas", std::move(list)},
          {"next", next_of(page.size(), limit,
                           page.empty() ? 0 : static_cast<std::uint32_t>(page.back().id))}};
}

json ControlApi::listed(const dataplane::SaStatus& sa, Clock::time_point now) const {
  const dataplane::SaSpec* const spec = installed_.spec(sa.id);
  json out = sa_json(sa, spec, now);
  out["from"] = origin(spec != nullptr, xfrm_ != nullptr && xfrm_->owns(sa.id));
  return out;
}

json ControlApi::policy_list(const json& request) const {
  Fields fields(request);
  const std::size_t limit = page_size(fields);
  const dataplane::PolicyId after{page_start(fields)};
  fields.done();
  const auto page = dataplane_.policies(after, limit);
  json list = json::array();
  for (const dataplane::PolicyStatus& policy : page) {
    list.push_back(policy_json(policy));
    list.back()["from"] = origin(installed_.owns(policy.id), xfrm_ && xfrm_->owns(policy.id));
  }
  return {{"policies", std::move(list)},
          {"next", next_of(page.size(), limit,
                           page.empty() ? 0 : static_cast<std::uint32_t>(page.back().id))}};
}

json ControlApi::vti_list(const json& request) const {
  Fields(request).done();
  json list = json::array();
  for (const dataplane::DeviceStatus& device : dataplane_.devices())
    list.push_back(vti_json(device, devices_, installed_.owns(device.name)));
  return {{"vtis", std::move(list)}};
}

std::string ControlApi::routed_to(const ifaces::IpAddress& address) {
  try {
    return netlink_.route_device(address);
  } catch (const std::system_error& e) {
    if (e.code() != std::errc::network_unreachable) throw;
    throw std::invalid_argument("no route leads to " + address.str() +
                                "; add one, or name the device, as if one did");
  }
}

json ControlApi::explain(const json& request) {
  Fields fields(request);
  const auto asked = fields.text("device");
  const std::vector<std::uint8_t> packet = parse_packet(fields);
  fields.done();
  const std::string device = asked ? *asked : routed_to(destination_of(packet));
  json reply = {{"device", device}, {"routed", !asked}};
  const auto found = dataplane_.explain(device, packet);
  if (!found) {
    reply["drop"] = "not-ours";
    reply["why"] = "the device is none of ours: it would leave there as it is";
    return reply;
  }
  for (const dataplane::DeviceStatus& status : dataplane_.devices())
    if (status.name == device) reply["mark"] = status.okey;
  if (found->policy) {
    const std::uint32_t before = static_cast<std::uint32_t>(*found->policy) - 1;
    for (const auto& policy : dataplane_.policies(dataplane::PolicyId{before}, 1))
      reply["policy"] = policy_json(policy);
  }
  if (found->sa)
    if (const auto sa = dataplane_.sa(*found->sa)) reply["sa"] = listed(*sa, Clock::now());
  if (found->inner_mtu != 0) reply["mtu"] = found->inner_mtu;
  if (found->drop) {
    const dataplane::DropInfo& drop = dataplane::kDropInfo[static_cast<std::size_t>(*found->drop)];
    reply["drop"] = drop.name;
    reply["why"] = drop.text;
    return reply;
  }
  reply["pieces"] = found->pieces;
  reply["outer_length"] = found->outer_length;
  return reply;
}

json ControlApi::flush(const json& request) {
  constexpr std::array<std::string_view, 4> kWhat = {"sa", "policy", "vti", "all"};
  Fields fields(request);
  const auto what = fields.word("what", kWhat);
  if (!what) fields.refuse("what", "is missing; write sa, policy, vti or all");
  fields.done();
  json reply = json::object();
  // Policies first: what has none any more is dropped, not sent by another SA.
  for (const FlushKind kind : {FlushKind::policy, FlushKind::sa, FlushKind::vti}) {
    const auto place = static_cast<std::size_t>(kind);
    if (*what != kWhat.size() - 1 && *what != place) continue;
    reply[std::string(kWhat[place])] = installed_.flush(kind);
  }
  return reply;
}

void ControlApi::publish(json event) {
  if (!server_.has_listeners()) return;
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  event["time"] = std::chrono::duration<double>(now).count();
  server_.publish(std::move(event));
}

void ControlApi::take(std::span<const dataplane::Event> events) {
  const auto now = Clock::now();
  const auto day = std::chrono::system_clock::now();
  for (const dataplane::Event& event : events) {
    if (server_.has_listeners()) {
      const auto age =
          std::chrono::duration_cast<std::chrono::system_clock::duration>(now - event.when);
      server_.publish(event_json(event, day - age));
    }
    if (event.kind == dataplane::EventKind::hard_expire) installed_.expired(event.sa);
  }
}

}  // namespace espalier::tools
