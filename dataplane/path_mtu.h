// What the path to a peer carries, in bytes of outer IP packet: the smaller of what routers report
// (RFC 1191, 8201) and what the own link takes.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

namespace espalier::dataplane {

// Workers read it once a batch; the control thread writes, but for refused().
class PathMtu {
 public:
  // Nobody is believed below: RFC 791 §3.2 (every host takes 576), RFC 8200 §5.
  static constexpr std::uint32_t kFloor4 = 576, kFloor6 = 1280;
  static constexpr std::int64_t kLifeNs = 600'000'000'000;  // RFC 1191 §6.3: ten minutes

  // 0: no limit is known. `now_ns`: steady clock.
  [[nodiscard]] std::uint32_t get(std::int64_t now_ns) const noexcept {
    const std::uint32_t link = link_.load(std::memory_order_relaxed);
    const std::uint32_t learned = learned_.load(std::memory_order_relaxed);
    if (learned == 0 || now_ns >= expires_ns_.load(std::memory_order_relaxed)) [[likely]]
      return link;
    return link == 0 ? learned : std::min(link, learned);
  }

  // A router says `mtu` about a packet of ours of `length` bytes (0: not known). A lower number
  // counts; a higher one never does, and an old one is forgotten with time. True if it is news.
  bool learn(std::uint32_t mtu, std::uint32_t length, bool ipv6, std::int64_t now_ns) noexcept {
    if (!ipv6 && mtu == 0) mtu = plateau_below(length);
    if (!ipv6 && length != 0 && mtu >= length) return false;  // then it was not too big
    if (ipv6 && mtu < kFloor6) return false;                  // RFC 8201 §4
    if (!ipv6) mtu = std::max(mtu, kFloor4);
    const std::uint32_t known = get(now_ns);
    if (known != 0 && mtu > known) return false;
    learned_.store(mtu, std::memory_order_relaxed);
    expires_ns_.store(now_ns + kLifeNs, std::memory_order_relaxed);
    return mtu != known;
  }

  // The link's; 0: whatever it takes.
  void set_link(std::uint32_t mtu) noexcept { link_.store(mtu, std::memory_order_relaxed); }
  [[nodiscard]] std::uint32_t link() const noexcept {
    return link_.load(std::memory_order_relaxed);
  }
  // The peer is somewhere else now.
  void forget() noexcept { learned_.store(0, std::memory_order_relaxed); }

  // Any worker: the kernel refused a packet for its length. The control thread asks it for the
  // number.
  void refused() noexcept { refused_.store(true, std::memory_order_relaxed); }
  [[nodiscard]] bool take_refused() noexcept {
    return refused_.load(std::memory_order_relaxed) &&
           refused_.exchange(false, std::memory_order_relaxed);
  }

 private:
  // RFC 1191 §7.1: for routers that report no number.
  static constexpr std::uint32_t plateau_below(std::uint32_t length) noexcept {
    constexpr std::array<std::uint32_t, 8> kPlateaus = {32000, 17914, 8166, 4352,
                                                        2002,  1492,  1006, kFloor4};
    for (const std::uint32_t p : kPlateaus)
      if (p < length) return p;
    return kFloor4;
  }

  std::atomic<std::uint32_t> link_{0}, learned_{0};
  std::atomic<std::int64_t> expires_ns_{0};
  std::atomic<bool> refused_{false};
};

}  // namespace espalier::dataplane
