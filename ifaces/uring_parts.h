// What setting up a UringEngine and running it share. Internal to ifaces/.
#pragma once

#include <array>
#include <memory>

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
class UringEngine::Pool {
 public:
  Pool(Group group, unsigned count) : group_(group), area_(group, count) {}

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
  Group group_;
  BufferArea area_;
  std::unique_ptr<Mapping> memory_;
  io_uring_buf_ring* ring_ = nullptr;
};

}  // namespace espalier::ifaces
