#include "dataplane/fragment.h"

#include <algorithm>
#include <cstring>

#include "dataplane/bytes.h"
#include "dataplane/checksum.h"

namespace espalier::dataplane {
namespace {

constexpr std::uint16_t kMoreFragments = 0x2000;

// Options without the copied flag belong into the first fragment only (RFC 791 §3.1): they become
// no-operations, so that all headers are of one length.
void blank_uncopied_options(std::uint8_t* options, std::size_t length) noexcept {
  constexpr std::uint8_t kEnd = 0, kNop = 1, kCopied = 0x80;
  for (std::size_t i = 0; i < length;) {
    const std::uint8_t type = options[i];
    if (type == kEnd) return;
    const std::size_t size = type == kNop ? 1 : i + 1 < length ? options[i + 1] : 0;
    if (size == 0 || (type != kNop && size < 2) || i + size > length) return;  // nobody's business
    if ((type & kCopied) == 0) std::fill_n(options + i, size, kNop);
    i += size;
  }
}

}  // namespace

Fragmenter::Fragmenter(std::span<const std::uint8_t> packet, std::size_t mtu) noexcept
    : packet_(packet),
      header_(std::size_t{packet[0] & 0xfU} * 4),
      step_((mtu - header_) / 8 * 8),
      count_((packet.size() - header_ + step_ - 1) / step_) {}

std::size_t Fragmenter::payload() const noexcept {
  return std::min(step_, packet_.size() - header_ - at_);
}

std::size_t Fragmenter::next_length() const noexcept {
  return header_ + payload();
}

void Fragmenter::write_next(std::uint8_t* out) noexcept {
  const std::size_t bytes = payload();
  std::memcpy(out, packet_.data(), header_);
  std::memcpy(out + header_, packet_.data() + header_ + at_, bytes);
  const auto before = load_be<std::uint16_t>(&packet_[6]);
  auto fragment = static_cast<std::uint16_t>(before + at_ / 8);
  const bool last = header_ + at_ + bytes == packet_.size();
  if (!last) fragment |= kMoreFragments;
  if (at_ > 0) blank_uncopied_options(out + 20, header_ - 20);
  store_be(out + 2, static_cast<std::uint16_t>(header_ + bytes));
  store_be(out + 6, fragment);
  store_be(out + 10, std::uint16_t{0});
  const auto sum = static_cast<std::uint16_t>(~fold(sum_bytes(out, header_)));
  std::memcpy(out + 10, &sum, sizeof sum);
  at_ += bytes;
}

}  // namespace espalier::dataplane
