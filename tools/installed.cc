#include "tools/installed.h"

#include <algorithm>
#include <functional>
#include <stdexcept>
#include <utility>

#include "ifaces/tun.h"
#include "tools/config_text.h"
#include "tools/control_server.h"

namespace espalier::tools {
namespace {

using dataplane::Direction;
using dataplane::PolicyId;
using dataplane::SaId;
using nlohmann::json;

bool is_removal(const Change& change) {
  return std::holds_alternative<SaId>(change) || std::holds_alternative<PolicyId>(change) ||
         std::holds_alternative<VtiRemoval>(change);
}

// Only where all of a device's policies are for unicast IPv6 could it be quiet; whoever makes a
// device by hand has them later, and wants RIPng and OSPFv3 as well.
Ipv6Use ipv6_use(const VtiSpec& spec) {
  const bool v6 = std::any_of(spec.addresses.begin(), spec.addresses.end(),
                              [](const auto& a) { return a.address.family == ifaces::Family::v6; });
  return v6 ? Ipv6Use::multicast : Ipv6Use::unicast;
}

// As vti-add has it.
std::string record_of(const VtiSpec& spec) {
  const auto end = [](const ifaces::IpAddress& a) { return a.is_any() ? "" : a.str(); };
  nlohmann::json members = {{"name", spec.device.name},
                            {"local", end(spec.device.local)},
                            {"remote", end(spec.device.remote)},
                            {"ikey", spec.device.ikey},
                            {"okey", spec.device.okey},
                            {"if_id", spec.device.if_id},
                            {"carrier_follows_sa", spec.device.carrier_follows_sa},
                            {"mtu", spec.mtu}};
  for (const ifaces::Prefix& address : spec.addresses)
    members["addresses"].push_back(address.str());
  return members.dump();
}

}  // namespace

// Takes back, last first, what was done; unless that is kept.
class Installed::Undo {
 public:
  Undo() = default;
  Undo(const Undo&) = delete;
  Undo& operator=(const Undo&) = delete;
  ~Undo() {
    for (auto step = steps_.rbegin(); step != steps_.rend(); ++step) {
      try {
        (*step)();
      } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch)
        // What cannot be taken back any more is gone already.
      }
    }
  }
  void keep() noexcept {
    steps_.clear();
    for (const auto& step : last_) {
      try {
        step();
      } catch (const std::exception&) {  // NOLINT(bugprone-empty-catch)
        // Only for want of memory: what it would have made smaller stays larger.
      }
    }
  }
  void add(std::function<void()> step) { steps_.push_back(std::move(step)); }
  // What cannot be taken back, and cannot be refused any more: done when all is kept.
  void add_last(std::function<void()> step) { last_.push_back(std::move(step)); }

 private:
  std::vector<std::function<void()>> last_;
  std::vector<std::function<void()>> steps_;
};

// -------------------------------------------------------------------------------------- parsing

Change Installed::parse(const json& op, std::span<const crypto::SecretBytes> keys) {
  Fields fields(op);
  const std::string what = fields.text("op").value_or("");
  std::optional<Change> change;
  if (what == "sa-add")
    change = parse_sa(fields, keys, [this](const auto& a) { return netlink_.is_local(a); });
  else if (what == "sa-update")
    change = parse_update(fields);
  else if (what == "sa-delete")
    change = parse_sa_removal(fields);
  else if (what == "policy-add")
    change = parse_policy(fields);
  else if (what == "policy-delete")
    change = parse_policy_removal(fields);
  else if (what == "vti-add")
    change = parse_vti(fields);
  else if (what == "vti-delete")
    change = parse_vti_removal(fields);
  else
    fields.refuse("op", in_quotes(what) +
                            " changes nothing; write sa-add, sa-update, sa-delete, policy-add, "
                            "policy-delete, vti-add or vti-delete");
  fields.done();
  return std::move(*change);
}

SaId Installed::find_sa(Fields& fields) const {
  if (const auto id = fields.number("id", 1, 0xffffffff)) {
    if (dataplane_.sa(SaId{static_cast<std::uint32_t>(*id)}))
      return SaId{static_cast<std::uint32_t>(*id)};
    fields.refuse("id", "there is no SA " + std::to_string(*id) + "; sa-list names them");
  }
  const auto spi = fields.number("spi", 0, 0xffffffff);
  const auto destination = fields.address("destination");
  if (!spi || !destination)
    fields.refuse("spi", "write \"id\", or \"spi\" and \"destination\", of an SA that is there");
  constexpr std::array<std::string_view, 2> kDirections = {"in", "out"};
  const auto direction = fields.word("direction", kDirections);
  for (const Direction d : {Direction::in, Direction::out}) {
    if (direction && kDirections[*direction] != name(d)) continue;
    const auto found =
        dataplane_.find_sa(d, dataplane::Spi{static_cast<std::uint32_t>(*spi)}, *destination);
    if (found) return *found;
  }
  fields.refuse("spi", "there is no SA " + hex(dataplane::Spi{static_cast<std::uint32_t>(*spi)}) +
                           " to " + destination->str());
}

