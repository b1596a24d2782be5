#include "tests/unit/crypto/vectors.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

namespace espalier::crypto::testing {
namespace {

std::ifstream vector_file(const std::string& name) {
  std::ifstream file(std::string(ESPALIER_VECTORS "/") + name);
  if (!file) throw std::runtime_error("no test vectors " + name);
  return file;
}

using Fields = std::map<std::string, std::string, std::less<>>;

// Splits "name = value"; false for any other line.
bool parse_field(std::string_view line, Fields& fields) {
  if (line.ends_with('\r')) line.remove_suffix(1);
  const std::size_t mark = line.find('=');
  if (mark == std::string_view::npos || mark == 0 || line.front() == '#') return false;
  const std::size_t value = line.find_first_not_of(' ', mark + 1);
  fields[std::string(line.substr(0, mark - 1))] =
      value == std::string_view::npos ? "" : std::string(line.substr(value));
  return true;
}

bool fits(const Vector& v) {
  return v.nonce.size() == 12 && v.aad.size() <= 12;
}

using Run = void (AeadKey::*)(std::span<AeadOp>) const noexcept;

void run(const AeadKey& key, Run function, std::span<Packet> packets, std::vector<bool>& good) {
  std::vector<Bytes> wires;
  std::vector<AeadOp> ops;
  wires.reserve(packets.size());
  ops.reserve(packets.size());
  for (const Packet& p : packets) {
    wires.emplace_back(p.wire_length());
    ops.push_back(p.lay_out(wires.back().data()));
  }
  (key.*function)(ops);
  good.clear();
  for (std::size_t i = 0; i < packets.size(); ++i) {
    const AeadOp& op = ops[i];
    packets[i].text.assign(op.text, op.text + op.text_len);
    std::copy_n(op.icv, packets[i].icv.size(), packets[i].icv.begin());
    good.push_back(op.good);
  }
}

std::vector<Vector> wycheproof_aead(
    const char* file, const std::function<std::optional<Suite>(std::size_t)>& suite_of) {
  const auto document = nlohmann::json::parse(vector_file(file));
  std::vector<Vector> vectors;
  for (const auto& group : document.at("testGroups")) {
    const auto suite = suite_of(group.at("keySize").get<std::size_t>() / 8);
    if (!suite || group.at("tagSize") != 128) continue;
    for (const auto& test : group.at("tests")) {
      const auto bytes = [&test](const char* name) {
        return from_hex(test.at(name).get<std::string>());
      };
      Vector v{"wycheproof " + std::to_string(test.at("tcId").get<int>()),
               *suite,
               bytes("key"),
               bytes("iv"),
               bytes("aad"),
               bytes("msg"),
               bytes("ct"),
               bytes("tag"),
               test.at("result") == "valid"};
      if (fits(v)) vectors.push_back(std::move(v));
    }
  }
  return vectors;
}

}  // namespace

Bytes from_hex(std::string_view hex) {
  Bytes bytes(hex.size() / 2);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const char* at = hex.data() + 2 * i;
    if (std::from_chars(at, at + 2, bytes[i], 16).ptr != at + 2)
      throw std::runtime_error("not hexadecimal: " + std::string(hex));
  }
  return bytes;
}

std::string to_hex(std::span<const std::uint8_t> bytes) {
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string hex;
  for (const std::uint8_t b : bytes) {
    hex += kDigits[b >> 4U];
    hex += kDigits[b & 15U];
  }
  return hex;
}

std::optional<Suite> gcm_suite(std::size_t key_bytes) {
  for (const Suite suite : {Suite::aes_gcm128, Suite::aes_gcm192, Suite::aes_gcm256})
    if (info(suite).key == key_bytes) return suite;
  return std::nullopt;
}

std::vector<Vector> wycheproof() {
  return wycheproof_aead("wycheproof/aes_gcm_test.json", gcm_suite);
}

std::vector<Vector> wycheproof_chacha20() {
  return wycheproof_aead("wycheproof/chacha20_poly1305_test.json",
                         [](std::size_t) { return Suite::chacha20_poly1305; });
}

std::vector<HmacCase> wycheproof_hmac() {
  const auto document = nlohmann::json::parse(vector_file("wycheproof/hmac_sha256_test.json"));
  std::vector<HmacCase> cases;
  for (const auto& group : document.at("testGroups")) {
    if (group.at("keySize") != 256 || group.at("tagSize") != 128) continue;
    for (const auto& test : group.at("tests")) {
      Bytes data = from_hex(test.at("msg").get<std::string>());
      if (data.size() < kEspHeaderBytes) continue;
      cases.push_back({"wycheproof " + std::to_string(test.at("tcId").get<int>()),
                       Suite::null_sha256, from_hex(test.at("key").get<std::string>()),
                       std::move(data), from_hex(test.at("tag").get<std::string>()),
                       test.at("result") == "valid"});
    }
  }
  return cases;
}

std::vector<CbcCase> rfc_cbc() {
  std::vector<CbcCase> cases;
  std::ifstream file = vector_file("rfc/esp.txt");
  Fields f;
  for (std::string line; std::getline(file, line);)
    if (parse_field(line, f) && line.starts_with("cbc "))
      cases.push_back({f["name"], from_hex(f["key"]), from_hex(f["iv"]), from_hex(f["plaintext"]),
                       from_hex(f["cbc"])});
  return cases;
}

