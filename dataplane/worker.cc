#include "dataplane/worker.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <cerrno>

#include "crypto/stack.h"

namespace espalier::dataplane {

std::int64_t coarse_now_ns() noexcept {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC_COARSE, &ts);
  return ts.tv_sec * 1'000'000'000LL + ts.tv_nsec;
}

Worker::Worker(const Setup& setup, const Sad& sad) : events_(setup.event_fd) {
  thread_ = std::thread([this, setup, &sad] { run(setup, sad); });
  std::unique_lock lock(mutex_);
  done_.wait(lock, [this] { return started_; });
  if (!job_error_) return;
  lock.unlock();
  thread_.join();
  std::rethrow_exception(job_error_);
}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    asked_.store(true, std::memory_order_release);
    engine_.load()->wake();
  }
  thread_.join();
}

void Worker::call(const std::function<void(ifaces::Engine&)>& job) {
  std::unique_lock lock(mutex_);
  job_ = &job;
  job_error_ = nullptr;
  asked_.store(true, std::memory_order_release);
  engine_.load()->wake();
  done_.wait(lock, [this] { return job_ == nullptr; });
  if (job_error_) std::rethrow_exception(job_error_);
}

void Worker::run(const Setup& setup, const Sad& sad) {
  pthread_setname_np(pthread_self(), ("worker" + std::to_string(setup.index)).c_str());
  if (setup.pin) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    CPU_SET(setup.index % std::max(1U, std::thread::hardware_concurrency()), &cpus);
    pthread_setaffinity_np(pthread_self(), sizeof cpus, &cpus);  // a wish: a cpuset may forbid it
  }
  std::unique_ptr<ifaces::Engine> engine;  // io_uring: made by the thread that uses it
  std::unique_ptr<Outbound> outbound;
  std::unique_ptr<Inbound> inbound;
  {
    const std::lock_guard lock(mutex_);
    try {
      std::string why;
      engine = ifaces::make_engine(setup.io, why);
      outbound = std::make_unique<Outbound>(setup.index, *engine, counters_, events_);
      // One hears for all: the kernel gives every raw socket a copy.
      open_icmp(outbound->icmp(), setup.index == 0);
      inbound =
          std::make_unique<Inbound>(setup.index, *engine, sad, counters_, events_, setup.offloads);
      engine_text_ = std::string(engine->name()) + " (" + engine->features() + ")";
      if (!why.empty()) engine_text_ += " since " + why;
      engine_.store(engine.get());
    } catch (...) {
      job_error_ = std::current_exception();
    }
    started_ = true;
    done_.notify_all();
    if (job_error_) return;
  }
  loop(*engine, *outbound, *inbound);
}

void Worker::open_icmp(IcmpSender& icmp, bool reports) {
  icmp.open(reports);
  const auto own = [&](int port, bool& hears) {
    if (port == IcmpSender::Sockets::kNone) return;
    owners_[static_cast<ifaces::Port>(port)].icmp = true;
    hears = reports;
  };
  own(icmp.sockets().v4, hears4_);
  own(icmp.sockets().v6, hears6_);
}

void Worker::hear(const ifaces::Received& received) noexcept {
  TooBig report;
  const bool ipv6 = received.kind == ifaces::PortKind::raw_esp6;
  if (parse_too_big({received.data, received.len}, ipv6, report)) {
    reports_.post(report);
    events_.poke();
  }
}

bool Worker::run_jobs(ifaces::Engine& engine) {
  const std::lock_guard lock(mutex_);
  asked_.store(false, std::memory_order_relaxed);
  if (job_ != nullptr) {
    try {
      (*job_)(engine);
    } catch (...) {
      job_error_ = std::current_exception();
    }
    job_ = nullptr;
    done_.notify_all();
  }
  return !stop_;
}

void Worker::count_errors(ifaces::Engine& engine, Outbound& outbound) noexcept {
  for (const ifaces::TxError& error : engine.take_errors()) {
    const PortOwner& owner = owners_[error.port];
    counters_.drop(owner.device != nullptr ? Drop::write_failed : Drop::send_failed, error.packets);
    // EINVAL: what older kernels say of a UDP GSO send whose segments are too long.
    if (owner.socket != nullptr && (error.error == EMSGSIZE || error.error == EINVAL)) {
      outbound.transmitter().refused(error.port);
      refused_.store(true, std::memory_order_release);
      events_.poke();
    }
  }
  outbound.transmitter().forget();
}

// Passes over the turn, so that the cache misses of its lookups overlap.
void Worker::prefetch(std::span<const ifaces::Received> received,
                      const Inbound& inbound) const noexcept {
  for (const auto pass : {&Inbound::prefetch_slot, &Inbound::prefetch_sa})
    for (const ifaces::Received& r : received)
      if (const OuterSocket* socket = owners_[r.port].socket; socket != nullptr)
        (inbound.*pass)(*socket, r);
}

void Worker::loop(ifaces::Engine& engine, Outbound& outbound, Inbound& inbound) {
  for (;;) {
    const std::span<ifaces::Received> received = engine.turn(true);
    count_errors(engine, outbound);
    const std::int64_t now_ns = coarse_now_ns();
    outbound.begin_turn(now_ns);
    inbound.begin_turn(now_ns);
    outbound.retry([this](ifaces::Port port) { return owners_[port].device; });
    if (inbound.worth_prefetching()) [[unlikely]]
      prefetch(received, inbound);
    for (const ifaces::Received& r : received) {
      const PortOwner& owner = owners_[r.port];
      if (owner.device != nullptr) {
        outbound.add(*owner.device, r.data, r.len);
      } else if (owner.socket != nullptr) {
        inbound.add(*owner.socket, r);
      } else if (owner.icmp) {
        hear(r);
      }
    }
    inbound.end_turn();
    outbound.end_turn();
    if (asked_.load(std::memory_order_acquire)) [[unlikely]] {
      engine.flush();  // what was queued must not outlive a device or socket that a job removes
      count_errors(engine, outbound);
      // Before it: what the job waits for may be the end of an SA.
      outbound.transmitter().wipe();
      crypto::wipe_stack();
      if (!run_jobs(engine)) return;
    }
  }
}

}  // namespace espalier::dataplane
