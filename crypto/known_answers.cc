// The known-answer test that every backend passes before it carries traffic.
#include <algorithm>
#include <array>
#include <numeric>
#include <string>
#include <vector>

#include "crypto/registry.h"

namespace espalier::crypto {
namespace {

// A packet, in hexadecimal. `key` is all keys, one behind the other; `nonce` is salt and IV, or the
// IV alone where there is no salt; `aad` is SPI and sequence number, in 4 or 8 bytes.
struct KnownAnswer {
  Suite suite;
  std::string_view key;  // empty: the bytes 00, 01, 02, …
  std::string_view nonce;
  std::string_view aad;
  std::string_view plaintext;
  std::string_view ciphertext;
  std::string_view icv;
};

// Of one packet under each suite that has no published ESP packet. The answers are those of
// Python's hmac and cryptography modules.
constexpr std::string_view kText =
    "45000030000040004011b6b90a0103020a01040213881389001c0000202122232425262728292a2b"
    "2c2d2e2f30313233";
constexpr std::string_view kAad = "0a1b2c3d00000001fffffff0";
constexpr std::string_view kNonce = "a0a1a2a3b0b1b2b3b4b5b6b7";
constexpr std::string_view kCcmNonce = "a0a1a2b0b1b2b3b4b5b6b7";
constexpr std::string_view kCbcIv = "b0b1b2b3b4b5b6b7b8b9babbbcbdbebf";
constexpr std::string_view kCcm128 =
    "fc1892076e1918d2b706b63526bd64b4bb7adc7d7a097242b0ad20cb2bc8fabacde768606b9e159b"
    "266df602f1cb0c67";
constexpr std::string_view kCcm192 =
    "42cfd6f164103d2c618c197f9b9f614902c9ce72ea92288a94db575e4fe450ac2807a131bb2b4a6d"
    "49c9b4830582720a";
constexpr std::string_view kCcm256 =
    "cc3907eeab90844cd818f93e52df3c5ab8ced7b5e6150c1c0b8e7a7e1ae19aa081bb9f4b6cb771ea"
    "4f219c2480e877c9";
constexpr std::string_view kCbc128 =
    "c3bfa66243140e0bfb115a0527af1c91a1c02bae2538d2fc19cfb6a0afde0fb5f709012dcaf25987"
    "4fa3ac9d01223b68";
constexpr std::string_view kCbc192 =
    "c4afea3cc2f84cebe0d005082a2d94f3c9a85936ddf948eefd84d9e03fb69e64cf3c3714acbda3f5"
    "8e8e6c2b49f3ba1f";
constexpr std::string_view kCbc256 =
    "48e1999bb24a9506637821712ae50870d614b0c06f4cec9cef38ee94b7966bd4fb826a2676ac9a80"
    "1766049cc56f4ceb";

// AES-GCM: draft-mcgrew-gcm-test-01; a shorter ICV is the beginning of the whole one (NIST SP
// 800-38D §7.1). ChaCha20-Poly1305: RFC 7634 appendix A.
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
    KnownAnswer{
        Suite::chacha20_poly1305,
        "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
        "a0a1a2a31011121314151617", "0102030400000005",
        "45000054a6f200004001e778c6336405c000020508005b7a3a080000553bec100007362708090a0b0c0d0e0f"
        "101112131415161718191a1b1c1d1e1f202122232425262728292a2b2c2d2e2f303132333435363701020204",
        "24039428b97f417e3c13753a4f05087b67c352e6a7fab1b982d466ef407ae5c614ee8099d52844eb61aa95df"
        "ab4c02f72aa71e7c4c4f64c9befe2facc638e8f3cbec163fac469b502773f6fb94e664da9165b82829f641e0",
        "76aaa8266b7fb0f7b11b369907e1ad43"},
    KnownAnswer{Suite::aes_ccm_16_128,
                {},
                kCcmNonce,
                kAad,
                kText,
                kCcm128,
                "e0ecc41ae63dd79b25962456207d8bc9"},
    KnownAnswer{Suite::aes_ccm_16_192,
                {},
                kCcmNonce,
                kAad,
                kText,
                kCcm192,
                "1ac8d66e03b2744f3363d4a398b25b5e"},
    KnownAnswer{Suite::aes_ccm_16_256,
                {},
                kCcmNonce,
                kAad,
                kText,
                kCcm256,
                "bd4ab201247a6c35b79aac5b599227cd"},
    KnownAnswer{
        Suite::aes_ccm_12_128, {}, kCcmNonce, kAad, kText, kCcm128, "dcf29b2bbd6bde4c9761912a"},
    KnownAnswer{
        Suite::aes_ccm_12_192, {}, kCcmNonce, kAad, kText, kCcm192, "003cf02bbbfd47d288afb182"},
    KnownAnswer{
        Suite::aes_ccm_12_256, {}, kCcmNonce, kAad, kText, kCcm256, "2665913660654445f185f5de"},
    KnownAnswer{Suite::aes_ccm_8_128, {}, kCcmNonce, kAad, kText, kCcm128, "5d77d8adb6c7e2ad"},
    KnownAnswer{Suite::aes_ccm_8_192, {}, kCcmNonce, kAad, kText, kCcm192, "82e6eb2757baf5b6"},
    KnownAnswer{Suite::aes_ccm_8_256, {}, kCcmNonce, kAad, kText, kCcm256, "271bd1c4b60f0454"},
    KnownAnswer{
        Suite::aes_gmac128, {}, kNonce, kAad, kText, kText, "661cafa84c7b3decadafe4786463fc39"},
    KnownAnswer{
        Suite::aes_gmac192, {}, kNonce, kAad, kText, kText, "8675b944e98f835faa5a7c9c0e6558b3"},
    KnownAnswer{
        Suite::aes_gmac256, {}, kNonce, kAad, kText, kText, "f9e519923c141786f0510bd0a20fefbf"},
    KnownAnswer{Suite::aes128_sha1, {}, kCbcIv, kAad, kText, kCbc128, "cff09ea1d6baac9ea2c6698e"},
    KnownAnswer{Suite::aes192_sha1, {}, kCbcIv, kAad, kText, kCbc192, "3479d70dde1735da35b2cfb8"},
    KnownAnswer{Suite::aes256_sha1, {}, kCbcIv, kAad, kText, kCbc256, "8cc414ae47f95f71f28f9c2f"},
    KnownAnswer{
        Suite::aes128_sha256, {}, kCbcIv, kAad, kText, kCbc128, "ca5ff64072fa79a1a204e3e50c07e3eb"},
    KnownAnswer{
        Suite::aes192_sha256, {}, kCbcIv, kAad, kText, kCbc192, "2007bdc2bc779a8c884c49bbc74d950d"},
    KnownAnswer{
        Suite::aes256_sha256, {}, kCbcIv, kAad, kText, kCbc256, "33e71f87785f57b9f1ec5c1d20d9576b"},
    KnownAnswer{Suite::aes128_sha384,
                {},
                kCbcIv,
                kAad,
                kText,
                kCbc128,
                "2d42650b0302daff365748d6805992dae89659c22784bb3b"},
    KnownAnswer{Suite::aes192_sha384,
                {},
                kCbcIv,
                kAad,
                kText,
                kCbc192,
                "a84a0de32920512db6d713458961519ffc43c36a31a76f5a"},
    KnownAnswer{Suite::aes256_sha384,
                {},
                kCbcIv,
                kAad,
                kText,
                kCbc256,
                "be5e4a3681f210721c4749a099e3b2451cae878f594c9f56"},
    KnownAnswer{Suite::aes128_sha512,
                {},
                kCbcIv,
                kAad,
                kText,
                kCbc128,
                "8aed10ab6aec809e25c686c47ab11545d3d3837abbe294354b1f76ecef643eb9"},
    KnownAnswer{Suite::aes192_sha512,
                {},
                kCbcIv,
                kAad,
                kText,
                kCbc192,
                "ce720a99427fada176e6d22aea588139c5a02d7bb6f387760048490ba33f0bb0"},
    KnownAnswer{Suite::aes256_sha512,
                {},
                kCbcIv,
                kAad,
                kText,
                kCbc256,
                "92a00174756c1934888870302a9351ad73ba6b547f3a9bf2fee38a33c6df0600"},
    KnownAnswer{Suite::null_sha1, {}, {}, kAad, kText, kText, "5aee44c4a5adf1337cde2c56"},
    KnownAnswer{Suite::null_sha256, {}, {}, kAad, kText, kText, "a51b92e9d51e8db923f64b9dcacecee2"},
    KnownAnswer{Suite::null_sha384,
                {},
                {},
                kAad,
                kText,
                kText,
                "b723597e80f53b9078fe0f1cc214ac3a30516f2dde6a0225"},
    KnownAnswer{Suite::null_sha512,
                {},
                {},
                kAad,
                kText,
                kText,
                "1d483510d8c89fa301d0fca03d1aae4e65f2ba38ee718733c03b3ff01dcc5f08"},
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

// As on the wire: SPI, low number, IV, text, ICV.
struct Message {
  Bytes wire;
  AeadOp op{};

