// The packet path without a kernel: for benchmarks and `espalier bench`. Policies, SAs, sequence
// numbers, window, headers and cipher are the real ones; what the engine would send stays in
// memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "crypto/aead.h"

namespace espalier::tools {

class MemoryPath {
 public:
  static constexpr std::size_t kBatch = 64;

  // Inner packets of `size` bytes (at least 28), spread over `flows` SAs and policies, each with
  // its own key. `backend` must support `suite` and outlive this.
  MemoryPath(const crypto::Backend& backend, crypto::Suite suite, std::size_t size,
             std::size_t flows = 1);
  ~MemoryPath();
  MemoryPath(const MemoryPath&) = delete;
  MemoryPath& operator=(const MemoryPath&) = delete;

  // kBatch packets as read from a TUN become sealed ESP packets, as queued for one turn.
  void encap();
  // The sealed packets of the last encap() become inner packets again; returns how many were good.
  // Each encap() allows one decap().
  std::size_t decap();
  // SPD and SAD lookups alone, as for one batch out and one batch in; returns how many were found.
  std::size_t lookup();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace espalier::tools
