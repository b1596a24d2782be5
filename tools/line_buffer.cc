#include "tools/line_buffer.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace espalier::tools {

std::span<char> LineBuffer::room(std::size_t least) {
  if (memory_.size() - end_ >= least) return {data() + end_, memory_.size() - end_};
  crypto::SecretBytes larger(std::max(size() + least, 2 * size()));
  if (size() != 0) std::memcpy(larger.bytes().data(), data() + begin_, size());
  memory_ = std::move(larger);  // the old one is wiped
  line_end_ -= begin_;
  end_ -= begin_;
  begin_ = 0;
  return {data() + end_, memory_.size() - end_};
}

void LineBuffer::filled(std::size_t count) noexcept {
  end_ += count;
}

bool LineBuffer::has_line() noexcept {
  if (has_line_) return true;
  const char* const from = data() + line_end_;
  const char* const to = data() + end_;
  const char* const found = std::find(from, to, '\n');
  line_end_ = static_cast<std::size_t>(found - data());
  has_line_ = found != to;
  return has_line_;
}

std::span<char> LineBuffer::line() noexcept {
  return {data() + begin_, line_end_ - begin_};
}

void LineBuffer::drop_line() noexcept {
  crypto::wipe(memory_.bytes().subspan(begin_, line_end_ - begin_));
  begin_ = ++line_end_;
  has_line_ = false;
  if (begin_ == end_) clear();
}

void LineBuffer::clear() noexcept {
  memory_ = {};
  begin_ = end_ = line_end_ = 0;
  has_line_ = false;
}

}  // namespace espalier::tools