  Message(const SuiteInfo& suite, const KnownAnswer& answer, std::string_view text_hex,
          std::string_view icv_hex) {
    const Bytes nonce = from_hex(answer.nonce);
    const Bytes aad = from_hex(answer.aad);
    const Bytes text = from_hex(text_hex);
    const Bytes icv = from_hex(icv_hex.substr(0, suite.icv * std::size_t{2}));
    wire.assign(aad.begin(), aad.begin() + 4);
    wire.insert(wire.end(), aad.end() - 4, aad.end());
    wire.insert(wire.end(), nonce.begin() + suite.salt, nonce.end());
    wire.insert(wire.end(), text.begin(), text.end());
    wire.insert(wire.end(), icv.begin(), icv.end());
    op.text = wire.data() + kEspHeaderBytes + suite.iv;
    op.text_len = static_cast<std::uint32_t>(text.size());
    op.icv = op.text + op.text_len;
    std::copy_n(nonce.begin(), std::min(nonce.size(), op.nonce.size()), op.nonce.begin());
    std::copy(aad.begin(), aad.end(), op.aad.begin());
    op.aad_len = static_cast<std::uint8_t>(aad.size());
  }

  [[nodiscard]] std::span<std::uint8_t> text() const { return {op.text, op.text_len}; }
};

bool same(std::span<const std::uint8_t> bytes, std::string_view hex) {
  const Bytes expected = from_hex(hex);
  return std::equal(bytes.begin(), bytes.end(), expected.begin(), expected.end());
}

struct Question {
  const AeadKey& key;
  const SuiteInfo& suite;
  const KnownAnswer& answer;

