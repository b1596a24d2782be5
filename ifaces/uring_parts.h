// What setting up a UringEngine and running it share. Internal to ifaces/.
#pragma once

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "ifaces/uring_engine.h"

namespace espalier::ifaces {

static_assert(sizeof(io_uring_recvmsg_out) + kNameBytes + kControlBytes == kSocketHeadroom);

namespace uring {

// user_data: the operation in the top byte, the port in the lowest two; between them the group of
// a receive or the packets of a send.
enum class Op : std::uint8_t { receive = 1, tx, wake, cancel, provide };

constexpr std::uint64_t pack(Op op, Port port = 0, std::uint16_t extra = 0) noexcept {
  return std::uint64_t{static_cast<std::uint8_t>(op)} << 56 | std::uint64_t{extra} << 16 | port;
}
constexpr Op op_of(std::uint64_t u) noexcept {
  return static_cast<Op>(u >> 56);
}
constexpr Port port_of(std::uint64_t u) noexcept {
  return static_cast<Port>(u);
}
constexpr std::uint16_t extra_of(std::uint64_t u) noexcept {
  return static_cast<std::uint16_t>(u >> 16);
}
constexpr std::uint64_t pack_receive(Port port, Group group) noexcept {
  return pack(Op::receive, port, static_cast<std::uint16_t>(group));
}

}  // namespace uring

struct UringEngine::OneShot {
  msghdr header;
  iovec payload;
  std::array<std::uint8_t, kNameBytes> name;
  alignas(cmsghdr) std::array<std::uint8_t, kControlBytes> control;

  msghdr* prepare(std::size_t bytes) noexcept {
    payload = {nullptr, bytes};  // the kernel puts a buffer of the group here
    header = {};
    header.msg_name = name.data();
    header.msg_namelen = kNameBytes;
    header.msg_control = control.data();
    header.msg_controllen = kControlBytes;
    header.msg_iov = &payload;
    header.msg_iovlen = 1;
    return &header;
  }
};

// One group of buffers, and where there is one the ring through which they go to the kernel.
//
// The kernel takes them in turn. Of large packets it has only a few at a time, those that were used
// last, so that the bytes of a turn stay in the cache beside what is made of them.
class UringEngine::Pool {
 public:
  Pool(Group group, unsigned count) : group_(group), area_(group, count), wanted_(count) {
    spare_.reserve(count);
  }

  // The kernel has filled one, with so many bytes.
  void filled(std::uint32_t bytes) noexcept {
    --lent_;
    ++turn_buffers_;
    turn_bytes_ += bytes;
  }
  void put_back(std::uint16_t index) noexcept { spare_.push_back(index); }
  // Before next_to_lend(): how many the kernel is to have, by what came last.
  void size_up() noexcept {
    if (turn_buffers_ == 0) return;
    const std::size_t average = turn_bytes_ / turn_buffers_ + 1;
    wanted_ = std::clamp(static_cast<unsigned>(kTurnBytes / average), std::min(kFew, area_.count()),
                         area_.count());
    turn_buffers_ = 0;
    turn_bytes_ = 0;
  }
  [[nodiscard]] bool next_to_lend(std::uint16_t& index) noexcept {
    if (lent_ >= wanted_ || spare_.empty()) return false;
    index = spare_.back();
    spare_.pop_back();
    ++lent_;
    return true;
  }

  // False where the kernel has no buffer rings.
  [[nodiscard]] bool register_ring(io_uring& uring) {
    auto memory = std::make_unique<Mapping>(area_.count() * sizeof(io_uring_buf));
    io_uring_buf_reg reg{};
    reg.ring_addr = reinterpret_cast<std::uintptr_t>(memory->get());
    reg.ring_entries = area_.count();
    reg.bgid = static_cast<std::uint16_t>(group_);
    if (io_uring_register_buf_ring(&uring, &reg, 0) != 0) return false;
    memory_ = std::move(memory);
    ring_ = reinterpret_cast<io_uring_buf_ring*>(memory_->get());
    return true;
  }
  void return_to_ring(std::uint16_t index) noexcept {
    io_uring_buf_ring_add(ring_, area_.at(index), static_cast<unsigned>(area_.bytes()), index,
                          static_cast<int>(area_.count() - 1), 0);
    io_uring_buf_ring_advance(ring_, 1);
  }
  void return_by(io_uring_sqe* sqe, std::uint16_t index) noexcept {
    io_uring_prep_provide_buffers(sqe, area_.at(index), static_cast<int>(area_.bytes()), 1,
                                  static_cast<int>(group_), index);
  }
  [[nodiscard]] const BufferArea& area() const noexcept { return area_; }

 private:
  static constexpr unsigned kFew = 8;
  static constexpr std::size_t kTurnBytes = kFew * std::size_t{64} * 1024;

  Group group_;
  BufferArea area_;
  std::vector<std::uint16_t> spare_;  // the one used last is the last
  unsigned wanted_;
  unsigned lent_ = 0;
  std::size_t turn_buffers_ = 0;
  std::size_t turn_bytes_ = 0;
  std::unique_ptr<Mapping> memory_;
  io_uring_buf_ring* ring_ = nullptr;
};

}  // namespace espalier::ifaces
