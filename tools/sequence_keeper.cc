#include "tools/sequence_keeper.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "tools/config.h"

namespace espalier::tools {
namespace {

constexpr std::chrono::seconds kRecordEvery{1};

// The end of all numbers, exclusive. With ESN the top one is never handed out: 584 years at 10^9
// packets a second.
constexpr std::uint64_t end_of(bool esn) {
  return esn ? std::numeric_limits<std::uint64_t>::max() : std::uint64_t{1} << 32;
}

}  // namespace

SequenceKeeper::SequenceKeeper(SequenceState state, bool esn, std::string conn, const Log& log)
    : state_(std::move(state)),
      esn_(esn),
      conn_(std::move(conn)),
      log_(log),
      seen_out_(state_.next()),
      seen_in_(state_.received()),
      recorded_in_(seen_in_) {
  if (seen_out_ >= end_of(esn_))
    throw ConfigError("conn " + conn_ +
                      ": the sequence numbers of its keys are used up; make fresh ones with "
                      "espalier keygen");
  extend(seen_out_);
}

std::uint64_t SequenceKeeper::limit() const noexcept {
  return std::min(state_.next(), end_of(esn_)) - 1;
}

bool SequenceKeeper::look(std::uint64_t next_out, std::uint64_t highest_in,
                          std::chrono::steady_clock::time_point now) noexcept {
  busy_ = next_out != seen_out_ || highest_in != seen_in_;
  seen_out_ = next_out;
  seen_in_ = highest_in;
  const std::uint64_t before = limit();
  try {
    const std::uint64_t left = before + 1 - std::min(next_out, before + 1);
    const std::uint64_t enough = busy_ ? step() / 2 : step() / 4 * 3;
    if (left < enough && before + 1 < end_of(esn_)) extend(next_out);
    if (highest_in > recorded_in_ && now - recorded_at_ >= kRecordEvery) {
      recorded_at_ = now;
      state_.record_received(highest_in);
      recorded_in_ = highest_in;
    }
    if (std::exchange(failing_, false))
      log_.info("conn " + conn_ + ": sequence numbers can be kept on disk again");
  } catch (const std::exception& e) {
    failed(e.what());
  }
  return limit() != before;
}

void SequenceKeeper::extend(std::uint64_t next_out) {
  const std::uint64_t room = end_of(esn_) - std::min(next_out, end_of(esn_));
  state_.reserve(next_out + std::min(step(), room));
}

void SequenceKeeper::failed(const std::string& what) noexcept {
  if (std::exchange(failing_, true)) return;
  log_.error("conn " + conn_ + ": " + what + "; sending stops at sequence number " +
             std::to_string(limit()) + " unless that is mended");
}

void SequenceKeeper::close(std::uint64_t next_out, std::uint64_t highest_in) noexcept {
  try {
    state_.close(std::max(next_out, seen_out_), std::max(highest_in, seen_in_));
  } catch (const std::exception& e) {
    log_.error("conn " + conn_ + ": " + e.what());
  }
}

}  // namespace espalier::tools
