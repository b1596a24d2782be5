// Fragmentation of inner IPv4 packets (RFC 791 §3.2): those without DF that the path does not carry
// in one piece are cut before they are protected, so that the peer need not reassemble ESP.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace espalier::dataplane {

// Cuts one packet, front to back.
class Fragmenter {
 public:
  // `packet`: a whole IPv4 packet, its header checked (parse_inner), DF clear; perhaps a fragment
  // itself. It must stay. `mtu`: of every fragment, at least 68.
  Fragmenter(std::span<const std::uint8_t> packet, std::size_t mtu) noexcept;

  [[nodiscard]] std::size_t count() const noexcept { return count_; }
  // Bytes of the next fragment; not to be asked after the last.
  [[nodiscard]] std::size_t next_length() const noexcept;
  // Writes it.
  void write_next(std::uint8_t* out) noexcept;

 private:
  [[nodiscard]] std::size_t payload() const noexcept;

  std::span<const std::uint8_t> packet_;
  std::size_t header_;
  std::size_t step_;  // payload bytes of every fragment but the last
  std::size_t count_;
  std::size_t at_ = 0;  // payload bytes before the next fragment
};

}  // namespace espalier::dataplane
