#include "dataplane/esp_decap.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "dataplane/bytes.h"
#include "dataplane/ecn.h"
#include "dataplane/esp.h"

namespace espalier::dataplane {
namespace {

// Moves the packets for which `keep` holds to the front, in order; `keep` sets the reason of the
// rest.
template <class Keep>
std::size_t partition(std::span<InboundPacket> run, Keep&& keep) noexcept {
  std::size_t good = 0;
  for (std::size_t i = 0; i < run.size(); ++i) {
    if (!keep(run[i], i)) continue;
    if (good != i) std::swap(run[good], run[i]);
    ++good;
  }
  return good;
}

bool verdict_is_good(ReplayWindow::Verdict verdict, InboundPacket& packet) noexcept {
  switch (verdict) {
    case ReplayWindow::Verdict::good:
      return true;
    case ReplayWindow::Verdict::duplicate:
      packet.reason = Drop::duplicate;
      return false;
    case ReplayWindow::Verdict::late:
      packet.reason = Drop::late;
      return false;
  }
  return false;
}

// Length, sender and window, before anything is spent on the cipher (RFC 4303 §3.4.3).
std::size_t check(InboundSa& sa, std::size_t minimum, std::span<InboundPacket> run) noexcept {
  const ifaces::Endpoint pinned = sa.follow_peer ? ifaces::Endpoint{} : sa.peer->get();
  const bool any_sender = pinned.address.is_any();
  const SaLock lock(sa);
  return partition(run, [&](InboundPacket& packet, std::size_t) {
    if (packet.len < minimum) {
      packet.reason = Drop::too_short;
      return false;
    }
    if (!any_sender && *packet.peer != pinned) {
      packet.reason = Drop::wrong_peer;
      return false;
    }
    const auto seq_lo = load_be<std::uint32_t>(packet.esp + 4);
    packet.seq = sa.esn ? sa.window.infer(seq_lo) : seq_lo;
    return verdict_is_good(sa.window.check(packet.seq), packet);
  });
}

std::size_t open(const InboundSa& sa, const crypto::SuiteInfo& suite, unsigned worker,
                 std::span<InboundPacket> run) noexcept {
  std::array<crypto::AeadOp, kDecapBatch> ops;
  const std::size_t overhead = kEspHeader + suite.iv;
  for (std::size_t i = 0; i < run.size(); ++i) {
    const InboundPacket& packet = run[i];
    crypto::AeadOp& op = ops[i];
    op.text = packet.esp + overhead;
    op.text_len = static_cast<std::uint32_t>(packet.len - overhead - suite.icv);
    op.icv = op.text + op.text_len;
    op.good = false;
    std::memcpy(op.nonce.data(), sa.salt.data(), crypto::kMaxSaltBytes);
    std::memcpy(op.nonce.data() + suite.salt, packet.esp + kEspHeader, crypto::kCounterIvBytes);
    std::memcpy(op.aad.data(), packet.esp, 4);
    if (sa.esn) {
      store_be(op.aad.data() + 4, packet.seq);
      op.aad_len = 12;
    } else {
      std::memcpy(op.aad.data() + 4, packet.esp + 4, 4);
      op.aad_len = 8;
    }
  }
  sa.key(worker).open({ops.data(), run.size()});
  return partition(run, [&](InboundPacket& packet, std::size_t i) {
    packet.reason = Drop::integrity;
    return ops[i].good;
  });
}

std::size_t commit(InboundSa& sa, std::span<InboundPacket> run, DecapResult& result) noexcept {
  const SaLock lock(sa);
  return partition(run, [&](InboundPacket& packet, std::size_t) {
    const std::uint64_t top = sa.window.top();
    if (!verdict_is_good(sa.window.commit(packet.seq), packet)) return false;
    ++result.authentic;
    if (packet.seq > top) result.newest = packet.peer;
    return true;
  });
}

// RFC 4303 §2.4: 1, 2, 3, …
bool padding_is_right(const std::uint8_t* end, std::size_t padding) noexcept {
  for (std::size_t i = 0; i < padding; ++i)
    if (end[-1 - static_cast<std::ptrdiff_t>(i)] != padding - i) return false;
  return true;
}

// Everything after the ICV. True if there is an inner packet, or a dummy, that may go on.
bool finish(const InboundSa& sa, const Binding* binding, const crypto::SuiteInfo& suite,
            InboundPacket& packet) noexcept {
  const auto drop = [&packet](Drop reason) {
    packet.reason = reason;
    return false;
  };
  std::uint8_t* text = packet.esp + kEspHeader + suite.iv;
  const std::size_t text_len = packet.len - kEspHeader - suite.iv - suite.icv;
  const std::uint8_t next_header = text[text_len - 1];
  const std::size_t padding = text[text_len - 2];
  if (padding + kEspTrailer > text_len || !padding_is_right(text + text_len - kEspTrailer, padding))
    return drop(Drop::bad_padding);
  const std::size_t payload = text_len - kEspTrailer - padding;

  if (next_header == kNextNone) {
    packet.inner = nullptr;
    return true;
  }
  if ((next_header != kNextIpv4 && next_header != kNextIpv6) || payload == 0 ||
      (text[0] >> 4) != (next_header == kNextIpv4 ? 4 : 6))
    return drop(Drop::bad_next_header);
  // Shorter than the payload is TFC padding (RFC 4303 §2.7).
  if (!parse_inner({text, payload}, packet.key)) return drop(Drop::bad_inner_length);
  packet.inner = text;

  if (binding == nullptr || binding->device == nullptr) return drop(Drop::no_device);
  const auto rule =
      std::find_if(binding->selectors.begin(), binding->selectors.end(),
                   [&packet](const Binding::Rule& r) { return r.selector.matches(packet.key); });
  if (rule == binding->selectors.end()) return drop(Drop::selector_mismatch);
  if (!rule->allow) return drop(Drop::policy_discard);

  std::uint8_t ecn = packet.key.tos & kEcnMask;
  if (!ecn_decapsulate(packet.outer_tos & kEcnMask, ecn)) return drop(Drop::ecn_violation);
  // RFC 2983 §4.2: which DSCP it goes on with, the inner one as a rule (RFC 4301 §5.1.2.1).
  const std::uint8_t dscp = (sa.dscp_inwards ? packet.outer_tos : packet.key.tos) & kDscpMask;
  const auto tos = static_cast<std::uint8_t>(dscp | ecn);
  if (tos != packet.key.tos) {
    set_inner_tos(text, tos);
    packet.key.tos = tos;
  }
  return true;
}

// How many of `run` still pass under the SA's hard limits; the others get their reason.
std::size_t within(const Limits& limits, const SaCounters& counters,
                   std::span<InboundPacket> run) noexcept {
  std::uint64_t packets = counters.packets.load(std::memory_order_relaxed);
  std::uint64_t bytes = counters.bytes.load(std::memory_order_relaxed);
  return partition(run, [&](InboundPacket& packet, std::size_t) {
    packet.reason = Drop::expired;
    if (!limits.admits(packets, bytes)) return false;
    if (packet.inner == nullptr) return true;
    ++packets;
    bytes += packet.key.length;
    return true;
  });
}

}  // namespace

std::size_t esp_minimum(const crypto::SuiteInfo& suite) noexcept {
  return kEspHeader + suite.iv + std::max<std::size_t>(kEspTrailer, suite.align) + suite.icv;
}

DecapResult esp_decap(InboundSa& sa, unsigned worker, std::span<InboundPacket> run) noexcept {
  assert(run.size() <= kDecapBatch);
  const crypto::SuiteInfo& suite = crypto::info(sa.suite);
  DecapResult result;
  if (sa.life.expired()) [[unlikely]] {
    for (InboundPacket& packet : run) packet.reason = Drop::expired;
    return result;
  }
  run = run.first(check(sa, esp_minimum(suite), run));
  if (run.empty()) return result;
  run = run.first(open(sa, suite, worker, run));
  if (run.empty()) return result;
  run = run.first(commit(sa, run, result));
  result.binding = sa.binding.load(std::memory_order_acquire);
  result.good = partition(run, [&](InboundPacket& packet, std::size_t) {
    return finish(sa, result.binding, suite, packet);
  });
  if (const Limits* limits = sa.limits.load(std::memory_order_acquire)) [[unlikely]]
    result.good = within(*limits, sa.counters, run.first(result.good));
  return result;
}

}  // namespace espalier::dataplane