  [[nodiscard]] bool seals() const {
    const std::string blank_icv(answer.icv.size(), '0');
    Message m(suite, answer, answer.plaintext, blank_icv);
    key.seal({&m.op, 1});
    return m.op.good && same(m.text(), answer.ciphertext) &&
           same({m.op.icv, suite.icv}, answer.icv.substr(0, suite.icv * std::size_t{2}));
  }

  [[nodiscard]] bool opens() const {
    Message m(suite, answer, answer.ciphertext, answer.icv);
    key.open({&m.op, 1});
    return m.op.good && same(m.text(), answer.plaintext);
  }

  // Damages one byte of a sealed message: it must be refused and leave nothing.
  template <typename Damage>
  [[nodiscard]] bool refuses(Damage damage) const {
    Message m(suite, answer, answer.ciphertext, answer.icv);
    damage(m);
    key.open({&m.op, 1});
    const auto text = m.text();
    return !m.op.good && std::all_of(text.begin(), text.end(), [](auto b) { return b == 0; });
  }
};

Bytes key_of(const SuiteInfo& suite, const KnownAnswer& answer) {
  if (!answer.key.empty()) return from_hex(answer.key);
  Bytes key(suite.keys());
  std::iota(key.begin(), key.end(), std::uint8_t{0});
  return key;
}

bool holds(const Backend& backend, const SuiteInfo& suite, const KnownAnswer& answer) {
  const auto key = backend.expand(suite.suite, key_of(suite, answer));
  const Question q{*key, suite, answer};
  // A damaged number: in the AAD, or in the header of the packet, wherever the suite reads it.
  const auto damage_number = [](Message& m) {
    m.wire[kEspHeaderBytes - 1] ^= 0x01;
    m.op.aad[m.op.aad_len - 1U] ^= 0x01;
  };
  return q.seals() && q.opens() &&
         q.refuses([&suite](Message& m) { m.op.icv[suite.icv - 1U] ^= 0x01; }) &&
         q.refuses([](Message& m) { *m.op.text ^= 0x80; }) && q.refuses(damage_number);
}

bool fits(const SuiteInfo& suite, const SuiteInfo& of_answer) {
  return suite.suite == of_answer.suite ||
         (suite.mode == Mode::gcm && of_answer.mode == Mode::gcm && suite.key == of_answer.key);
}

}  // namespace

bool known_answers_hold(const Backend& backend) noexcept try {
  return std::all_of(suites().begin(), suites().end(), [&backend](const SuiteInfo& suite) {
    if (!backend.supports(suite.suite)) return true;
    int answers = 0;
    for (const KnownAnswer& answer : kAnswers) {
      if (!fits(suite, info(answer.suite))) continue;
      ++answers;
      if (!holds(backend, suite, answer)) return false;
    }
    return answers > 0;
  });
} catch (...) {
  return false;  // a backend that throws is not one to use
}

}  // namespace espalier::crypto
