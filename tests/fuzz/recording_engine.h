// An engine without descriptors: what the data plane sends and writes is kept, by value.
#pragma once

#include <cstring>
#include <vector>

#include "ifaces/engine.h"

namespace espalier::fuzz {

class RecordingEngine final : public ifaces::Engine {
 public:
  struct Sent {
    std::vector<std::uint8_t> bytes;
    std::uint16_t segment_size;
    std::uint16_t packets;
    std::uint8_t tos;
  };
  struct Written {
    std::vector<std::uint8_t> bytes;
    std::uint16_t packets;
  };
  std::vector<Sent> sent;
  std::vector<Written> written;

  [[nodiscard]] std::string_view name() const noexcept override { return "recording"; }
  [[nodiscard]] std::string features() const override { return {}; }
  ifaces::Port attach(ifaces::PortKind, int) override { return 0; }
  void detach(ifaces::Port) override {}
  [[nodiscard]] std::span<ifaces::Received> turn(bool) noexcept override { return {}; }
  void flush() noexcept override {}
  void send(const ifaces::Datagram& d, std::uint16_t packets) noexcept override {
    sent.push_back({{d.data, d.data + d.len}, d.segment_size, packets, d.tos});
  }
  void write(ifaces::Port, std::span<const iovec> parts, std::uint16_t packets) noexcept override {
    Written& w = written.emplace_back();
    w.packets = packets;
    for (const iovec& part : parts) {
      const auto* bytes = static_cast<const std::uint8_t*>(part.iov_base);
      w.bytes.insert(w.bytes.end(), bytes, bytes + part.iov_len);
    }
  }
  [[nodiscard]] std::span<const ifaces::TxError> take_errors() noexcept override { return {}; }
  [[nodiscard]] std::uint64_t receive_stalls() const noexcept override { return 0; }
  void wake() noexcept override {}
};

}  // namespace espalier::fuzz
