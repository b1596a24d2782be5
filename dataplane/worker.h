// One thread, one engine, one queue of every TUN, its own outer sockets. Between two turns it runs
// what the control thread asks for; that is also the grace period after which removed things may be
// freed.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "dataplane/counters.h"
#include "dataplane/event_queue.h"
#include "dataplane/inbound.h"
#include "dataplane/outbound.h"
#include "dataplane/too_big_queue.h"
#include "ifaces/engine.h"

namespace espalier::dataplane {

class Worker {
 public:
  struct Setup {
    unsigned index = 0;
    std::string io;
    bool pin = false;
    ifaces::TunOffloads offloads;
    int event_fd = -1;  // rung when there are events to take
  };

  // Returns when the thread has its engine; throws what make_engine threw.
  Worker(const Setup& setup, const Sad& sad);
  ~Worker();  // stops and joins
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  // Runs `job` in the worker's thread between two turns and waits for it; throws what it throws.
  void call(const std::function<void(ifaces::Engine&)>& job);

  // For jobs: what a port of the engine belongs to.
  struct PortOwner {
    Device* device = nullptr;
    OuterSocket* socket = nullptr;
    bool icmp = false;
  };
  [[nodiscard]] PortOwner& owner(ifaces::Port port) noexcept { return owners_[port]; }

  // Does it receive what routers report about packets that were too big?
  [[nodiscard]] bool hears(ifaces::Family family) const noexcept {
    return family == ifaces::Family::v6 ? hears6_ : hears4_;
  }
  [[nodiscard]] TooBigQueue& reports() noexcept { return reports_; }
  // Has the kernel refused a packet for its length since the last call?
  [[nodiscard]] bool take_refused() noexcept {
    return refused_.load(std::memory_order_relaxed) &&
           refused_.exchange(false, std::memory_order_acquire);
  }

  [[nodiscard]] const WorkerCounters& counters() const noexcept { return counters_; }
  [[nodiscard]] EventQueue& events() noexcept { return events_; }
  [[nodiscard]] const std::string& engine() const noexcept { return engine_text_; }

 private:
  void run(const Setup& setup, const Sad& sad);
  void loop(ifaces::Engine& engine, Outbound& outbound, Inbound& inbound);
  void prefetch(std::span<const ifaces::Received> received, const Inbound& inbound) const noexcept;
  void count_errors(ifaces::Engine& engine, Outbound& outbound) noexcept;
  void open_icmp(IcmpSender& icmp, bool reports);
  void hear(const ifaces::Received& received) noexcept;
  bool run_jobs(ifaces::Engine& engine);

  WorkerCounters counters_;
  EventQueue events_;
  std::array<PortOwner, ifaces::kMaxPorts> owners_{};
  std::string engine_text_;
  bool hears4_ = false, hears6_ = false;
  TooBigQueue reports_;
  std::atomic<bool> refused_{false};

  // The job of the one caller (the control thread).
  std::mutex mutex_;
  std::condition_variable done_;
  const std::function<void(ifaces::Engine&)>* job_ = nullptr;
  std::exception_ptr job_error_;
  bool stop_ = false;
  bool started_ = false;
  std::atomic<bool> asked_{false};
  std::atomic<ifaces::Engine*> engine_{nullptr};
  std::thread thread_;
};

// Nanoseconds of the steady clock, to the tick: cheap enough for every turn.
[[nodiscard]] std::int64_t coarse_now_ns() noexcept;

}  // namespace espalier::dataplane