Change Installed::parse_sa_removal(Fields& fields) const {
  const SaId id = find_sa(fields);
  if (sas_.contains(id)) return id;
  const auto status = dataplane_.sa(id);
  fields.refuse("id", "the SA belongs to conn " + (status ? status->name : "") +
                          "; take that down (conn-down)");
}

Change Installed::parse_update(Fields& fields) const {
  const SaId id = find_sa(fields);
  const auto status = dataplane_.sa(id);
  if (!status) fields.refuse("id", "there is no such SA any more");
  SaUpdateOf out{id, parse_sa_update(fields, *status)};
  if (out.update.seq_limit && !sas_.contains(id))
    fields.refuse("seq_limit", "conn " + status->name + " keeps its numbers itself");
  return out;
}

Change Installed::parse_policy_removal(Fields& fields) const {
  const auto number = fields.number("id", 1, 0xffffffff);
  if (!number) fields.refuse("id", "is missing; policy-list names them");
  const PolicyId id{static_cast<std::uint32_t>(*number)};
  if (policies_.contains(id)) return id;
  for (const dataplane::PolicyStatus& policy : dataplane_.policies())
    if (policy.id == id)
      fields.refuse(
          "id", "the policy belongs to conn " + policy.spec.name + "; take that down (conn-down)");
  fields.refuse("id", "there is no policy " + std::to_string(*number) + "; policy-list names them");
}

Change Installed::parse_vti_removal(Fields& fields) const {
  const std::string device = fields.text("name").value_or("");
  const bool ours = vtis_.contains(device);
  if (devices_.users(device) > (ours ? 1U : 0U))
    fields.refuse("name", "a conn uses device " + device + "; take that down (conn-down) first");
  if (!ours)
    fields.refuse("name", "there is no device " + in_quotes(device) + "; vti-list names them");
  return VtiRemoval{device};
}

// ------------------------------------------------------------------------------------- applying

std::uint32_t Installed::add(dataplane::SaSpec& spec, Undo& undo) {
  dataplane::SaSpec kept;
  kept.spi = spec.spi;
  kept.mark = spec.mark;
  kept.if_id = spec.if_id;
  kept.outer = spec.outer;
  kept.outer_mark = spec.outer_mark;
  kept.follow_peer = spec.follow_peer;
  kept.tfc_padding = spec.tfc_padding;
  kept.mss_clamp = spec.mss_clamp;
  const SaId id = dataplane_.add_sa(std::move(spec));
  undo.add([this, id] { remove(id); });
  sas_.emplace(id, std::move(kept));
  return static_cast<std::uint32_t>(id);
}

std::uint32_t Installed::add(const dataplane::PolicySpec& spec, Undo& undo) {
  const PolicyId id = dataplane_.add_policy(spec);
  undo.add([this, id] { remove(id); });
  policies_.insert(id);
  return static_cast<std::uint32_t>(id);
}

void Installed::add(const VtiSpec& spec, Undo& undo) {
  const std::string& name = spec.device.name;
  if (devices_.users(name) != 0)
    throw std::invalid_argument("name: device " + name + " is there already; choose another name");
  dataplane::DeviceSpec device = spec.device;
  device.holdable = keep_ != nullptr;
  Vti vti;
  vti.lease = devices_.lease(device, spec.mtu, spec.addresses, ipv6_use(spec));
  vti.record = record_of(spec);
  Vti& made = vtis_.emplace(name, std::move(vti)).first->second;
  undo.add([this, name] { remove(name); });
  if (keep_ == nullptr) return;
  put(made);
  keep_->hold(name, ifaces::hold_tun(name));
}

void Installed::put(Vti& vti) noexcept {
  vti.slot =
      keep_->put(Keep::Kind::device,
                 {reinterpret_cast<const std::uint8_t*>(vti.record.data()), vti.record.size()});
}

void Installed::put_all() noexcept {
  for (auto& [name, vti] : vtis_) put(vti);
}

// What is still there stays as its user has made it.
bool Installed::restore(const Keep::Record& record) {
  const auto bytes = record.bytes.bytes();
  keep_->erase(record.slot);
  try {
    const auto members = nlohmann::json::parse(bytes.begin(), bytes.end());
    Fields fields(members);
    VtiSpec spec = parse_vti(fields);
    fields.done();
    if (netlink_.link_exists(spec.device.name)) {
      spec.mtu = netlink_.device_mtu(spec.device.name);
      spec.addresses.clear();
    }
    Undo undo;
    add(spec, undo);
    undo.keep();
    return true;
  } catch (const std::exception&) {
    return false;
  }
}

