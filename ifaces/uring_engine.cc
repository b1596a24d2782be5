#include "ifaces/uring_engine.h"

#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "ifaces/uring_parts.h"

namespace espalier::ifaces {
namespace {

constexpr unsigned kMaxParts = 1024;           // pieces of one write: UIO_MAXIOV
constexpr std::uint8_t kMaxReads = 16;         // one-shot reads of a TUN at a time
constexpr std::uint8_t kOpReadMultishot = 49;  // IORING_OP_READ_MULTISHOT: not in liburing 2.3

using uring::extra_of;
using uring::Op;
using uring::op_of;
using uring::pack;
using uring::pack_receive;
using uring::port_of;

}  // namespace

std::span<Received> UringEngine::turn(bool wait) noexcept {
  if (!use_.one_call) flush();
  returning_.insert(returning_.end(), handed_.buffers.begin(), handed_.buffers.end());
  handed_.buffers.clear();
  handed_.received.clear();
  bool idle = true;
  do {
    give_back();
    arm_queued();
    const auto nothing_yet = [&] { return ready_.received.empty() && !woken_ && !errors_.fresh(); };
    enter(wait && nothing_yet());
    reap();
    idle = nothing_yet();
  } while (wait && idle);
  woken_ = false;
  errors_.settle();
  std::swap(ready_, handed_);
  return handed_.received;
}

void UringEngine::flush() noexcept {
  if (tx_pending_ == 0 && io_uring_sq_ready(&ring_.uring) == 0) return;
  do {
    enter(tx_pending_ > 0);
    reap();
  } while (tx_pending_ > 0);
  next_message_ = 0;
  next_iovec_ = 0;
}

void UringEngine::enter(bool wait) noexcept {
  for (;;) {
    const int rc = wait ? io_uring_submit_and_wait(&ring_.uring, 1)
                        : io_uring_submit_and_get_events(&ring_.uring);
    // The completion queue is full, or the kernel short of memory: another try. Any other reason is
    // a mistake of the program (a thread other than the one that made the engine).
    if (rc < 0 && rc != -EINTR && rc != -EAGAIN && rc != -EBUSY && rc != -ENOMEM) {
      std::fprintf(stderr, "io_uring_enter: %s\n", std::strerror(-rc));
      std::abort();
    }
    if (io_uring_sq_ready(&ring_.uring) == 0) break;
    reap();
    if (rc < 0) ::poll(nullptr, 0, 1);
  }
  if (use_.one_call) {
    next_message_ = 0;
    next_iovec_ = 0;
  }
}

void UringEngine::reap() noexcept {
  unsigned head = 0;
  unsigned count = 0;
  io_uring_cqe* cqe = nullptr;
  io_uring_for_each_cqe(&ring_.uring, head, cqe) {
    ++count;
    complete({cqe->user_data, cqe->res, cqe->flags});
  }
  io_uring_cq_advance(&ring_.uring, count);
}

// Queues nothing: the completion queue is being read.
void UringEngine::complete(const Completion& c) noexcept {
  const Port port = port_of(c.user_data);
  switch (op_of(c.user_data)) {
    case Op::receive:
      received(port, static_cast<Group>(extra_of(c.user_data)), c);
      return;
    case Op::tx:
      if (tx_pending_ > 0) --tx_pending_;
      if (c.res < 0) errors_.add(port, extra_of(c.user_data), -c.res);
      return;
    case Op::wake: {
      eventfd_t value = 0;
      ::eventfd_read(wake_fd_.get(), &value);
      wake_armed_ = false;
      woken_ = true;
      return;
    }
    case Op::cancel:
    case Op::provide:
      return;
  }
}

void UringEngine::received(Port port, Group group, const Completion& c) noexcept {
  PortState& p = ports_[port];
  if ((c.flags & IORING_CQE_F_MORE) == 0) {
    --p.armed;
    queue_arm(port);
  }
  if (c.res < 0) receive_failed(port, -c.res);
  if ((c.flags & IORING_CQE_F_BUFFER) == 0) return;
  const BufferId id{group, static_cast<std::uint16_t>(c.flags >> IORING_CQE_BUFFER_SHIFT)};
  pools_[static_cast<std::size_t>(group)]->filled(
      static_cast<std::uint32_t>(std::max(c.res, std::int32_t{0})));
  Received r{};
  r.port = port;
  r.kind = p.kind;
  if (c.res < 0 ||
      !describe(p, pools_[static_cast<std::size_t>(group)]->area().at(id.index), c.res, r)) {
    returning_.push_back(id);
    return;
  }
  p.suspicions = 0;
  ready_.received.push_back(r);
  ready_.buffers.push_back(id);
}

// Fills in `r`; false if the packet is lost.
bool UringEngine::describe(PortState& p, std::uint8_t* buffer, std::int32_t res,
                           Received& r) noexcept {
  const auto bytes = static_cast<std::uint32_t>(res);
  if (p.kind == PortKind::tun) {
    r.data = buffer;
    r.len = bytes;
    return true;
  }
  int flags = 0;
  if (p.one_shot != nullptr) {
    const OneShot& o = *p.one_shot;
    r.data = buffer;
    r.len = bytes;
    flags = o.header.msg_flags;
    parts::parse_name(o.name.data(), o.header.msg_namelen, r.peer);
    parts::parse_control(o.control.data(), o.header.msg_controllen, r);
  } else {
    if (bytes < kSocketHeadroom) return false;
    io_uring_recvmsg_out out;
    std::memcpy(&out, buffer, sizeof out);
    r.data = buffer + kSocketHeadroom;
    r.len = bytes - static_cast<std::uint32_t>(kSocketHeadroom);
    flags = static_cast<int>(out.flags);
    const std::uint8_t* name = buffer + sizeof out;
    parts::parse_name(name, std::min<std::size_t>(out.namelen, kNameBytes), r.peer);
    parts::parse_control(name + kNameBytes, std::min<std::size_t>(out.controllen, kControlBytes),
                         r);
  }
  if ((flags & MSG_TRUNC) != 0) {
    ++stalls_;
    p.group = Group::udp;
    queue_arm(r.port);
    return false;
  }
  if (parts::trim(r)) return true;
  ++stalls_;
  return false;
}

void UringEngine::receive_failed(Port port, int error) noexcept {
  if (error == ECANCELED) return;
  PortState& p = ports_[port];
  ++stalls_;
  const Fate fate = fate_of(p.kind, error);
  if (fate == Fate::again) return;
  if (fate == Fate::suspect && ++p.suspicions < kMaxSuspicions) return;
  if (!p.dead) errors_.add(port, 0, error);
  p.dead = true;
}

void UringEngine::queue_arm(Port port) noexcept {
  PortState& p = ports_[port];
  if (p.arm_queued) return;
  p.arm_queued = true;
  to_arm_.push_back(port);
}

void UringEngine::arm_queued() noexcept {
  if (!wake_armed_) {
    io_uring_sqe* sqe = next_sqe();
    io_uring_prep_poll_add(sqe, wake_fd_.get(), POLLIN);
    sqe->user_data = pack(Op::wake);
    wake_armed_ = true;
  }
  std::swap(to_arm_, arming_);
  for (const Port port : arming_) {
    ports_[port].arm_queued = false;
    arm(port);
  }
  arming_.clear();
}

void UringEngine::arm(Port port) noexcept {
  PortState& p = ports_[port];
  if (p.fd < 0 || p.dead) return;
  if (p.armed > 0 && p.armed_group != p.group) {
    cancel(port);
    return;
  }
  std::uint8_t wanted = 1;
  if (p.kind == PortKind::tun && !use_.read_multishot) {
    // As many reads as were used up lately: each is a packet a turn, but all that wait are woken
    // by every packet.
    p.depth = p.armed == 0 ? static_cast<std::uint8_t>(std::clamp(p.depth * 2, 1, int{kMaxReads}))
                           : static_cast<std::uint8_t>(std::max(p.depth - p.armed, 1));
    wanted = p.depth;
  }
  p.armed_group = p.group;
  for (; p.armed < wanted; ++p.armed) {
    io_uring_sqe* sqe = next_sqe();
    prepare_receive(sqe, p);
    target(sqe, port, IOSQE_BUFFER_SELECT);
    sqe->buf_group = static_cast<std::uint16_t>(p.group);
    sqe->user_data = pack_receive(port, p.group);
  }
}

void UringEngine::prepare_receive(io_uring_sqe* sqe, PortState& p) noexcept {
  const auto bytes = shape_of(p.group).bytes;
  if (p.kind == PortKind::tun) {
    constexpr auto kNoOffset = std::numeric_limits<std::uint64_t>::max();
    if (use_.read_multishot) {
      io_uring_prep_rw(kOpReadMultishot, sqe, -1, nullptr, 0, kNoOffset);
    } else {
      io_uring_prep_read(sqe, -1, nullptr, static_cast<unsigned>(bytes), kNoOffset);
    }
  } else if (p.one_shot == nullptr) {
    io_uring_prep_recvmsg_multishot(sqe, -1, &layout_, 0);
  } else {
    io_uring_prep_recvmsg(sqe, -1, p.one_shot->prepare(bytes), 0);
  }
}

void UringEngine::cancel(Port port) noexcept {
  io_uring_sqe* sqe = next_sqe();
  io_uring_prep_cancel64(sqe, pack_receive(port, ports_[port].armed_group), 0);
  sqe->user_data = pack(Op::cancel, port);
}

void UringEngine::give_back() noexcept {
  for (const BufferId id : returning_)
    pools_[static_cast<std::size_t>(id.group)]->put_back(id.index);
  returning_.clear();
  for (const std::unique_ptr<Pool>& pool : pools_) {
    pool->size_up();
    for (std::uint16_t index = 0; pool->next_to_lend(index);) {
      if (use_.buffer_rings) {
        pool->return_to_ring(index);
        continue;
      }
      io_uring_sqe* sqe = next_sqe();
      pool->return_by(sqe, index);
      sqe->user_data = pack(Op::provide);
      if (use_.one_call) sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    }
  }
}

io_uring_sqe* UringEngine::next_sqe() noexcept {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_.uring);
  while (sqe == nullptr) {
    flush();
    sqe = io_uring_get_sqe(&ring_.uring);
  }
  return sqe;
}

