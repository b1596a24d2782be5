// When the time limits of SAs are due, on the steady clock: setting the clock of the machine
// expires nothing.
//
// Thread safety: the control thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "dataplane/types.h"

namespace espalier::dataplane {

class ExpiryQueue {
 public:
  using Time = std::chrono::steady_clock::time_point;

  struct Due {
    Time at;
    SaId sa{};
    bool hard = false;
  };

  // In place of what was set for `sa` before. Seconds of 0 are no limit.
  void set(SaId sa, Time added, const Limit& seconds);

  // The first that is due at `now`, taken out. `current` tells whether an entry still holds: what
  // was removed or set anew is left behind in the queue.
  template <class Current>
  std::optional<Due> take(Time now, Current&& current) {
    drop_stale(current);
    if (heap_.empty() || heap_.front().at > now) return std::nullopt;
    return pop();
  }
  template <class Current>
  [[nodiscard]] std::optional<Time> next(Current&& current) {
    drop_stale(current);
    if (heap_.empty()) return std::nullopt;
    return heap_.front().at;
  }
  // Frees what is left behind, once it is most of the queue. `live`: how many SAs there are.
  template <class Current>
  void compact(std::size_t live, Current&& current) {
    if (heap_.size() <= 4 * live + kSlack) return;
    std::erase_if(heap_, [&](const Due& due) { return !current(due); });
    heap_.shrink_to_fit();
    reheap();
  }

  [[nodiscard]] static Time due(Time added, std::uint64_t seconds) noexcept;

 private:
  static constexpr std::size_t kSlack = 64;

  template <class Current>
  void drop_stale(Current&& current) {
    while (!heap_.empty() && !current(heap_.front())) pop();
  }
  Due pop();
  void reheap();

  std::vector<Due> heap_;  // the earliest first
};

}  // namespace espalier::dataplane
