#include "dataplane/transmitter.h"

#include <algorithm>
#include <cassert>

namespace espalier::dataplane {

Transmitter::Transmitter(unsigned worker, ifaces::Engine& engine, WorkerCounters& counters)
    : worker_(worker),
      engine_(engine),
      counters_(counters),
      arena_(std::make_unique<std::uint8_t[]>(kArenaBytes)) {}

void Transmitter::select(const OutboundSa& sa, const ifaces::Endpoint& to) noexcept {
  if (&sa == sa_ && to == to_ && target_count_ > 0) return;
  if (&sa != sa_) seal();  // one batch of ops has one key
  const bool same_target = sa_ != nullptr && target_count_ > 0 && sa_->socket == sa.socket &&
                           sa_->outer_mark == sa.outer_mark && to == to_;
  sa_ = &sa;
  to_ = to;
  seal_bytes_ = crypto::info(sa.suite).mode == crypto::Mode::gcm ? kSealBytes : kArenaBytes;
  max_segments_ =
      sa.encapsulation == Encapsulation::udp ? std::max(sa.socket->gso_segments, 1U) : 1U;
  if (same_target) return;
  run_open_ = false;
  if (target_count_ == kMaxRuns) {
    make_room();
  } else {
    add_target();
  }
}

void Transmitter::add_target() noexcept {
  Target& target = targets_[target_count_++];
  ifaces::Endpoint to = to_;
  if (sa_->encapsulation == Encapsulation::esp) to.port = 0;
  target.length = to.to(target.address);
  target.mark = sa_->outer_mark;
  const OuterSocket& socket = *sa_->socket;
  target.port = socket.ports[worker_];
  target.sender_port = socket.sender_ports[worker_];
  target.source = socket.source();
  target.peer = sa_->peer.get();
}

std::uint8_t* Transmitter::place(std::size_t length, OuterFields outer) noexcept {
  assert(length <= kMaxDatagram);
  if (op_count_ == kSealBatch || unsealed_ >= seal_bytes_) seal();
  if (used_ + length > kArenaBytes || run_count_ == kMaxRuns) make_room();
  std::uint8_t* out = &arena_[used_];
  used_ += length;
  unsealed_ += length;
  if (run_open_) {
    Run& run = runs_[run_count_ - 1];
    if (length <= run.segment && outer == run.outer && run.packets < max_segments_ &&
        run.length + length <= kMaxDatagram) {
      run.length += static_cast<std::uint32_t>(length);
      ++run.packets;
      if (length < run.segment) run_open_ = false;
      return out;
    }
  }
  runs_[run_count_++] = Run{out,
                            static_cast<std::uint32_t>(length),
                            static_cast<std::uint16_t>(length),
                            1,
                            static_cast<std::uint16_t>(target_count_ - 1),
                            outer,
                            false};
  run_open_ = max_segments_ > 1 && !outer.alone();
  return out;
}

void Transmitter::seal() noexcept {
  if (op_count_ == 0) return;
  const std::span<crypto::AeadOp> ops(ops_.data(), op_count_);
  if (const crypto::SuiteInfo& suite = crypto::info(sa_->suite);
      suite.iv_kind == crypto::IvKind::random)
    for (const crypto::AeadOp& op : ops) ivs_.draw(op.text - suite.iv);
  sa_->key(worker_).seal(ops);
  for (const crypto::AeadOp& op : ops) {
    if (op.good) [[likely]]
      continue;
    // A failed seal is never sent, nor is what shares a send with it.
    for (Run& run : std::span(runs_.data(), run_count_))
      if (op.text >= run.data && op.text < run.data + run.length) run.bad = true;
  }
  op_count_ = 0;
  unsealed_ = 0;
}

void Transmitter::send_all() noexcept {
  for (const Run& run : std::span(runs_.data(), run_count_)) {
    if (run.bad) {
      counters_.drop(Drop::seal_failed, run.packets);
      continue;
    }
    const Target& target = targets_[run.target];
    engine_.send({.port = run.outer.fragmentable() ? target.sender_port : target.port,
                  .tos = run.outer.tos(),
                  .segment_size = run.packets > 1 ? run.segment : std::uint16_t{0},
                  .len = run.length,
                  .data = run.data,
                  .to = &target.address,
                  .to_len = target.length,
                  .mark = target.mark,
                  .hop_limit = run.outer.hop_limit(),
                  .flow_label = run.outer.flow_label(),
                  .source = target.source},
                 run.packets);
  }
  run_count_ = 0;
  run_open_ = false;
}

// The arena is full in the middle of a turn: what is in it goes out now.
void Transmitter::make_room() noexcept {
  seal();
  send_all();
  engine_.flush();
  used_ = 0;
  sent_targets_ = std::max(target_count_, sent_targets_);
  target_count_ = 0;
  if (sa_ != nullptr) add_target();
}

void Transmitter::submit() noexcept {
  seal();
  send_all();
  // The bytes stay until the engine has finished with them, at its next turn; by then nothing is
  // placed.
  used_ = 0;
  sent_targets_ = std::max(target_count_, sent_targets_);
  target_count_ = 0;
  sa_ = nullptr;
}

void Transmitter::refused(ifaces::Port port) noexcept {
  for (const Target& target : std::span(targets_.data(), sent_targets_))
    if (target.port == port || target.sender_port == port) target.peer->path().refused();
}

}  // namespace espalier::dataplane