void UringEngine::target(io_uring_sqe* sqe, Port port, unsigned flags) const noexcept {
  sqe->fd = use_.fixed_files ? port : ports_[port].fd;
  if (use_.fixed_files) flags |= IOSQE_FIXED_FILE;
  sqe->flags = static_cast<std::uint8_t>(sqe->flags | flags);
}

void UringEngine::finish_tx(io_uring_sqe* sqe, Port port, std::uint16_t packets) noexcept {
  target(sqe, port, use_.one_call ? IOSQE_CQE_SKIP_SUCCESS : 0);
  sqe->user_data = pack(Op::tx, port, packets);
  if (!use_.one_call) ++tx_pending_;
}

void UringEngine::send(const Datagram& datagram, std::uint16_t packets) noexcept {
  if (!is_attached(datagram.port)) {
    errors_.add(datagram.port, packets, EBADF);
    return;
  }
  if (next_message_ == messages_.size()) flush();
  io_uring_sqe* sqe = next_sqe();
  TxMessage& message = messages_[next_message_++];
  parts::render(datagram, message);
  io_uring_prep_sendmsg(sqe, -1, &message.header, MSG_DONTWAIT);
  finish_tx(sqe, datagram.port, packets);
}

void UringEngine::write(Port port, std::span<const iovec> parts, std::uint16_t packets) noexcept {
  if (!is_attached(port) || parts.empty() || parts.size() > kMaxParts) {
    errors_.add(port, packets, is_attached(port) ? EINVAL : EBADF);
    return;
  }
  if (next_iovec_ + parts.size() > iovecs_.size()) flush();
  io_uring_sqe* sqe = next_sqe();
  if (parts.size() == 1) {
    io_uring_prep_write(sqe, -1, parts[0].iov_base, static_cast<unsigned>(parts[0].iov_len), 0);
  } else {
    iovec* copy = &iovecs_[next_iovec_];
    std::copy(parts.begin(), parts.end(), copy);
    next_iovec_ += static_cast<unsigned>(parts.size());
    io_uring_prep_writev(sqe, -1, copy, static_cast<unsigned>(parts.size()), 0);
  }
  sqe->rw_flags = static_cast<int>(write_flags_);
  finish_tx(sqe, port, packets);
}

void UringEngine::wake() noexcept {
  ::eventfd_write(wake_fd_.get(), 1);
}

}  // namespace espalier::ifaces
