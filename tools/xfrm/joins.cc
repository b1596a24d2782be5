#include "tools/xfrm/joins.h"

#include <algorithm>

namespace espalier::tools::xfrm {
namespace {

// Nobody else's: who writes to the control socket has those below 2^30, the conns of the
// configuration those from there.
constexpr std::uint32_t kFirstOwn = 0x80000000;

using ifaces::IpAddress;

bool meets(const IpAddress& a, const IpAddress& b) {
  return a.is_any() || b.is_any() || a == b;
}

template <class Key>
bool has_unknown(const Key& key) {
  return std::get<1>(key).is_any() || std::get<2>(key).is_any();
}

}  // namespace

Joins::Map::iterator Joins::find(const Key& key) {
  const auto exact = joins_.find(key);
  if (exact != joins_.end() || (unknown_ == 0 && !has_unknown(key))) return exact;
  const auto& [reqid, one, other, tunnel] = key;
  for (auto it = joins_.lower_bound(Key{reqid, {}, {}, false});
       it != joins_.end() && std::get<0>(it->first) == reqid; ++it) {
    const auto& [unused, a, b, of_tunnel] = it->first;
    if (tunnel != of_tunnel) continue;
    if ((meets(one, a) && meets(other, b)) || (meets(one, b) && meets(other, a))) return it;
  }
  return joins_.end();
}

std::uint32_t Joins::next_number() {
  std::uint32_t number = 0;
  do {
    number = kFirstOwn | next_++;
  } while (by_number_.contains(number));
  return number;
}

Joins::Join& Joins::take(std::uint32_t reqid, const IpAddress& one, const IpAddress& other,
                         bool tunnel) {
  const Key key{reqid, std::min(one, other), std::max(one, other), tunnel};
  auto found = find(key);
  if (found == joins_.end()) {
    Join join;
    join.number = next_number();
    found = joins_.emplace(key, std::move(join)).first;
    by_number_.emplace(found->second.number, found);
    if (has_unknown(key)) ++unknown_;
  }
  ++found->second.users;
  return found->second;
}

void Joins::drop(Join& join) {
  if (--join.users > 0) return;
  const auto number = by_number_.find(join.number);
  const auto entry = number->second;
  by_number_.erase(number);
  if (has_unknown(entry->first)) --unknown_;
  joins_.erase(entry);
}

}  // namespace espalier::tools::xfrm
