// Where an SA pair's outer packets go. Read by every worker once a batch, written when an
// authenticated packet shows that the peer has moved (RFC 3948 §2.2, RFC 7296 §2.23).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>

#include "dataplane/path_mtu.h"
#include "ifaces/address.h"

namespace espalier::dataplane {

// A sequence lock: readers retry while a write is in progress. Writers exclude each other.
class Peer {
 public:
  explicit Peer(const ifaces::Endpoint& endpoint) noexcept { set(endpoint); }

  [[nodiscard]] ifaces::Endpoint get() const noexcept {
    Words w;
    std::uint32_t before = 0;
    do {
      before = version_.load(std::memory_order_acquire);
      for (std::size_t i = 0; i < w.size(); ++i) w[i] = words_[i].load(std::memory_order_acquire);
    } while ((before & 1) != 0 || version_.load(std::memory_order_relaxed) != before);
    return unpack(w);
  }

  void set(const ifaces::Endpoint& endpoint) noexcept {
    const Words w = pack(endpoint);
    while (writing_.test_and_set(std::memory_order_acquire)) {
    }
    const std::uint32_t v = version_.load(std::memory_order_relaxed);
    version_.store(v + 1, std::memory_order_relaxed);
    // Release, so that a reader of a new word also sees the odd version (no fence: ThreadSanitizer
    // does not know them).
    for (std::size_t i = 0; i < w.size(); ++i) words_[i].store(w[i], std::memory_order_release);
    version_.store(v + 2, std::memory_order_release);
    writing_.clear(std::memory_order_release);
    path_.forget();
  }

  [[nodiscard]] PathMtu& path() noexcept { return path_; }

 private:
  using Words = std::array<std::uint64_t, 3>;

  static Words pack(const ifaces::Endpoint& e) noexcept {
    Words w{};
    std::memcpy(w.data(), e.address.bytes.data(), 16);
    w[2] = static_cast<std::uint64_t>(e.address.family) << 16 | e.port;
    return w;
  }
  static ifaces::Endpoint unpack(const Words& w) noexcept {
    ifaces::Endpoint e;
    std::memcpy(e.address.bytes.data(), w.data(), 16);
    e.address.family = static_cast<ifaces::Family>(w[2] >> 16);
    e.port = static_cast<std::uint16_t>(w[2]);
    return e;
  }

  std::atomic<std::uint32_t> version_{0};
  std::atomic_flag writing_;
  std::array<std::atomic<std::uint64_t>, 3> words_{};
  PathMtu path_;
};

}  // namespace espalier::dataplane
