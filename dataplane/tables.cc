#include "dataplane/tables.h"

#include <algorithm>

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

bool applies(const Policy& policy, const Device& device) {
  return policy.spec.direction == Direction::out && policy.spec.mark.matches(device.spec.okey);
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

std::shared_ptr<Peer> Tables::peer(std::uint32_t reqid) const {
  const auto it = groups_.find(reqid);
  if (it == groups_.end()) return nullptr;
  if (!it->second.outbound.empty()) return it->second.outbound.back()->peer;
  if (!it->second.inbound.empty()) return it->second.inbound.back()->peer;
  return nullptr;
}

void Tables::add(std::unique_ptr<Device> device) {
  for (const auto& entry : policies_)
    if (applies(*entry.second, *device)) device->policies.add(*entry.second);
  devices_.emplace(device->id, std::move(device));
  for (auto& entry : groups_) join(entry.second);
}

std::unique_ptr<Device> Tables::remove(DeviceId id) {
  auto device = take(devices_, id);
  if (device)
    for (auto& entry : groups_) join(entry.second);
  return device;
}

void Tables::add(std::unique_ptr<Policy> policy) {
  Group& g = group(policy->spec.reqid);
  g.policies.push_back(policy.get());
  if (!g.outbound.empty()) policy->sa.store(g.outbound.back(), std::memory_order_release);
  for (const auto& entry : devices_)
    if (applies(*policy, *entry.second)) entry.second->policies.add(*policy);
  policies_.emplace(policy->id, std::move(policy));
  join(g);
}

std::unique_ptr<Policy> Tables::remove(PolicyId id) {
  auto policy = take(policies_, id);
  if (!policy) return nullptr;
  for (const auto& entry : devices_)
    if (applies(*policy, *entry.second)) entry.second->policies.remove(*policy);
  Group& g = group(policy->spec.reqid);
  std::erase(g.policies, policy.get());
  join(g);
  drop_if_empty(policy->spec.reqid);
  return policy;
}

void Tables::add(std::unique_ptr<OutboundSa> sa, std::span<const std::uint8_t> keymat) {
  sa->key_name = crypto::fingerprint(keymat);
  keys_.insert(sa.get());
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

std::unique_ptr<OutboundSa> Tables::remove_outbound(SaId id) {
  auto sa = take(outbound_, id);
  if (!sa) return nullptr;
  keys_.erase(sa->key_name);
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

void Tables::drop_if_empty(std::uint32_t reqid) {
  const Group& g = groups_[reqid];
  if (!g.policies.empty() || !g.outbound.empty() || !g.inbound.empty()) return;
  groups_.erase(reqid);
  if (groups_.bucket_count() > 16 * (groups_.size() + 16)) groups_.rehash(0);
}

void Tables::join(Group& g) {
  OutboundSa* newest = g.outbound.empty() ? nullptr : g.outbound.back();
  for (Policy* policy : g.policies)
    if (policy->spec.direction == Direction::out)
      policy->sa.store(newest, std::memory_order_release);
  for (InboundSa* sa : g.inbound) {
    auto binding = bind(g, *sa);
    sa->binding.store(binding.get(), std::memory_order_release);
    if (sa->own_binding) old_bindings_.push_back(std::move(sa->own_binding));
    sa->own_binding = std::move(binding);
  }
}

// Which device an inbound policy delivers to: its mark must match the ikey, its end points cover
// the outer addresses. Of several: the key that is the mark's own value, then the exact end points
// (the order of a kernel VTI's lookup).
Device* Tables::device_for(const Policy& policy, const InboundSa& sa) const noexcept {
  Device* best = nullptr;
  int best_score = -1;
  const ifaces::IpAddress peer = sa.peer->get().address;
  for (const auto& entry : devices_) {
    Device& device = *entry.second;
    const DeviceSpec& spec = device.spec;
    if (!policy.spec.mark.matches(spec.ikey)) continue;
    if (!spec.local.is_any() && spec.local != sa.local) continue;
    // A peer that may move is held to the mark and the selectors, not to its address.
    const bool remote_fits = spec.remote == peer;
    if (!spec.remote.is_any() && !remote_fits && !sa.follow_peer) continue;
    const int score = (spec.ikey == policy.spec.mark.value ? 8 : 0) + (remote_fits ? 4 : 0) +
                      (spec.local == sa.local ? 2 : 0);
    if (score > best_score) {
      best = &device;
      best_score = score;
    }
  }
  return best;
}

std::unique_ptr<const Binding> Tables::bind(const Group& g, const InboundSa& sa) const {
  auto binding = std::make_unique<Binding>();
  for (const Policy* policy : g.policies) {
    if (policy->spec.direction != Direction::in || policy->spec.action != PolicyAction::protect)
      continue;
    Device* device = device_for(*policy, sa);
    if (device == nullptr || (binding->device != nullptr && binding->device != device)) continue;
    binding->device = device;
    binding->selectors.emplace_back(policy->spec.selector);
  }
  return binding;
}

void Tables::reclaim() noexcept {
  std::vector<std::unique_ptr<const Binding>>().swap(old_bindings_);  // and its array
  keys_.reclaim();
  sad_.reclaim();
  for (const auto& entry : devices_) entry.second->policies.reclaim();
}

}  // namespace espalier::dataplane
