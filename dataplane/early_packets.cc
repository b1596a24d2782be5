#include "dataplane/early_packets.h"

#include <algorithm>

namespace espalier::dataplane {

EarlyPackets::EarlyPackets()
    : slots_(std::allocator<Held>().allocate(kPackets)),
      bytes_(std::make_unique_for_overwrite<std::uint8_t[]>(kPackets * kStride)) {}

bool EarlyPackets::hold(const SadKey& key, std::span<const std::uint8_t> esp, Encapsulation how,
                        std::uint8_t tos, const ifaces::Endpoint& peer,
                        std::int64_t now_ns) noexcept {
  if (esp.size() > kBytes) return false;
  Line* const line = line_of(key);
  if (line == nullptr) return false;
  bool all = true;
  if (line->count == kOfOne) {
    give_back(pop(*line));
    all = false;
  }
  std::uint16_t slot = free_slot();
  if (slot == kNone) {
    Line& longest =
        *std::max_element(lines_.begin(), lines_.end(),
                          [](const Line& a, const Line& b) { return a.count < b.count; });
    if (longest.count == 0) return false;  // all of them are leaving
    slot = pop(longest);
    all = false;
  }
  if (line->count == 0) {
    line->key = key;
    line->first = slot;
  } else {
    slots_[line->last].next = slot;
  }
  line->last = slot;
  ++line->count;
  ++waiting_;
  const Held& held = *std::construct_at(
      &slots_[slot],
      Held{peer, now_ns + kPatienceNs, static_cast<std::uint16_t>(esp.size()), kNone, tos, how});
  std::copy(esp.begin(), esp.end(), bytes(held));
  return all;
}

EarlyPackets::Line* EarlyPackets::find(const SadKey& key) noexcept {
  for (Line& line : lines_)
    if (line.count > 0 && line.key == key) return &line;
  return nullptr;
}

// That of the SPI, or a free one.
EarlyPackets::Line* EarlyPackets::line_of(const SadKey& key) noexcept {
  if (Line* const line = find(key)) return line;
  for (Line& line : lines_)
    if (line.count == 0) return &line;
  return nullptr;
}

std::uint16_t EarlyPackets::free_slot() noexcept {
  if (free_ == kNone) return untouched_ < kPackets ? untouched_++ : kNone;
  const std::uint16_t slot = free_;
  free_ = slots_[slot].next;
  return slot;
}

std::uint16_t EarlyPackets::pop(Line& line) noexcept {
  const std::uint16_t slot = line.first;
  line.first = slots_[slot].next;
  --line.count;
  --waiting_;
  return slot;
}

void EarlyPackets::give_back(std::uint16_t slot) noexcept {
  slots_[slot].next = free_;
  free_ = slot;
}

EarlyPackets::Held& EarlyPackets::take(Line& line) noexcept {
  const std::uint16_t slot = pop(line);
  slots_[slot].next = leaving_;
  leaving_ = slot;
  return slots_[slot];
}

std::uint8_t* EarlyPackets::bytes(const Held& held) noexcept {
  return &bytes_[static_cast<std::size_t>(&held - slots_.get()) * kStride + kHeadroom];
}

std::size_t EarlyPackets::forget(Line& line) noexcept {
  const std::size_t count = line.count;
  while (line.count > 0) give_back(pop(line));
  return count;
}

std::size_t EarlyPackets::expire(Line& line, std::int64_t now_ns) noexcept {
  std::size_t count = 0;
  for (; line.count > 0 && slots_[line.first].until_ns < now_ns; ++count) give_back(pop(line));
  return count;
}

void EarlyPackets::retire() noexcept {
  while (leaving_ != kNone) {
    const std::uint16_t slot = leaving_;
    leaving_ = slots_[slot].next;
    give_back(slot);
  }
}

}  // namespace espalier::dataplane
