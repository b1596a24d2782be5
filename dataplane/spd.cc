#include "dataplane/spd.h"

#include <sys/random.h>

#include <algorithm>

namespace espalier::dataplane {

std::uint64_t hash_words(std::uint64_t a, std::uint64_t b) noexcept {
  static const std::array<std::uint64_t, 2> secret = [] {
    std::array<std::uint64_t, 2> s{0x9e3779b97f4a7c15, 0xc2b2ae3d27d4eb4f};
    std::array<std::uint64_t, 2> random{};
    if (getrandom(random.data(), sizeof random, 0) == sizeof random) s = random;
    return std::array<std::uint64_t, 2>{s[0] | 1, s[1] | 1};
  }();
  __extension__ using Wide = unsigned __int128;
  const Wide product = Wide{a ^ secret[0]} * (b ^ secret[1]);
  const Wide mixed =
      Wide{static_cast<std::uint64_t>(product >> 64) ^ static_cast<std::uint64_t>(product)} *
      secret[1];
  return static_cast<std::uint64_t>(mixed >> 64) ^ static_cast<std::uint64_t>(mixed);
}

namespace {

using PolicyList = std::vector<const Policy*>;

struct PrefixPair {
  AddressWords source;
  AddressWords destination;
  bool operator==(const PrefixPair& other) const noexcept {
    return same(source, other.source) && same(destination, other.destination);
  }
};

// The lower number; of equal ones the longer prefixes.
bool better(const Policy& a, const Policy& b) {
  if (a.spec.priority != b.spec.priority) return a.spec.priority < b.spec.priority;
  const auto bits = [](const Policy& p) {
    return p.spec.selector.source.length + p.spec.selector.destination.length;
  };
  return bits(a) > bits(b);
}

bool before(const Policy* a, const Policy* b) {
  if (a->spec.priority != b->spec.priority) return a->spec.priority < b->spec.priority;
  return a->id < b->id;
}

}  // namespace

struct alignas(64) Spd::Bucket {
  PrefixPair prefixes;
  // The only policy, if it is one for every upper layer: then nothing more needs to be read.
  std::atomic<const Policy*> only{nullptr};
  std::atomic<const PolicyList*> list{nullptr};
  std::size_t at = 0;  // in its Shape's `owned`
  ~Bucket() { delete list.load(std::memory_order_relaxed); }
};

struct Spd::BucketTraits {
  using Key = PrefixPair;
  static const Key& key(const Bucket& b) noexcept { return b.prefixes; }
  static std::uint64_t hash(const Key& k) noexcept {
    return hash_words(hash_words(k.source[0], k.source[1]),
                      hash_words(k.destination[0], k.destination[1]));
  }
};

struct Spd::Shape {
  bool ipv6;
  unsigned source_length, destination_length;
  AddressWords source_mask, destination_mask;
  std::atomic<std::uint32_t> best_priority{~0U};  // of all its policies, ever: only a bound
  PtrIndex<Bucket, BucketTraits> buckets;
  std::vector<std::unique_ptr<Bucket>> owned;