void Installed::remove(const std::string& vti) {
  const auto found = vtis_.find(vti);
  if (found == vtis_.end()) return;
  if (keep_ != nullptr) keep_->erase(found->second.slot);
  if (keep_ != nullptr) keep_->drop(vti);
  vtis_.erase(found);
  // Whoever holds it lets go a moment later.
  if (keep_ != nullptr && devices_.users(vti) == 0) netlink_.remove_link(vti);
}

void Installed::update(const SaUpdateOf& change, Undo& undo) {
  const auto before = dataplane_.sa(change.id);
  if (!before) throw std::invalid_argument("id: there is no such SA any more");
  dataplane::SaUpdate now = change.update;
  // A smaller window forgets what lies behind it.
  const bool refused = now.window_bits == 0U && before->esn;
  const bool shrinks = now.window_bits && !refused && *now.window_bits < before->window_bits;
  if (shrinks) now.window_bits.reset();
  dataplane_.update_sa(change.id, now);
  dataplane::SaUpdate back;
  if (change.update.peer) back.peer = before->peer;
  if (now.window_bits) back.window_bits = before->window_bits;
  if (change.update.lifetime) back.lifetime = before->lifetime;
  if (change.update.seq_limit) back.seq_limit = before->seq_limit;
  undo.add([this, id = change.id, back] { dataplane_.update_sa(id, back); });
  if (!shrinks) return;
  dataplane::SaUpdate smaller;
  smaller.window_bits = change.update.window_bits;
  undo.add_last([this, id = change.id, smaller] { dataplane_.update_sa(id, smaller); });
}

void Installed::remove(SaId id) {
  dataplane_.remove_sa(id);
  sas_.erase(id);
}

void Installed::remove(PolicyId id) {
  dataplane_.remove_policy(id);
  policies_.erase(id);
}

std::uint32_t Installed::make(Change& change, Undo& undo, Outcome& outcome) {
  if (const auto* const u = std::get_if<SaUpdateOf>(&change)) {
    update(*u, undo);
    ++outcome.updated;
    return 0;
  }
  ++outcome.added;
  if (auto* const sa = std::get_if<dataplane::SaSpec>(&change)) return add(*sa, undo);
  if (const auto* const p = std::get_if<dataplane::PolicySpec>(&change)) return add(*p, undo);
  add(std::get<VtiSpec>(change), undo);
  return 0;
}

// Before any of them is used. With a random IV the same key twice is no harm.
std::vector<UsedKeys::Name> Installed::note_keys(const std::vector<Change>& changes) {
  if (!used_keys_) return {};
  std::vector<UsedKeys::Name> names;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    const auto* const spec = std::get_if<dataplane::SaSpec>(&changes[i]);
    if (spec == nullptr || spec->direction != Direction::out ||
        crypto::info(spec->suite).iv_kind != crypto::IvKind::counter)
      continue;
    names.push_back(UsedKeys::name_of(spec->keymat.bytes()));
    if (spec->next_seq <= 1 && used_keys_->is_from_before(names.back()))
      throw Refusal(
          "this key and salt were used before the daemon was started again: make fresh ones, or "
          "write a \"seq\" above the last number that was used",
          {{"index", i}});
  }
  used_keys_->add(names);
  return names;
}

Installed::Outcome Installed::apply(std::vector<Change> changes) {
  const std::vector<UsedKeys::Name> names = note_keys(changes);
  Outcome outcome;
  const dataplane::Dataplane::Batch batch(dataplane_);
  Undo undo;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    if (is_removal(changes[i])) continue;
    try {
      outcome.ids.push_back(make(changes[i], undo, outcome));
    } catch (const std::exception& e) {
      throw Refusal(e.what(), {{"index", i}});
    }
  }
  undo.keep();
  if (used_keys_) used_keys_->in_use(names);
  for (const Change& change : changes) {
    if (!is_removal(change)) continue;
    ++outcome.deleted;
    if (const auto* const sa = std::get_if<SaId>(&change)) remove(*sa);
    if (const auto* const policy = std::get_if<PolicyId>(&change)) remove(*policy);
    if (const auto* const vti = std::get_if<VtiRemoval>(&change)) remove(vti->name);
  }
  return outcome;
}

std::size_t Installed::flush(FlushKind kind) {
  const dataplane::Dataplane::Batch batch(dataplane_);
  std::size_t count = 0;
  switch (kind) {
    case FlushKind::sa:
      for (count = sas_.size(); !sas_.empty();) remove(sas_.begin()->first);
      break;
    case FlushKind::policy:
      for (count = policies_.size(); !policies_.empty();) remove(*policies_.begin());
      break;
    case FlushKind::vti:
      for (count = vtis_.size(); !vtis_.empty();) remove(std::string(vtis_.begin()->first));
      break;
  }
  return count;
}

void Installed::expired(SaId id) {
  if (sas_.contains(id)) remove(id);
}

const dataplane::SaSpec* Installed::spec(SaId id) const noexcept {
  const auto found = sas_.find(id);
  return found == sas_.end() ? nullptr : &found->second;
}

}  // namespace espalier::tools
