// Lines as they arrive from a socket. They may carry keys: the bytes lie in memory for secrets, are
// wiped when a line is done with, and are in no other buffer of this process.
#pragma once

#include <cstddef>
#include <span>

#include "crypto/secret.h"

namespace espalier::tools {

class LineBuffer {
 public:
  // Where the next bytes may be put, at least `least` of them. Spans from line() end here.
  [[nodiscard]] std::span<char> room(std::size_t least);
  void filled(std::size_t count) noexcept;

  // Looks only at what it has not looked at.
  [[nodiscard]] bool has_line() noexcept;
  // The first line, without its end; has_line() was true. May be written to.
  [[nodiscard]] std::span<char> line() noexcept;
  void drop_line() noexcept;
  // Bytes that wait, the first line included.
  [[nodiscard]] std::size_t size() const noexcept { return end_ - begin_; }
  void clear() noexcept;

 private:
  [[nodiscard]] char* data() noexcept { return reinterpret_cast<char*>(memory_.bytes().data()); }

  crypto::SecretBytes memory_;
  std::size_t begin_ = 0, end_ = 0;
  std::size_t line_end_ = 0;  // where '\n' is, if has_line_; else up to where there is none
  bool has_line_ = false;
};

}  // namespace espalier::tools
