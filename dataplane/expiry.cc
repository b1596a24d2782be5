#include "dataplane/expiry.h"

#include <algorithm>

namespace espalier::dataplane {
namespace {

bool later(const ExpiryQueue::Due& a, const ExpiryQueue::Due& b) {
  return a.at > b.at;
}

}  // namespace

ExpiryQueue::Time ExpiryQueue::due(Time added, std::uint64_t seconds) noexcept {
  // No sum may pass the end of the clock.
  constexpr std::uint64_t kForever = 100ULL * 365 * 24 * 3600;
  return added + std::chrono::seconds(std::min(seconds, kForever));
}

void ExpiryQueue::set(SaId sa, Time added, const Limit& seconds) {
  for (const auto& [limit, hard] : {std::pair{seconds.soft, false}, {seconds.hard, true}}) {
    if (limit == 0) continue;
    heap_.push_back({due(added, limit), sa, hard});
    std::push_heap(heap_.begin(), heap_.end(), later);
  }
}

ExpiryQueue::Due ExpiryQueue::pop() {
  std::pop_heap(heap_.begin(), heap_.end(), later);
  const Due due = heap_.back();
  heap_.pop_back();
  return due;
}

void ExpiryQueue::reheap() {
  std::make_heap(heap_.begin(), heap_.end(), later);
}

}  // namespace espalier::dataplane
