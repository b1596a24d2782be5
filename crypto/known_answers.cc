// The known-answer test that every backend passes before it carries traffic.
#include <algorithm>
#include <array>
#include <vector>

#include "crypto/registry.h"

namespace espalier::crypto {
namespace {

// Packets of draft-mcgrew-gcm-test-01, in hexadecimal. `aad` is SPI and sequence number.
struct KnownAnswer {
  Suite suite;
  std::string_view key;
  std::string_view nonce;
  std::string_view aad;
  std::string_view plaintext;
  std::string_view ciphertext;
  std::string_view icv;
};

constexpr std::array kAnswers = {
    // Case 1, extended sequence numbers
    KnownAnswer{
        Suite::aes_gcm128, "4c80cdefbb5d10da906ac73c3613a634", "2e443b684956ed7e3b244cfe",
        "000043218765432100000000",
        "45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000045f73697004"
        "5f756470037369700963796265726369747902646b000021000101020201",
        "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14a3f3cf6592"
        "5bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732",
        "459018148f6cbe722fd04796562dfdb4"},
    // Case 2
    KnownAnswer{
        Suite::aes_gcm128, "feffe9928665731c6d6a8f9467308308", "cafebabefacedbaddecaf888",
        "0000a5f80000000a",
        "4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d0010000010000000000000373"
        "69700963796265726369747902646b00000100010001",
        "deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827c10e9a4f5133"
        "0d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd1",
        "83b70d3aa8bc6ee4c309e9d85a41ad4a"},
    // Case 7
    KnownAnswer{Suite::aes_gcm192, "feffe9928665731c6d6a8f9467308308feffe9928665731c",
                "cafebabefacedbaddecaf888", "0000a5f80000000a",
                "45000028a4ad4000400678800a01038f0a010612802306b8cb712602dd6bb03e501016d075680001",
                "a5b1f8066029aea40e598b8122de02420938b3ab33f828e687b8858b5bfbdbd0315b27452144cc77",
                "95457b9652037f5318027b5b4cd7a636"},
    // Case 3
    KnownAnswer{
        Suite::aes_gcm256, "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        "112233440102030405060708", "4a2cbfe300000002",
        "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf00000204"
        "05b40101040201020201",
        "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a637985771d347f05"
        "45659f14e99def842d8e",
        "b335f4eecfdbf831824b4c4915956c96"},
    // Case 9, extended sequence numbers
    KnownAnswer{Suite::aes_gcm256,
                "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
                "73616c74616e640169766563", "17405e67156f3126dd0db99b",
                "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d540001",
                "f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31ce673119e",
                "451626c2415771e3b7eebca614c89b35"},
};

using Bytes = std::vector<std::uint8_t>;

constexpr std::uint8_t digit(char c) {
  return static_cast<std::uint8_t>(c <= '9' ? c - '0' : c - 'a' + 10);
}

Bytes from_hex(std::string_view hex) {
  Bytes bytes(hex.size() / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::uint8_t>(digit(hex[2 * i]) << 4 | digit(hex[2 * i + 1]));
  return bytes;
}

struct Message {
  Bytes text;
  Bytes icv;
  AeadOp op;

  Message(const KnownAnswer& answer, std::string_view text_hex, std::string_view icv_hex)
      : text(from_hex(text_hex)), icv(from_hex(icv_hex)), op{} {
    const Bytes nonce = from_hex(answer.nonce);
    const Bytes aad = from_hex(answer.aad);
    op.text = text.data();
    op.text_len = static_cast<std::uint32_t>(text.size());
    op.icv = icv.data();
    std::copy(nonce.begin(), nonce.end(), op.nonce.begin());
    std::copy(aad.begin(), aad.end(), op.aad.begin());
    op.aad_len = static_cast<std::uint8_t>(aad.size());
  }
};

bool seals(const AeadKey& key, const KnownAnswer& answer) {
  const std::string blank_icv(answer.icv.size(), '0');
  Message m(answer, answer.plaintext, blank_icv);
  key.seal({&m.op, 1});
  return m.op.good && m.text == from_hex(answer.ciphertext) && m.icv == from_hex(answer.icv);
}

bool opens(const AeadKey& key, const KnownAnswer& answer) {
  Message m(answer, answer.ciphertext, answer.icv);
  key.open({&m.op, 1});
  return m.op.good && m.text == from_hex(answer.plaintext);
}

// Damages one byte of a sealed message: it must be refused and leave nothing.
template <typename Damage>
bool refuses(const AeadKey& key, const KnownAnswer& answer, Damage damage) {
  Message m(answer, answer.ciphertext, answer.icv);
  damage(m);
  key.open({&m.op, 1});
  return !m.op.good && std::all_of(m.text.begin(), m.text.end(), [](auto b) { return b == 0; });
}

bool holds(const Backend& backend, const KnownAnswer& answer) {
  const auto key = backend.expand(answer.suite, from_hex(answer.key));
  return seals(*key, answer) && opens(*key, answer) &&
         refuses(*key, answer, [](Message& m) { m.icv.back() ^= 0x01; }) &&
         refuses(*key, answer, [](Message& m) { m.text.front() ^= 0x80; }) &&
         refuses(*key, answer, [](Message& m) { m.op.aad[m.op.aad_len - 1U] ^= 0x01; });
}

}  // namespace

bool known_answers_hold(const Backend& backend) noexcept try {
  return std::all_of(kAnswers.begin(), kAnswers.end(), [&backend](const KnownAnswer& answer) {
    return !backend.supports(answer.suite) || holds(backend, answer);
  });
} catch (...) {
  return false;  // a backend that throws is not one to use
}

}  // namespace espalier::crypto
