#include "dataplane/tables.h"

#include <algorithm>
#include <iterator>

namespace espalier::dataplane {
namespace {

template <class Map>
auto values(const Map& map) {
  std::vector<typename Map::mapped_type::element_type*> all;
  all.reserve(map.size());
  for (const auto& entry : map) all.push_back(entry.second.get());
  return all;
}

template <class Map, class Id>
auto values_after(const Map& map, Id after, std::size_t count) {
  std::vector<typename Map::mapped_type::element_type*> some;
  for (auto entry = map.upper_bound(after); entry != map.end() && some.size() < count; ++entry)
    some.push_back(entry->second.get());
  return some;
}

template <class Map, class Id>
auto* find(const Map& map, Id id) {
  const auto it = map.find(id);
  return it == map.end() ? nullptr : it->second.get();
}

template <class Id, class T>
std::unique_ptr<T> extract(IdMap<Id, T>& map, typename IdMap<Id, T>::const_iterator it) {
  return map.extract(it);
}
template <class Map>
typename Map::mapped_type extract(Map& map, typename Map::iterator it) {
  return std::move(map.extract(it).mapped());
}

template <class Map, class Id>
typename Map::mapped_type take(Map& map, Id id) {
  const auto it = map.find(id);
  if (it == map.end()) return nullptr;
  return extract(map, it);
}

// The key that a packet of the device has for a policy or an SA of this direction.
std::uint32_t key_of(const Device& device, Direction direction) {
  return direction == Direction::out ? device.spec.okey : device.spec.ikey;
}

bool concerns(const Policy& policy, const Device& device) {
  return policy.spec.mark.matches(key_of(device, policy.spec.direction)) &&
         policy.spec.if_id == device.spec.if_id;
}

bool applies(const Policy& policy, const Device& device) {
  return policy.spec.direction == Direction::out && concerns(policy, device);
}

// xfrm_state_find: the mark of an outbound SA is held against that of the policy.
bool fits(const OutboundSa& sa, const Policy& policy) {
  if (policy.spec.spi != Spi{} && policy.spec.spi != sa.spi) return false;
  return sa.mark.matches(policy.spec.mark.value & policy.spec.mark.mask) &&
         sa.if_id == policy.spec.if_id;
}

// As xfrm orders them: the lower number, then the longer prefixes, then the older.
bool before(const Policy* a, const Policy* b) {
  const auto bits = [](const Policy* p) {
    return p->spec.selector.source.length + p->spec.selector.destination.length;
  };
  if (a->spec.priority != b->spec.priority) return a->spec.priority < b->spec.priority;
  if (bits(a) != bits(b)) return bits(a) > bits(b);
  return a->id < b->id;
}

}  // namespace

Device* Tables::device(std::string_view name) const noexcept {
  for (const auto& entry : devices_)
    if (entry.second->spec.name == name) return entry.second.get();
  return nullptr;
}

OutboundSa* Tables::outbound(SaId id) const noexcept {
  return find(outbound_, id);
}
InboundSa* Tables::inbound(SaId id) const noexcept {
  return find(inbound_, id);
}
InboundSa* Tables::inbound(Spi spi, const ifaces::IpAddress& local) const noexcept {
  return sad_.find({static_cast<std::uint32_t>(spi), words(local)});
}
std::vector<Device*> Tables::all_devices() const {
  return values(devices_);
}
std::vector<Policy*> Tables::all_policies() const {
  return values(policies_);
}
std::vector<OutboundSa*> Tables::all_outbound() const {
  return values(outbound_);
}
std::vector<InboundSa*> Tables::all_inbound() const {
  return values(inbound_);
}

std::vector<Policy*> Tables::policies_after(PolicyId after, std::size_t count) const {
  return values_after(policies_, after, count);
}
std::vector<OutboundSa*> Tables::outbound_after(SaId after, std::size_t count) const {
  return values_after(outbound_, after, count);
}
std::vector<InboundSa*> Tables::inbound_after(SaId after, std::size_t count) const {
  return values_after(inbound_, after, count);
}

bool Tables::has_key(std::span<const std::uint8_t> keymat) const {
  return keys_.find(crypto::fingerprint(keymat)) != nullptr;
}

std::shared_ptr<Peer> Tables::peer(std::uint32_t reqid, const ifaces::Endpoint& given) const {
  const auto it = groups_.find(reqid);
  if (it == groups_.end()) return nullptr;
  const auto same_peer = [&given](const SaCommon* sa) {
    if (given.address.is_any() || sa->remote.is_any()) return true;
    return (sa->remote == given.address && sa->remote_port == given.port) ||
           sa->peer->get() == given;
  };
  const auto newest = [&same_peer](const auto& sas) -> std::shared_ptr<Peer> {
    const auto found = std::find_if(sas.rbegin(), sas.rend(), same_peer);
    return found == sas.rend() ? nullptr : (*found)->peer;
  };
  if (auto peer = newest(it->second.outbound)) return peer;
  return newest(it->second.inbound);
}

const Device* Tables::twin(const DeviceSpec& spec) const noexcept {
  for (const auto& entry : devices_) {
    const DeviceSpec& other = entry.second->spec;
    const auto same_end = [](const ifaces::IpAddress& a, const ifaces::IpAddress& b) {
      return a == b || (a.is_any() && b.is_any());
    };
    if (same_end(other.local, spec.local) && same_end(other.remote, spec.remote) &&
        other.ikey == spec.ikey && other.if_id == spec.if_id)
      return entry.second.get();
  }
  return nullptr;
}

bool Tables::serves(const Device& device) const {
  const auto it = serving_.find(device.id);
  return it != serving_.end() && !it->second.empty();
}

// What the devices of an outbound policy make of its SA; true if it does not fit all of them.
bool Tables::note_devices(Policy& policy, const OutboundSa* sa) {
  bool compare_ends = false;
  for (const auto& [id, device] : devices_) {
    if (!applies(policy, *device)) continue;
    const bool usable = sa != nullptr && ends_fit(*device, *sa);
    if (sa != nullptr && !usable) compare_ends = true;
    auto& serving = serving_[id];
    const bool was_empty = serving.empty();
    if (policy.action == PolicyAction::protect && (usable || policy.spec.trap))
      serving.insert(&policy);
    else
      serving.erase(&policy);
    serving_changed_ = serving_changed_ || serving.empty() != was_empty;
  }
  return compare_ends;
}

void Tables::add(std::unique_ptr<Device> device) {
  Device& added = *device;
  devices_.emplace(added.id, std::move(device));
  // Only who could have something to do with it: thousands of devices come one by one.
  for (auto& [reqid, g] : groups_)
    if (std::any_of(g.policies.begin(), g.policies.end(), [&added](const Policy* policy) {
          return applies(*policy, added) || concerns(*policy, added);
        }))
      join(g);
  for (const auto& entry : policies_)
    if (applies(*entry.second, added)) added.policies.add(*entry.second);
}

std::unique_ptr<Device> Tables::remove(DeviceId id) {
  auto device = take(devices_, id);
  serving_.erase(id);
  if (device) join_all();
  return device;
}

void Tables::join_all() {
  for (auto& entry : groups_) join(entry.second);
}

void Tables::add(std::unique_ptr<Policy> policy) {
  Group& g = group(policy->spec.reqid);
  g.policies.push_back(policy.get());
  const bool discards =
      policy->spec.direction == Direction::in && policy->action == PolicyAction::discard;
  if (discards) discards_.push_back(policy.get());
  join(g);  // before it is found, so that no packet meets it without its SA
  for (const auto& entry : devices_)
    if (applies(*policy, *entry.second)) entry.second->policies.add(*policy);
  policies_.emplace(policy->id, std::move(policy));
  if (discards) join_all();
}

std::unique_ptr<Policy> Tables::remove(PolicyId id) {
  auto policy = take(policies_, id);
  if (!policy) return nullptr;
  for (const auto& entry : devices_)
    if (applies(*policy, *entry.second)) entry.second->policies.remove(*policy);
  for (auto& entry : serving_)
    if (entry.second.erase(policy.get()) != 0 && entry.second.empty()) serving_changed_ = true;
  Group& g = group(policy->spec.reqid);
  std::erase(g.policies, policy.get());
  join(g);
  drop_if_empty(policy->spec.reqid);
  if (std::erase(discards_, policy.get()) != 0) join_all();
  return policy;
}

void Tables::add(std::unique_ptr<OutboundSa> sa, std::span<const std::uint8_t> keymat) {
  sa->key_name = crypto::fingerprint(keymat);
  keys_.insert(sa.get());
  list_spi(*sa);
  Group& g = group(sa->reqid);
  g.outbound.push_back(sa.get());
  outbound_.emplace(sa->id, std::move(sa));
  join(g);
}

void Tables::add(std::unique_ptr<InboundSa> sa, std::span<const std::uint8_t> keymat) {
  sa->key_name = crypto::fingerprint(keymat);
  keys_.insert(sa.get());
  Group& g = group(sa->reqid);
  InboundSa* raw = sa.get();
  g.inbound.push_back(raw);
  inbound_.emplace(sa->id, std::move(sa));
  join(g);
  sad_.insert(raw);  // last: from here on packets find it
}

void Tables::list_spi(OutboundSa& sa) {
  OutboundSa* first = by_spi_.find(sa.spi);
  if (first == nullptr) return by_spi_.insert(&sa);
  sa.same_spi = first->same_spi;
  first->same_spi = &sa;
}

void Tables::unlist_spi(const OutboundSa& sa) noexcept {
  OutboundSa* before = by_spi_.find(sa.spi);
  if (before != &sa) {
    while (before->same_spi != &sa) before = before->same_spi;
    before->same_spi = sa.same_spi;
  } else if (sa.same_spi != nullptr) {
    by_spi_.replace(sa, *sa.same_spi);
  } else {
    by_spi_.erase(sa.spi);
  }
}

std::unique_ptr<OutboundSa> Tables::remove_outbound(SaId id) {
  auto sa = take(outbound_, id);
  if (!sa) return nullptr;
  keys_.erase(sa->key_name);
  unlist_spi(*sa);
  Group& g = group(sa->reqid);
  std::erase(g.outbound, sa.get());
  join(g);
  drop_if_empty(sa->reqid);
  return sa;
}

std::unique_ptr<InboundSa> Tables::remove_inbound(SaId id) {
  auto sa = take(inbound_, id);
  if (!sa) return nullptr;
  sad_.erase(SadTraits::key(*sa));
  keys_.erase(sa->key_name);
  Group& g = group(sa->reqid);
  std::erase(g.inbound, sa.get());
  drop_if_empty(sa->reqid);
  return sa;
}

void Tables::expect(Spi spi, const ifaces::IpAddress& local) {
  const auto [entry, fresh] =
      larval_.try_emplace({spi, local}, SadKey{static_cast<std::uint32_t>(spi), words(local)});
  if (fresh) sad_.larval.insert(&entry->second);
}

void Tables::expect_no_more(Spi spi, const ifaces::IpAddress& local) {
  const auto entry = larval_.find({spi, local});
  if (entry == larval_.end()) return;
  old_larval_.reserve(old_larval_.size() + 1);
  sad_.larval.erase(entry->second);
  old_larval_.push_back(larval_.extract(entry));
}

void Tables::drop_if_empty(std::uint32_t reqid) {
  const Group& g = groups_[reqid];
  if (!g.policies.empty() || !g.outbound.empty() || !g.inbound.empty()) return;
  groups_.erase(reqid);
  if (groups_.bucket_count() > 16 * (groups_.size() + 16)) groups_.rehash(0);
}

void Tables::moved(std::uint32_t reqid, const Peer* moved_peer, const ifaces::IpAddress& peer) {
  Group& g = group(reqid);
  const auto move = [&](SaCommon& sa) {
    if (sa.peer.get() == moved_peer) sa.remote = peer;
  };
  for (OutboundSa* sa : g.outbound) move(*sa);
  for (InboundSa* sa : g.inbound) move(*sa);
  join(g);
}

void Tables::join(Group& g) {
  for (Policy* policy : g.policies) {
    if (policy->spec.direction != Direction::out) continue;
    const auto newest = std::find_if(g.outbound.rbegin(), g.outbound.rend(),
                                     [&](const OutboundSa* sa) { return fits(*sa, *policy); });
    OutboundSa* sa = newest == g.outbound.rend() ? nullptr : *newest;
    const bool compare_ends = note_devices(*policy, sa);
    // A worker looks at compare_ends before and after the SA: it never has the one without the
    // other.
    policy->compare_ends.store(true, std::memory_order_release);
    policy->sa.store(sa, std::memory_order_release);
    policy->compare_ends.store(compare_ends, std::memory_order_release);
  }
  for (InboundSa* sa : g.inbound) {
    auto binding = bind(g, *sa);
    sa->binding.store(binding.get(), std::memory_order_release);
    if (sa->own_binding) old_bindings_.push_back(std::move(sa->own_binding));
    sa->own_binding = std::move(binding);
  }
}

// Which device an inbound SA delivers to. A kernel VTI is found by the outer addresses, in this
// order: both, the remote one, the local one, a wildcard (ip_tunnel_lookup); its ikey is then held
// against the mark of the SA and of a policy. Here several devices may have the same ends, so the
// marks choose among them; of several keys that fit a mask, the one that is the mark's own value.
Device* Tables::device_for(const Group& g, const InboundSa& sa) const noexcept {
  Device* best = nullptr;
  int best_score = -1;
  for (const auto& entry : devices_) {
    Device& device = *entry.second;
    const DeviceSpec& spec = device.spec;
    if (!sa.mark.matches(spec.ikey) || sa.if_id != spec.if_id) continue;
    if (!spec.local.is_any() && spec.local != sa.local) continue;
    // A peer that may move is held to the mark and the selectors, not to its address.
    const bool remote_fits = !spec.remote.is_any() && spec.remote == sa.remote;
    if (!spec.remote.is_any() && !remote_fits && !sa.moves) continue;
    for (const Policy* policy : g.policies) {
      if (policy->spec.direction != Direction::in || policy->action != PolicyAction::protect ||
          !concerns(*policy, device))
        continue;
      const int score = (remote_fits ? 4 : 0) + (spec.local.is_any() ? 0 : 2) +
                        (spec.ikey == policy->spec.mark.value ? 1 : 0);
      if (score <= best_score) continue;
      best = &device;
      best_score = score;
    }
  }
  return best;
}

std::unique_ptr<const Binding> Tables::bind(const Group& g, const InboundSa& sa) const {
  auto binding = std::make_unique<Binding>();
  binding->device = device_for(g, sa);
  if (binding->device == nullptr) return binding;
  std::vector<const Policy*> policies(discards_);
  std::copy_if(g.policies.begin(), g.policies.end(), std::back_inserter(policies),
               [](const Policy* p) {
                 return p->spec.direction == Direction::in && p->action == PolicyAction::protect;
               });
  std::sort(policies.begin(), policies.end(), before);
  for (const Policy* policy : policies)
    if (concerns(*policy, *binding->device))
      binding->selectors.emplace_back(policy->spec.selector,
                                      policy->action == PolicyAction::protect);
  return binding;
}

void Tables::reclaim() noexcept {
  std::vector<std::unique_ptr<const Binding>>().swap(old_bindings_);  // and its array
  keys_.reclaim();
  by_spi_.reclaim();
  sad_.reclaim();
  sad_.larval.reclaim();
  old_larval_.clear();
  for (const auto& entry : devices_) entry.second->policies.reclaim();
}

}  // namespace espalier::dataplane
