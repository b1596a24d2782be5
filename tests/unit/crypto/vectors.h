// Published AES-GCM vectors in one shape, and packets to run them on.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "crypto/aead.h"

namespace espalier::crypto::testing {

using Bytes = std::vector<std::uint8_t>;

[[nodiscard]] Bytes from_hex(std::string_view hex);
[[nodiscard]] std::string to_hex(std::span<const std::uint8_t> bytes);

// The suite with a key of so many bytes, if there is one.
[[nodiscard]] std::optional<Suite> gcm_suite(std::size_t key_bytes);

struct Vector {
  std::string id;
  Suite suite;
  Bytes key;
  Bytes nonce;  // 12 bytes
  Bytes aad;    // at most 12 bytes
  Bytes plaintext;
  Bytes ciphertext;
  Bytes icv;  // 16 bytes, or the first 8 or 12 of them
  bool valid;
};

// Each returns the cases that an AeadOp can carry. Throws std::runtime_error if a file is missing.
[[nodiscard]] std::vector<Vector> wycheproof();
[[nodiscard]] std::vector<Vector> cavp();
[[nodiscard]] std::vector<Vector> mcgrew();
[[nodiscard]] std::vector<Vector> wycheproof_chacha20();

// AES-128-CBC alone: no ICV.
struct CbcCase {
  std::string id;
  Bytes key;
  Bytes iv;
  Bytes plaintext;
  Bytes ciphertext;
};
[[nodiscard]] std::vector<CbcCase> rfc_cbc();

// HMAC under a key as long as the hash. `data` is at least 8 bytes, an ESP header.
struct HmacCase {
  std::string id;
  Suite suite;
  Bytes key;
  Bytes data;
  Bytes icv;
  bool valid;
};
[[nodiscard]] std::vector<HmacCase> wycheproof_hmac();
[[nodiscard]] std::vector<HmacCase> rfc_hmac();

// A whole ESP packet of draft-mcgrew-gcm-test-01.
struct EspCase {
  Vector aead;
  Bytes packet;  // SPI, low sequence number, IV, ciphertext, ICV
};
[[nodiscard]] std::vector<EspCase> mcgrew_packets();

// One packet, in pieces.
struct Packet {
  Bytes text;
  Bytes icv;
  Bytes nonce;  // salt and IV; CBC: the IV alone
  Bytes aad;    // SPI and sequence number
  std::size_t iv = kCounterIvBytes;

  [[nodiscard]] std::size_t wire_length() const {
    return kEspHeaderBytes + iv + text.size() + icv.size();
  }
  // Lays the packet out at `wire` as ESP has it, and describes it.
  [[nodiscard]] AeadOp lay_out(std::uint8_t* wire) const;
};

// Bytes of text that a suite can take: `length`, or for CBC the next multiple of its block.
[[nodiscard]] std::size_t text_length(const SuiteInfo& suite, std::size_t length);
// A packet with pseudo-random text, nonce and number, with and without ESN in turn.
[[nodiscard]] Packet plain_packet(Suite suite, std::size_t length, std::uint32_t seed);

// A packet as it is before seal: the plaintext and a blank ICV; and before open.
[[nodiscard]] Packet unsealed(const Vector& vector);
[[nodiscard]] Packet sealed(const Vector& vector);

void seal(const AeadKey& key, std::span<Packet> packets, std::vector<bool>& good);
void open(const AeadKey& key, std::span<Packet> packets, std::vector<bool>& good);

// Reproducible bytes: the same for the same seed.
[[nodiscard]] Bytes pseudo_random(std::size_t size, std::uint32_t seed);

}  // namespace espalier::crypto::testing
