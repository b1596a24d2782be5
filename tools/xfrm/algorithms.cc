#include "tools/xfrm/algorithms.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

namespace espalier::tools::xfrm {
namespace {

using crypto::Hash;
using crypto::Mode;

struct AeadName {
  std::string_view kernel;
  Mode mode;
};
constexpr std::array<AeadName, 4> kAeads = {{{"rfc4106(gcm(aes))", Mode::gcm},
                                             {"rfc4309(ccm(aes))", Mode::ccm},
                                             {"rfc4543(gcm(aes))", Mode::gmac},
                                             {"rfc7539esp(chacha20,poly1305)", Mode::chacha20}}};

// `truncated`: what the kernel cuts to without XFRMA_ALG_AUTH_TRUNC.
struct AuthName {
  std::string_view kernel, also;
  Hash hash;
  std::uint32_t truncated;
};
constexpr std::array<AuthName, 4> kAuths = {{{"hmac(sha1)", "sha1", Hash::sha1, 96},
                                             {"hmac(sha256)", "sha256", Hash::sha256, 96},
                                             {"hmac(sha384)", "sha384", Hash::sha384, 192},
                                             {"hmac(sha512)", "sha512", Hash::sha512, 256}}};
struct CryptName {
  std::string_view kernel, also;
  Mode mode;
};
constexpr std::array<CryptName, 2> kCrypts = {
    {{"cbc(aes)", "aes", Mode::cbc_hmac}, {"ecb(cipher_null)", "cipher_null", Mode::hmac}}};

template <class Names>
const auto* find_name(const Names& names, std::string_view name) {
  const auto found = std::find_if(names.begin(), names.end(), [&](const auto& n) {
    if constexpr (requires { n.also; })
      if (n.also == name) return true;
    return n.kernel == name;
  });
  return found == names.end() ? nullptr : &*found;
}

constexpr std::size_t kNameBytes = sizeof(xfrm_algo::alg_name);

// `fixed`: name, length of the key, and for some the length of the ICV; then the key.
Algorithm read_one(std::span<const std::uint8_t> bytes, std::size_t fixed, const char* what) {
  Algorithm out;
  const auto* const name = reinterpret_cast<const char*>(bytes.data());
  out.name.assign(name, ::strnlen(name, kNameBytes - 1));
  std::memcpy(&out.key_bits, bytes.data() + kNameBytes, sizeof out.key_bits);
  if (fixed > sizeof(xfrm_algo))
    std::memcpy(&out.icv_bits, bytes.data() + sizeof(xfrm_algo), sizeof out.icv_bits);
  const std::size_t length = (std::size_t{out.key_bits} + 7) / 8;
  if (length > bytes.size() - fixed)
    throw Refused(EINVAL, std::string("Invalid ") + what + " attribute length");
  out.key = crypto::SecretBytes(bytes.subspan(fixed, length));
  return out;
}

[[noreturn]] void unknown(const char* what) {
  throw Refused(ENOSYS, std::string("Requested ") + what + " algorithm not found");
}

[[noreturn]] void bad_key() {
  throw Refused(EINVAL, "Kernel was unable to initialize cryptographic operations");
}

Algorithm read_aead(const Request& request) {
  Algorithm out = read_one(request.data(XFRMA_ALG_AEAD), sizeof(xfrm_algo_aead), "AEAD");
  const AeadName* const known = find_name(kAeads, out.name);
  if (known == nullptr) unknown("AEAD");
  const auto suites = crypto::suites();
  if (std::none_of(suites.begin(), suites.end(), [&](const auto& suite) {
        return suite.mode == known->mode && std::uint32_t{suite.icv} * 8 == out.icv_bits;
      }))
    unknown("AEAD");
  return out;
}

Algorithm read_auth(const Request& request) {
  const bool truncated = request.has(XFRMA_ALG_AUTH_TRUNC);
  Algorithm out =
      truncated ? read_one(request.data(XFRMA_ALG_AUTH_TRUNC), sizeof(xfrm_algo_auth), "AUTH_TRUNC")
                : read_one(request.data(XFRMA_ALG_AUTH), sizeof(xfrm_algo), "AUTH/CRYPT/COMP");
  const AuthName* const known = find_name(kAuths, out.name);
  if (known == nullptr) unknown(truncated ? "AUTH_TRUNC" : "AUTH");
  if (out.icv_bits == 0) out.icv_bits = known->truncated;
  out.name = known->kernel;
  return out;
}

Algorithm read_crypt(const Request& request) {
  Algorithm out = read_one(request.data(XFRMA_ALG_CRYPT), sizeof(xfrm_algo), "AUTH/CRYPT/COMP");
  const CryptName* const known = find_name(kCrypts, out.name);
  if (known == nullptr) unknown("CRYPT");
  out.name = known->kernel;
  return out;
}

Transform aead_transform(const Algorithm& aead) {
  const Mode mode = find_name(kAeads, aead.name)->mode;
  for (const crypto::SuiteInfo& suite : crypto::suites())
    if (suite.mode == mode && std::uint32_t{suite.icv} * 8 == aead.icv_bits &&
        suite.keymat() == aead.key.size())
      return {suite.suite, crypto::SecretBytes(aead.key.bytes())};
  bad_key();
}

Transform hmac_transform(const Algorithm* crypt, const Algorithm* auth) {
  if (auth == nullptr)
    throw Refused(ENOSYS, "encryption without integrity is refused: add auth or auth-trunc");
  const Mode mode = crypt == nullptr ? Mode::hmac : find_name(kCrypts, crypt->name)->mode;
  const Hash hash = find_name(kAuths, auth->name)->hash;
  const std::size_t key = mode == Mode::hmac ? 0 : crypt->key.size();
  for (const crypto::SuiteInfo& suite : crypto::suites()) {
    if (suite.mode != mode || suite.hash != hash) continue;
    if (std::uint32_t{suite.icv} * 8 != auth->icv_bits)
      throw Refused(ENOSYS, auth->name + " is cut to " + std::to_string(suite.icv * 8) +
                                " bits here (RFC 4868): write auth-trunc '" + auth->name +
                                "' KEY " + std::to_string(suite.icv * 8));
    if (suite.key != key || suite.auth_key != auth->key.size()) continue;
    crypto::SecretBytes keymat(suite.keymat());
    if (key != 0) std::copy_n(crypt->key.bytes().begin(), key, keymat.bytes().begin());
    std::copy(auth->key.bytes().begin(), auth->key.bytes().end(),
              keymat.bytes().begin() + static_cast<std::ptrdiff_t>(key));
    return {suite.suite, std::move(keymat)};
  }
  bad_key();
}

// Name, length of the key, [length of the ICV,] key.
void put_one(Reply& reply, int attribute, const Algorithm& algorithm, bool with_icv, Keys keys) {
  const std::size_t fixed = with_icv ? sizeof(xfrm_algo_auth) : sizeof(xfrm_algo);
  const bool shown = keys == Keys::with;
  crypto::SecretBytes bytes(fixed + (shown ? algorithm.key.size() : 0));
  std::uint8_t* const out = bytes.bytes().data();
  std::copy_n(algorithm.name.begin(), std::min(algorithm.name.size(), kNameBytes - 1), out);
  const std::uint32_t key_bits = shown ? algorithm.key_bits : 0;
  std::memcpy(out + kNameBytes, &key_bits, sizeof key_bits);
  if (with_icv)
    std::memcpy(out + sizeof(xfrm_algo), &algorithm.icv_bits, sizeof algorithm.icv_bits);
  if (shown) std::copy(algorithm.key.bytes().begin(), algorithm.key.bytes().end(), out + fixed);
  reply.put(attribute, std::as_const(bytes).bytes());
}

}  // namespace

Algorithms read_algorithms(const Request& request) {
  Algorithms out;
  if (request.has(XFRMA_ALG_AEAD)) out.aead = read_aead(request);
  if (request.has(XFRMA_ALG_AUTH) || request.has(XFRMA_ALG_AUTH_TRUNC))
    out.auth = read_auth(request);
  if (request.has(XFRMA_ALG_CRYPT)) out.crypt = read_crypt(request);
  return out;
}

Transform transform_of(const Algorithms& algorithms) {
  if (algorithms.aead) return aead_transform(*algorithms.aead);
  return hmac_transform(algorithms.crypt ? &*algorithms.crypt : nullptr,
                        algorithms.auth ? &*algorithms.auth : nullptr);
}

// The order is the kernel's.
void Algorithms::put(Reply& reply, Keys keys) const {
  if (aead) put_one(reply, XFRMA_ALG_AEAD, *aead, true, keys);
  if (auth) {
    put_one(reply, XFRMA_ALG_AUTH, *auth, false, keys);
    put_one(reply, XFRMA_ALG_AUTH_TRUNC, *auth, true, keys);
  }
  if (crypt) put_one(reply, XFRMA_ALG_CRYPT, *crypt, false, keys);
}

Algorithms algorithms_of(crypto::Suite suite) {
  const crypto::SuiteInfo& info = crypto::info(suite);
  const auto named = [](std::string_view name, std::uint32_t icv_bits) {
    Algorithm out;
    out.name = name;
    out.icv_bits = icv_bits;
    return out;
  };
  Algorithms out;
  const std::uint32_t icv_bits = std::uint32_t{info.icv} * 8;
  for (const AeadName& name : kAeads)
    if (name.mode == info.mode) out.aead = named(name.kernel, icv_bits);
  for (const AuthName& name : kAuths)
    if (name.hash == info.hash) out.auth = named(name.kernel, icv_bits);
  for (const CryptName& name : kCrypts)
    if (name.mode == info.mode) out.crypt = named(name.kernel, 0);
  return out;
}

}  // namespace espalier::tools::xfrm
