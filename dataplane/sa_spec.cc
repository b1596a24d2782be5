#include "dataplane/sa_spec.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

namespace espalier::dataplane {

std::string hex(Spi spi) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text = "0x";
  for (int shift = 28; shift >= 0; shift -= 4)
    text += digits[static_cast<std::uint32_t>(spi) >> shift & 0xf];
  return text;
}

std::uint64_t last_seq(const SaCommon& sa) noexcept {
  constexpr std::uint64_t kRoom = std::uint64_t{1} << 32;
  return sa.esn ? std::numeric_limits<std::uint64_t>::max() - kRoom : 0xffffffff;
}

// A worker that ends the SA sets its limit to 0 last: whatever is in between, that stands.
void set_limit(OutboundSa& sa, std::uint64_t limit) noexcept {
  limit = std::min(limit, last_seq(sa));
  std::uint64_t before = sa.seq_limit.load(std::memory_order_acquire);
  while (!sa.life.expired() &&
         !sa.seq_limit.compare_exchange_weak(before, limit, std::memory_order_acq_rel)) {
  }
}

std::uint64_t margin_packets(const OutboundSa& sa) noexcept {
  if (sa.esn) return Limits::kNever;
  constexpr std::uint64_t kSoft = (std::uint64_t{1} << 32) - (std::uint64_t{1} << 28);
  const std::uint64_t next = sa.next_seq.load(std::memory_order_relaxed);
  const std::uint64_t sent = sa.counters.packets.load(std::memory_order_relaxed);
  return sent + (next < kSoft ? kSoft - next : 1);
}

void check_window(bool esn, std::uint32_t bits) {
  if (bits == 0 && esn)
    throw std::invalid_argument(
        "extended sequence numbers need a replay window (RFC 4303 §3.4.3); take a window of 32 to "
        "65536 packets, or no ESN");
  if (bits != 0 && (bits < kMinWindowBits || bits > kMaxWindowBits))
    throw std::invalid_argument("a replay window of " + std::to_string(bits) +
                                " packets; take 32 to 65536, or 0 for none without ESN");
}

void check_lifetime(const Lifetime& lifetime) {
  const auto check = [](const char* what, const Limit& limit) {
    if (limit.hard != 0 && limit.soft > limit.hard)
      throw std::invalid_argument(std::string("the soft limit of ") + what + " (" +
                                  std::to_string(limit.soft) + ") is above the hard one (" +
                                  std::to_string(limit.hard) + "); make it smaller");
  };
  check("bytes", lifetime.bytes);
  check("packets", lifetime.packets);
  check("seconds", lifetime.seconds);
}

void check(const SaSpec& spec, const Tables& tables, const crypto::Registry& registry) {
  const crypto::SuiteInfo& suite = crypto::info(spec.suite);
  if (static_cast<std::uint32_t>(spec.spi) < kFirstSpi)
    throw std::invalid_argument("SPI " + hex(spec.spi) +
                                " is reserved; choose one from 0x00000100 up");
  if (spec.keymat.size() != suite.keymat())
    throw std::invalid_argument(std::string(suite.name) + " takes " +
                                std::to_string(suite.keymat()) + " bytes of keys and salt, not " +
                                std::to_string(spec.keymat.size()));
  if (spec.direction == Direction::in && tables.inbound(spec.spi, spec.local.address) != nullptr)
    throw std::invalid_argument("there is an inbound SA with SPI " + hex(spec.spi) + " at " +
                                spec.local.address.str() + " already; choose another SPI");
  if (tables.has_key(spec.keymat.bytes()))
    throw std::invalid_argument("SA " + hex(spec.spi) +
                                ": another SA has the same key and salt; make fresh keys");
  check_window(spec.esn, spec.window_bits);
  check_lifetime(spec.lifetime);
  if (registry.backend(spec.suite) == nullptr)
    throw std::invalid_argument(std::string(suite.name) + ": no crypto backend in use has it");
}

void fill(SaCommon& sa, SaId id, const SaSpec& spec, const crypto::Registry& registry,
          const Tables& tables, std::size_t workers) {
  const crypto::SuiteInfo& suite = crypto::info(spec.suite);
  const crypto::Backend& backend = *registry.backend(spec.suite);
  sa.id = id;
  sa.spi = spec.spi;
  sa.reqid = spec.reqid;
  sa.encapsulation = spec.encapsulation;
  sa.esn = spec.esn;
  sa.suite = spec.suite;
  sa.backend = backend.name();
  sa.name = spec.name;
  sa.key_name = crypto::fingerprint(spec.keymat.bytes());
  sa.added = std::chrono::steady_clock::now();
  sa.outer_mark = spec.outer_mark;
  sa.mss_clamp = spec.mss_clamp;
  const auto key = spec.keymat.bytes().first(suite.keys());
  const auto salt = spec.keymat.bytes().subspan(suite.keys());
  std::copy(salt.begin(), salt.end(), sa.salt.begin());
  sa.keys.push_back(backend.expand(spec.suite, key));
  if (!sa.keys.front()->shareable())
    while (sa.keys.size() < workers) sa.keys.push_back(backend.expand(spec.suite, key));
  sa.mark = spec.mark;
  sa.if_id = spec.if_id;
  sa.local = spec.local.address;
  sa.remote = spec.peer.address;
  sa.moves =
      spec.encapsulation == Encapsulation::udp && (spec.follow_peer || spec.peer.address.is_any());
  sa.remote_port = spec.peer.port;
  sa.peer = tables.peer(spec.reqid, spec.peer);
  if (!sa.peer) sa.peer = std::make_shared<Peer>(spec.peer);
}

}  // namespace espalier::dataplane