  [[nodiscard]] PrefixPair prefixes(const InnerKey& key) const noexcept {
    return {{key.source[0] & source_mask[0], key.source[1] & source_mask[1]},
            {key.destination[0] & destination_mask[0], key.destination[1] & destination_mask[1]}};
  }
};

Spd::Spd() : shapes_(new Shapes) {}

Spd::~Spd() {
  delete shapes_.load(std::memory_order_relaxed);
}

const Policy* Spd::find(const InnerKey& key) const noexcept {
  const Policy* best = nullptr;
  for (const Shape* shape : *shapes_.load(std::memory_order_acquire)) {
    if (shape->ipv6 != key.ipv6) continue;
    if (best != nullptr &&
        best->spec.priority < shape->best_priority.load(std::memory_order_relaxed))
      break;  // the shapes are in the order of their best
    const Bucket* bucket = shape->buckets.find(shape->prefixes(key));
    if (bucket == nullptr) continue;
    if (best == nullptr) {
      best = bucket->only.load(std::memory_order_acquire);
      if (best != nullptr) continue;
    }
    for (const Policy* policy : *bucket->list.load(std::memory_order_acquire)) {
      if (best != nullptr && !better(*policy, *best)) break;
      if (policy->matcher.matches_rest(key)) {
        best = policy;
        break;
      }
    }
  }
  return best;
}

void Spd::prefetch(const InnerKey& key) const noexcept {
  for (const Shape* shape : *shapes_.load(std::memory_order_acquire))
    if (shape->ipv6 == key.ipv6 && shape->buckets.worth_prefetching())
      shape->buckets.prefetch(shape->prefixes(key));
}

void Spd::prefetch_bucket(const InnerKey& key) const noexcept {
  for (const Shape* shape : *shapes_.load(std::memory_order_acquire))
    if (shape->ipv6 == key.ipv6 && shape->buckets.worth_prefetching())
      shape->buckets.prefetch_node(shape->prefixes(key));
}

void Spd::publish(std::vector<Shape*> shapes) {
  std::sort(shapes.begin(), shapes.end(), [](const Shape* a, const Shape* b) {
    const std::uint32_t pa = a->best_priority.load(std::memory_order_relaxed);
    const std::uint32_t pb = b->best_priority.load(std::memory_order_relaxed);
    if (pa != pb) return pa < pb;
    return a->source_length + a->destination_length > b->source_length + b->destination_length;
  });
  auto fresh = std::make_unique<Shapes>(std::move(shapes));
  old_shapes_.emplace_back(shapes_.load(std::memory_order_relaxed));
  shapes_.store(fresh.release(), std::memory_order_release);
}

void Spd::add(const Policy& policy) {
  const Selector& selector = policy.spec.selector;
  const bool ipv6 = selector.source.address.family == ifaces::Family::v6;
  Shape* shape = nullptr;
  for (const auto& s : owned_)
    if (s->ipv6 == ipv6 && s->source_length == selector.source.length &&
        s->destination_length == selector.destination.length)
      shape = s.get();
  const bool new_shape = shape == nullptr;
  if (new_shape) {
    owned_.push_back(std::make_unique<Shape>());
    shape = owned_.back().get();
    shape->ipv6 = ipv6;
    shape->source_length = selector.source.length;
    shape->destination_length = selector.destination.length;
    shape->source_mask = prefix_mask(selector.source.length);
    shape->destination_mask = prefix_mask(selector.destination.length);
  }
  InnerKey key{};
  key.source = words(selector.source.address);
  key.destination = words(selector.destination.address);
  const PrefixPair prefixes = shape->prefixes(key);
  Bucket* bucket = shape->buckets.find(prefixes);
  const PolicyList* before_list =
      bucket == nullptr ? nullptr : bucket->list.load(std::memory_order_relaxed);
  auto list = std::make_unique<PolicyList>(before_list == nullptr ? PolicyList{} : *before_list);
  list->insert(std::upper_bound(list->begin(), list->end(), &policy, before), &policy);
  const Policy* only = list->size() == 1 && policy.matcher.any_rest() ? &policy : nullptr;
  if (bucket == nullptr) {
    shape->owned.push_back(std::make_unique<Bucket>());
    bucket = shape->owned.back().get();
    bucket->at = shape->owned.size() - 1;
    bucket->prefixes = prefixes;
    bucket->list.store(list.release(), std::memory_order_release);
    bucket->only.store(only, std::memory_order_release);
    shape->buckets.insert(bucket);
  } else {
    bucket->list.store(list.release(), std::memory_order_release);
    bucket->only.store(only, std::memory_order_release);
    if (before_list != nullptr) old_lists_.emplace_back(before_list);
  }
  ++size_;
  if (new_shape || policy.spec.priority < shape->best_priority.load(std::memory_order_relaxed)) {
    shape->best_priority.store(policy.spec.priority, std::memory_order_relaxed);
    Shapes shapes;
    for (const auto& s : owned_) shapes.push_back(s.get());
    publish(std::move(shapes));
  }
}

void Spd::remove(const Policy& policy) {
  const Selector& selector = policy.spec.selector;
  const bool ipv6 = selector.source.address.family == ifaces::Family::v6;
  for (const auto& shape : owned_) {
    if (shape->ipv6 != ipv6 || shape->source_length != selector.source.length ||
        shape->destination_length != selector.destination.length)
      continue;
    InnerKey key{};
    key.source = words(selector.source.address);
    key.destination = words(selector.destination.address);
    const PrefixPair prefixes = shape->prefixes(key);
    Bucket* bucket = shape->buckets.find(prefixes);
    if (bucket == nullptr) return;
    const PolicyList* list = bucket->list.load(std::memory_order_relaxed);
    auto rest = std::make_unique<PolicyList>(*list);
    if (std::erase(*rest, &policy) == 0) return;
    --size_;
    const bool empty = rest->empty();
    const bool any_upper = rest->size() == 1 && rest->front()->matcher.any_rest();
    bucket->only.store(any_upper ? rest->front() : nullptr, std::memory_order_release);
    bucket->list.store(rest.release(), std::memory_order_release);
    old_lists_.emplace_back(list);
    if (!empty) return;
    shape->buckets.erase(prefixes);
    std::swap(shape->owned[bucket->at], shape->owned.back());
    shape->owned[bucket->at]->at = bucket->at;
    old_buckets_.push_back(std::move(shape->owned.back()));
    shape->owned.pop_back();
    if (shape->owned.capacity() > 8 * (shape->owned.size() + 8)) shape->owned.shrink_to_fit();
    return;
  }
}

void Spd::reclaim() noexcept {
  // With their arrays: they may have held many at once.
  decltype(old_shapes_)().swap(old_shapes_);
  decltype(old_buckets_)().swap(old_buckets_);
  decltype(old_lists_)().swap(old_lists_);
  for (const auto& shape : owned_) shape->buckets.reclaim();
}

}  // namespace espalier::dataplane
