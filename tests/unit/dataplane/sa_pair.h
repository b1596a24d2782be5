// An outbound and an inbound SA with one key, and packets made by hand, for tests of the ESP path.
#pragma once

#include <memory>
#include <vector>

#include "crypto/registry.h"
#include "dataplane/bytes.h"
#include "dataplane/esp.h"
#include "dataplane/esp_decap.h"
#include "dataplane/esp_encap.h"

namespace espalier::dataplane {

using Bytes = std::vector<std::uint8_t>;

// An inner IPv4 packet of `length` bytes (at least 20), 10.1.3.2 → 10.1.4.2, protocol 253.
inline Bytes inner_v4(std::size_t length, std::uint8_t tos = 0) {
  Bytes p(length, 0x5a);
  const std::uint8_t header[] = {0x45, tos, 0,  0, 0, 0, 0,  0, 64, 253,
                                 0,    0,   10, 1, 3, 2, 10, 1, 4,  2};
  std::copy(std::begin(header), std::end(header), p.begin());
  store_be(p.data() + 2, static_cast<std::uint16_t>(length));
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < 20; i += 2) sum += load_be<std::uint16_t>(p.data() + i);
  sum = (sum & 0xffff) + (sum >> 16);
  store_be(p.data() + 10, static_cast<std::uint16_t>(~((sum & 0xffff) + (sum >> 16))));
  return p;
}

// An inner IPv6 packet of `length` bytes (at least 40), fd00::1 → fd00::2, no next header.
inline Bytes inner_v6(std::size_t length) {
  Bytes p(length, 0xa5);
  std::fill_n(p.begin(), 40, std::uint8_t{0});
  p[0] = 0x60;
  store_be(p.data() + 4, static_cast<std::uint16_t>(length - 40));
  p[6] = 59;
  p[8] = p[24] = 0xfd;
  p[23] = 1;
  p[39] = 2;
  return p;
}

struct SaPair {
  explicit SaPair(bool esn = true, crypto::Suite suite_id = crypto::Suite::aes_gcm128,
                  std::uint32_t window = 1024, std::uint64_t top = 0,
                  const Bytes& keymat = Bytes(crypto::kMaxKeysBytes + crypto::kMaxSaltBytes, 7))
      : suite(crypto::info(suite_id)), backend(crypto::make_backend("openssl")), in(window, top) {
    const auto fill = [&](SaCommon& sa) {
      sa.spi = Spi{0x11223344};
      sa.esn = esn;
      sa.suite = suite_id;
      sa.encapsulation = Encapsulation::udp;
      sa.keys.push_back(backend->expand(suite_id, std::span(keymat).first(suite.keys())));
      std::copy_n(keymat.data() + suite.keys(), suite.salt, sa.salt.begin());
      sa.peer = peer;
    };
    fill(out);
    fill(in);
    in.follow_peer = true;
    binding.device = &device;
    for (const auto& [from, to] : {std::pair{"10.1.3.0/24", "10.1.4.0/24"}, {"::/0", "::/0"}}) {
      Selector selector;
      selector.source = *ifaces::Prefix::parse(from);
      selector.destination = *ifaces::Prefix::parse(to);
      binding.selectors.emplace_back(selector);
    }
    in.binding = &binding;
  }

  // ESP around `inner` as the outbound path makes it.
  [[nodiscard]] Bytes seal(std::uint64_t seq, const Bytes& inner,
                           std::uint8_t next_header = kNextIpv4) {
    Bytes packet(esp_length(suite, inner.size()));
    std::copy(inner.begin(), inner.end(), packet.begin() + kEspHeader + suite.iv);
    crypto::AeadOp op{};
    esp_frame(out, suite, seq, packet.data(), inner.size(), next_header, op);
    out.key(0).seal({&op, 1});
    return packet;
  }

  // ESP around any text: trailer and all are the caller's.
  [[nodiscard]] Bytes seal_text(std::uint64_t seq, const Bytes& text) {
    Bytes packet(kEspHeader + suite.iv + text.size() + suite.icv + kMaxPadding);
    crypto::AeadOp op{};
    esp_frame(out, suite, seq, packet.data(), 0, 0, op);
    op.text_len = static_cast<std::uint32_t>(text.size());
    std::copy(text.begin(), text.end(), op.text);
    op.icv = op.text + text.size();
    out.key(0).seal({&op, 1});
    packet.resize(kEspHeader + suite.iv + text.size() + suite.icv);
    return packet;
  }

  struct Opened {
    std::vector<Bytes> inner;  // dummies are empty
    std::vector<Drop> lost;
    const ifaces::Endpoint* newest = nullptr;
  };

  Opened open(std::vector<Bytes> packets, std::uint8_t tos = 0) {
    std::vector<InboundPacket> run(packets.size());
    for (std::size_t i = 0; i < packets.size(); ++i) {
      run[i].esp = packets[i].data();
      run[i].len = static_cast<std::uint32_t>(packets[i].size());
      run[i].outer_tos = tos;
      run[i].peer = &sender;
    }
    const DecapResult result = esp_decap(in, 0, run);
    Opened opened;
    opened.newest = result.newest;
    for (std::size_t i = 0; i < run.size(); ++i) {
      if (i >= result.good)
        opened.lost.push_back(run[i].reason);
      else if (run[i].inner == nullptr)
        opened.inner.emplace_back();
      else
        opened.inner.emplace_back(run[i].inner, run[i].inner + run[i].key.length);
    }
    return opened;
  }

  // The one reason for which a single packet is lost; fails the test if it is not lost.
  std::optional<Drop> lost(const Bytes& packet, std::uint8_t tos = 0) {
    const Opened opened = open({packet}, tos);
    if (opened.lost.size() != 1) return std::nullopt;
    return opened.lost.front();
  }

  const crypto::SuiteInfo& suite;
  std::unique_ptr<crypto::Backend> backend;
  ifaces::Endpoint sender{*ifaces::IpAddress::parse("192.0.2.9"), 4500};
  std::shared_ptr<Peer> peer = std::make_shared<Peer>(sender);
  Device device;
  Binding binding;
  OutboundSa out;
  InboundSa in;
};

}  // namespace espalier::dataplane
