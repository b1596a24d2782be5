// The parts of UringEngine that may throw and allocate: what the kernel has, ports that come and
// go.
#include <fcntl.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <bit>
#include <system_error>

#include "ifaces/uring_engine.h"
#include "ifaces/uring_parts.h"

namespace espalier::ifaces {
namespace {

constexpr unsigned kSqEntries = 512;   // operations before send() and write() flush
constexpr unsigned kCqEntries = 4096;  // above every buffer, failure and cancel of a turn
constexpr unsigned kIovecs = 8192;     // pieces of the writes of one turn

[[noreturn]] void throw_error(int error, const char* call) {
  throw std::system_error(error, std::generic_category(), call);
}

}  // namespace

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

}  // namespace espalier::ifaces