std::vector<HmacCase> rfc_hmac() {
  std::vector<HmacCase> cases;
  std::ifstream file = vector_file("rfc/esp.txt");
  Fields f;
  for (std::string line; std::getline(file, line);) {
    if (!parse_field(line, f) || !line.starts_with("hmac ")) continue;
    const Suite suite = parse_suite(f["suite"]).value();
    Bytes icv = from_hex(f["hmac"]);
    icv.resize(info(suite).icv);
    cases.push_back({f["suite"] + " of " + f["data"], suite, from_hex(f["key"]),
                     from_hex(f["data"]), std::move(icv), true});
  }
  return cases;
}

std::vector<Vector> cavp() {
  std::vector<Vector> vectors;
  for (const char* bits : {"128", "256"}) {
    std::ifstream file = vector_file("nist-cavp/gcmEncryptExtIV" + std::string(bits) + ".rsp");
    Fields f;
    for (std::string line; std::getline(file, line);) {
      if (!parse_field(line, f) || !line.starts_with("Tag ")) continue;
      Vector v{"cavp " + std::string(bits) + " count " + f["Count"] + " key " + f["Key"],
               gcm_suite(f["Key"].size() / 2).value(),
               from_hex(f["Key"]),
               from_hex(f["IV"]),
               from_hex(f["AAD"]),
               from_hex(f["PT"]),
               from_hex(f["CT"]),
               from_hex(f["Tag"]),
               true};
      if (fits(v)) vectors.push_back(std::move(v));
    }
  }
  return vectors;
}

std::vector<EspCase> mcgrew_packets() {
  std::vector<EspCase> cases;
  std::ifstream file = vector_file("mcgrew/cases-1-9.txt");
  Fields f;
  for (std::string line; std::getline(file, line);) {
    if (!parse_field(line, f) || !line.starts_with("packet ")) continue;
    const Bytes packet = from_hex(f["packet"]);
    const auto ciphertext = packet.begin() + 16;  // SPI, sequence number, IV
    const auto icv = packet.end() - 16;
    cases.push_back(
        {{"mcgrew case " + std::to_string(cases.size() + 1), gcm_suite(f["key"].size() / 2).value(),
          from_hex(f["key"]), from_hex(f["nonce"]), from_hex(f["spi"] + f["seq"]),
          from_hex(f["plaintext"]), Bytes(ciphertext, icv), Bytes(icv, packet.end()), true},
         packet});
  }
  return cases;
}

std::vector<Vector> mcgrew() {
  std::vector<Vector> vectors;
  for (EspCase& c : mcgrew_packets()) vectors.push_back(std::move(c.aead));
  return vectors;
}

AeadOp Packet::lay_out(std::uint8_t* wire) const {
  AeadOp op{};
  const std::size_t half = std::min<std::size_t>(aad.size(), 4);
  std::fill_n(wire, kEspHeaderBytes, std::uint8_t{0});
  std::copy_n(aad.begin(), half, wire);
  std::copy_n(aad.end() - static_cast<std::ptrdiff_t>(half), half, wire + 4);
  std::copy_n(nonce.end() - static_cast<std::ptrdiff_t>(iv), iv, wire + kEspHeaderBytes);
  op.text = wire + kEspHeaderBytes + iv;
  op.text_len = static_cast<std::uint32_t>(text.size());
  op.icv = op.text + text.size();
  std::copy(text.begin(), text.end(), op.text);
  std::copy(icv.begin(), icv.end(), op.icv);
  op.aad_len = static_cast<std::uint8_t>(aad.size());
  std::copy_n(nonce.begin(), std::min(nonce.size(), op.nonce.size()), op.nonce.begin());
  std::copy(aad.begin(), aad.end(), op.aad.begin());
  return op;
}

std::size_t text_length(const SuiteInfo& suite, std::size_t length) {
  if (suite.mode != Mode::cbc_hmac) return length;
  return std::max<std::size_t>(16, (length + 15) / 16 * 16);
}

Packet plain_packet(Suite suite, std::size_t length, std::uint32_t seed) {
  const SuiteInfo& s = info(suite);
  return {pseudo_random(text_length(s, length), seed), Bytes(s.icv),
          pseudo_random(std::size_t{s.salt} + s.iv, seed + 1),
          pseudo_random(seed % 2 == 0 ? 8 : 12, seed + 2), s.iv};
}

Packet unsealed(const Vector& vector) {
  return {vector.plaintext, Bytes(info(vector.suite).icv, 0xEE), vector.nonce, vector.aad};
}

Packet sealed(const Vector& vector) {
  return {vector.ciphertext, vector.icv, vector.nonce, vector.aad};
}

void seal(const AeadKey& key, std::span<Packet> packets, std::vector<bool>& good) {
  run(key, &AeadKey::seal, packets, good);
}

void open(const AeadKey& key, std::span<Packet> packets, std::vector<bool>& good) {
  run(key, &AeadKey::open, packets, good);
}

Bytes pseudo_random(std::size_t size, std::uint32_t seed) {
  // Whole words: std::minstd_rand is the same everywhere, the distributions are not.
  std::minstd_rand generator(seed + 1);
  Bytes bytes(size);
  for (std::uint8_t& b : bytes) b = static_cast<std::uint8_t>(generator() >> 8U);
  return bytes;
}

}  // namespace espalier::crypto::testing
