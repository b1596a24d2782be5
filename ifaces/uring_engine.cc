#include "ifaces/uring_engine.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <system_error>

namespace espalier::ifaces {
namespace {

constexpr unsigned kSqEntries = 512;           // operations before send() and write() flush
constexpr unsigned kCqEntries = 4096;          // above every buffer, failure and cancel of a turn
constexpr unsigned kIovecs = 8192;             // pieces of the writes of one turn
constexpr unsigned kMaxParts = 1024;           // pieces of one write: UIO_MAXIOV
constexpr std::uint8_t kMaxReads = 16;         // one-shot reads of a TUN at a time
constexpr std::uint8_t kOpReadMultishot = 49;  // IORING_OP_READ_MULTISHOT: not in liburing 2.3

static_assert(sizeof(io_uring_recvmsg_out) + kNameBytes + kControlBytes == kSocketHeadroom);

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

[[noreturn]] void throw_error(int error, const char* call) {
  throw std::system_error(error, std::generic_category(), call);
}

}  // namespace

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

UringEngine::Ring::~Ring() {
  if (open) io_uring_queue_exit(&uring);
}

UringEngine::UringEngine(UringFeatures wanted)
    : use_(wanted),
      wake_fd_(::eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
      ports_(kMaxPorts),
      messages_(kSqEntries),
      iovecs_(kIovecs) {
  if (!wake_fd_) throw_error(errno, "eventfd");
  layout_.msg_namelen = kNameBytes;
  layout_.msg_controllen = kControlBytes;
  constexpr std::array<unsigned, kGroups> counts{kTunBuffers, kUdpBuffers, kRawBuffers};
  std::size_t total = 0;
  for (std::size_t g = 0; g < kGroups; ++g) {
    static_assert(std::has_single_bit(kTunBuffers) && std::has_single_bit(kUdpBuffers) &&
                  std::has_single_bit(kRawBuffers));
    pools_[g] = std::make_unique<Pool>(static_cast<Group>(g), counts[g]);
    total += counts[g];
  }
  for (Batch* b : {&ready_, &handed_}) {
    b->received.reserve(total);
    b->buffers.reserve(total);
  }
  returning_.reserve(total);
  to_arm_.reserve(kMaxPorts);
  arming_.reserve(kMaxPorts);
  open_ring();
  if (use_.fixed_files) register_files();
  probe();
}

UringEngine::~UringEngine() {
  for (std::size_t i = 0; i < ports_.size(); ++i) UringEngine::detach(static_cast<Port>(i));
}

void UringEngine::open_ring() {
  constexpr unsigned kDeferred = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER |
                                 IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL;
  constexpr std::array<unsigned, 3> kChoices{
      kDeferred, IORING_SETUP_CQSIZE | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
      IORING_SETUP_CQSIZE};
  int rc = -EINVAL;
  for (const unsigned flags : kChoices) {
    if (flags == kDeferred && !use_.one_call) continue;
    io_uring_params params{};
    params.flags = flags;
    params.cq_entries = kCqEntries;
    rc = io_uring_queue_init_params(kSqEntries, &ring_.uring, &params);
    if (rc == -EINVAL) continue;
    if (rc != 0) break;
    ring_.open = true;
    use_.one_call = flags == kDeferred && (params.features & IORING_FEAT_CQE_SKIP) != 0;
    write_flags_ = use_.one_call ? static_cast<unsigned>(RWF_NOWAIT) : 0;
    io_uring_register_ring_fd(&ring_.uring);  // saves a look-up a call; where refused, does not
    break;
  }
  if (rc != 0) throw_error(-rc, "io_uring_setup");
  for (std::size_t g = 0; g < kGroups; ++g) {
    // All groups or none: the first refusal decides, the groups differ only in size.
    if (use_.buffer_rings) use_.buffer_rings = pools_[g]->register_ring(ring_.uring);
    for (unsigned i = 0; i < pools_[g]->area().count(); ++i)
      returning_.push_back({static_cast<Group>(g), static_cast<std::uint16_t>(i)});
  }
}

void UringEngine::register_files() {
  // The kernel refuses a table larger than the limit on open files; no more ports can be in use.
  const long limit = ::sysconf(_SC_OPEN_MAX);
  const std::size_t slots =
      limit > 0 ? std::min(kMaxPorts, static_cast<std::size_t>(limit)) : kMaxPorts;
  const std::vector<int> empty(slots, -1);
  use_.fixed_files =
      io_uring_register_files(&ring_.uring, empty.data(), static_cast<unsigned>(slots)) == 0;
  fixed_slots_ = use_.fixed_files ? static_cast<unsigned>(slots) : 0;
}

void UringEngine::probe() {
  std::array<int, 2> fds{};
  if (::pipe2(fds.data(), O_NONBLOCK | O_CLOEXEC) != 0) throw_error(errno, "pipe2");
  const UniqueFd read_end(fds[0]), write_end(fds[1]);
  probe_receive(PortKind::tun, read_end.get(), write_end.get(), use_.read_multishot);
  if (::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()) != 0)
    throw_error(errno, "socketpair");
  const UniqueFd here(fds[0]), there(fds[1]);
  probe_receive(PortKind::udp, here.get(), there.get(), use_.receive_multishot);
  (void)errors_.take();
  stalls_ = 0;
}

// Leaves `multishot` true if it was wanted and works here. `feed`: what is written there can be
// read from `fd`.
void UringEngine::probe_receive(PortKind kind, int fd, int feed, bool& multishot) {
  constexpr char kByte = 0;
  for (;;) {
    if (::write(feed, &kByte, 1) != 1) throw_error(errno, "write");
    if (delivers(kind, fd, multishot)) return;
    if (!multishot) throw_error(EOPNOTSUPP, "io_uring: a receive delivers nothing");
    multishot = false;
  }
}

bool UringEngine::delivers(PortKind kind, int fd, bool must_stay_armed) {
  const Port port = attach(kind, fd);
  const bool delivered = !turn(false).empty();
  const bool armed = ports_[port].armed > 0;
  detach(port);
  return delivered && (armed || !must_stay_armed);
}

std::string UringEngine::features() const {
  std::string s = use_.one_call ? "one call a turn" : "two calls a turn";
  s += use_.read_multishot ? ", multishot reads" : ", one-shot reads";
  s += use_.receive_multishot ? ", multishot receives" : ", one-shot receives";
  s += use_.buffer_rings ? ", buffer rings" : ", provided buffers";
  if (use_.fixed_files) s += ", registered files";
  return s;
}

Port UringEngine::attach(PortKind kind, int fd) {
  if (::fcntl(fd, F_GETFD) < 0) throw_error(errno, "attach");  // -1 would mean an empty slot
  const auto slot = std::find_if(ports_.begin(), ports_.end(), [](auto& p) { return p.fd < 0; });
  const auto port = static_cast<Port>(slot - ports_.begin());
  if (slot == ports_.end() || (use_.fixed_files && port >= fixed_slots_))
    throw_error(EMFILE, "attach: all ports are in use");
  if (kind == PortKind::tun && use_.one_call) {
    // Does it know RWF_NOWAIT? A packet of one byte is refused by every TUN that does.
    std::uint8_t byte = 0;
    const iovec part{&byte, 1};
    if (::pwritev2(fd, &part, 1, -1, RWF_NOWAIT) < 0 && errno == EOPNOTSUPP) {
      flush();
      use_.one_call = false;
      write_flags_ = 0;
    }
  }
  std::unique_ptr<OneShot> one_shot;
  if (kind != PortKind::tun && !use_.receive_multishot) one_shot = std::make_unique<OneShot>();
  if (use_.fixed_files) {
    const int rc = io_uring_register_files_update(&ring_.uring, port, &fd, 1);
    if (rc < 0) throw_error(-rc, "io_uring_register IORING_REGISTER_FILES_UPDATE");
  }
  const bool queued = slot->arm_queued;  // by a port of this number that was detached since
  *slot = PortState{};
  slot->fd = fd;
  slot->kind = kind;
  slot->group = first_group(kind);
  slot->one_shot = std::move(one_shot);
  slot->arm_queued = queued;
  queue_arm(port);
  return port;
}

void UringEngine::detach(Port port) {
  if (!is_attached(port)) return;
  flush();
  PortState& p = ports_[port];
  p.dead = true;
  while (p.armed > 0) {
    cancel(port);
    enter(true);
    reap();
  }
  drop_ready(port);
  if (use_.fixed_files) {
    const int none = -1;
    io_uring_register_files_update(&ring_.uring, port, &none, 1);
  }
  const bool queued = p.arm_queued;
  p = PortState{};
  p.arm_queued = queued;
}

void UringEngine::drop_ready(Port port) noexcept {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < ready_.received.size(); ++i) {
    if (ready_.received[i].port == port) {
      returning_.push_back(ready_.buffers[i]);
      continue;
    }
    ready_.received[kept] = ready_.received[i];
    ready_.buffers[kept] = ready_.buffers[i];
    ++kept;
  }
  ready_.received.resize(kept);
  ready_.buffers.resize(kept);
}

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
  while (!returning_.empty()) {
    const BufferId id = returning_.back();
    returning_.pop_back();
    Pool& pool = *pools_[static_cast<std::size_t>(id.group)];
    if (use_.buffer_rings) {
      pool.return_to_ring(id.index);
      continue;
    }
    io_uring_sqe* sqe = next_sqe();
    pool.return_by(sqe, id.index);
    sqe->user_data = pack(Op::provide);
    if (use_.one_call) sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
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
  if (next_iovec_ + parts.size() > kIovecs) flush();
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
