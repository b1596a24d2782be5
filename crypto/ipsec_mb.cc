// intel-ipsec-mb as a backend, and its AES-GCM and GMAC: one call a packet, AES-NI up to AVX-512 +
// VAES. What gains from many packets in flight is in ipsec_mb_hmac.cc and ipsec_mb_aead.cc.
#include "crypto/backends.h"

#ifdef ESPALIER_HAVE_IPSEC_MB

#include <intel-ipsec-mb.h>
#include <sodium.h>

#include <array>
#include <atomic>
#include <cstring>
#include <utility>

#include "crypto/ipsec_mb_parts.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

struct Functions {
  aes_gcm_pre_t expand;
  aes_gcm_enc_dec_t seal;
  aes_gcm_enc_dec_t open;
};

// The context is the only thing a call writes beside the packet. It holds key stream afterwards.
struct Context : gcm_context_data {
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;
  ~Context() { sodium_memzero(static_cast<gcm_context_data*>(this), sizeof(gcm_context_data)); }
};

// A key and its schedule, expanded by the first packet: an SA that carries nothing holds the key
// alone. Any thread.
//
// All of gcm_key_data is kept (1008 bytes, 1024 with alignment): round keys and 48 powers of the
// hash key, which the AVX-512 code reads to the last one. Older code uses less, but how much is the
// library's secret and may change under a program that is already built.
class Schedule {
 public:
  Schedule(aes_gcm_pre_t expand, std::span<const std::uint8_t> key)
      : expand_(expand), key_(key), room_(sizeof(gcm_key_data)) {
    static_assert(alignof(gcm_key_data) <= SecretBytes::kAlignment);
  }

  [[nodiscard]] const gcm_key_data* get() const noexcept {
    if (state_.load(std::memory_order_acquire) != State::ready) [[unlikely]]
      make_ready();
    return reinterpret_cast<const gcm_key_data*>(std::as_const(room_).bytes().data());
  }

 private:
  enum class State : std::uint8_t { key_only, busy, ready };

  // Whoever comes meanwhile waits: a microsecond, once in the life of an SA.
  void make_ready() const noexcept {
    State expected = State::key_only;
    if (!state_.compare_exchange_strong(expected, State::busy, std::memory_order_acquire)) {
      while (state_.load(std::memory_order_acquire) != State::ready) {
      }
      return;
    }
    expand_(key_.bytes().data(), new (room_.bytes().data()) gcm_key_data);
    state_.store(State::ready, std::memory_order_release);
  }

  aes_gcm_pre_t expand_;
  const SecretBytes key_;
  mutable SecretBytes room_;
  mutable std::atomic<State> state_{State::key_only};
};

class IpsecMbKey final : public AeadKey {
 public:
  IpsecMbKey(const Functions& functions, std::span<const std::uint8_t> key, std::size_t icv)
      : schedule_(functions.expand, key), seal_(functions.seal), open_(functions.open), icv_(icv) {}

  void seal(std::span<AeadOp> ops) const noexcept override {
    const gcm_key_data* schedule = schedule_.get();
    Context context;
    for (AeadOp& op : ops) {
      seal_(schedule, &context, op.text, op.plaintext(), op.text_len, op.nonce.data(),
            op.aad.data(), op.aad_len, op.icv, icv_);
      op.good = true;
    }
  }

  // The library only computes the tag of what it decrypts; the verdict is ours.
  void open(std::span<AeadOp> ops) const noexcept override {
    const gcm_key_data* schedule = schedule_.get();
    Context context;
    std::array<std::uint8_t, 16> tag{};
    for (AeadOp& op : ops) {
      open_(schedule, &context, op.text, op.text, op.text_len, op.nonce.data(), op.aad.data(),
            op.aad_len, tag.data(), icv_);
      op.good = icv_ == tag.size() ? crypto_verify_16(tag.data(), op.icv) == 0
                                   : sodium_memcmp(tag.data(), op.icv, icv_) == 0;
      if (!op.good) [[unlikely]]
        wipe({op.text, op.text_len});
    }
    wipe(tag);  // the tag of a forged packet is what the forger lacks
  }

  [[nodiscard]] bool shareable() const noexcept override { return true; }

 private:
  Schedule schedule_;
  aes_gcm_enc_dec_t seal_;
  aes_gcm_enc_dec_t open_;
  std::size_t icv_;
};

struct GmacFunctions {
  aes_gmac_init_t init;
  aes_gmac_update_t update;
  aes_gmac_finalize_t finalize;
};

// RFC 4543 §3.3: header, IV and payload are authenticated, and nothing is encrypted.
class GmacKey final : public AeadKey {
 public:
  GmacKey(const Functions& gcm, const GmacFunctions& gmac, std::span<const std::uint8_t> key)
      : schedule_(gcm.expand, key), gmac_(gmac) {}

  void seal(std::span<AeadOp> ops) const noexcept override {
    Context context;
    for (AeadOp& op : ops) {
      authenticate(op, context, op.icv);
      op.good = true;
    }
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    Context context;
    std::array<std::uint8_t, 16> tag{};
    for (AeadOp& op : ops) {
      authenticate(op, context, tag.data());
      op.good = crypto_verify_16(tag.data(), op.icv) == 0;
      if (!op.good) [[unlikely]]
        wipe({op.text, op.text_len});
    }
    wipe(tag);
  }

  [[nodiscard]] bool shareable() const noexcept override { return true; }

 private:
  void authenticate(const AeadOp& op, Context& context, std::uint8_t* tag) const noexcept {
    const gcm_key_data* schedule = schedule_.get();
    gmac_.init(schedule, &context, op.nonce.data(), op.nonce.size());
    gmac_.update(schedule, &context, op.aad.data(), op.aad_len);
    gmac_.update(schedule, &context, op.text - kCounterIvBytes, op.text_len + kCounterIvBytes);
    gmac_.finalize(schedule, &context, tag, 16);
  }

  Schedule schedule_;
  GmacFunctions gmac_;
};

class IpsecMb final : public Backend {
 public:
  explicit IpsecMb(const IMB_MGR& manager)
      : functions_{{{manager.gcm128_pre, manager.gcm128_enc, manager.gcm128_dec},
                    {manager.gcm192_pre, manager.gcm192_enc, manager.gcm192_dec},
                    {manager.gcm256_pre, manager.gcm256_enc, manager.gcm256_dec}}},
        gmac_{{{manager.gmac128_init, manager.gmac128_update, manager.gmac128_finalize},
               {manager.gmac192_init, manager.gmac192_update, manager.gmac192_finalize},
               {manager.gmac256_init, manager.gmac256_update, manager.gmac256_finalize}}} {}

  [[nodiscard]] std::string_view name() const noexcept override { return "ipsec-mb"; }

  [[nodiscard]] bool supports(Suite suite) const noexcept override {
    const SuiteInfo& s = info(suite);
    return s.mode != Mode::ccm || s.key != IMB_KEY_192_BYTES;
  }

  [[nodiscard]] std::unique_ptr<AeadKey> expand(Suite suite,
                                                std::span<const std::uint8_t> key) const override {
    check_key(*this, suite, key);
    const SuiteInfo& s = info(suite);
    const std::size_t size = (s.key - std::size_t{IMB_KEY_128_BYTES}) / 8;  // of AES
    switch (s.mode) {
      case Mode::gcm:
        return std::make_unique<IpsecMbKey>(functions_[size], key, s.icv);
      case Mode::gmac:
        return std::make_unique<GmacKey>(functions_[size], gmac_[size], key);
      case Mode::cbc_hmac:
      case Mode::hmac:
        return ipsec_mb_hmac_key(s, key);
      case Mode::ccm:
      case Mode::chacha20:
        break;
    }
    return ipsec_mb_job_key(s, key);
  }

 private:
  std::array<Functions, 3> functions_;
  std::array<GmacFunctions, 3> gmac_;
};

std::string_view arch_in_words(const IMB_MGR& manager) {
  constexpr std::uint64_t kVaes = IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ;
  switch (static_cast<IMB_ARCH>(manager.used_arch)) {
    case IMB_ARCH_AVX512:
      return (manager.features & kVaes) == kVaes ? "AVX-512 + VAES" : "AVX-512 + AES-NI";
    case IMB_ARCH_AVX2:
      return "AVX2 + AES-NI";
    case IMB_ARCH_AVX:
      return "AVX + AES-NI";
    case IMB_ARCH_SSE:
      return "SSE + AES-NI";
    case IMB_ARCH_NONE:
    case IMB_ARCH_NOAESNI:
    case IMB_ARCH_NUM:
      break;
  }
  return {};  // AES by tables: slow, and its timing tells of the key
}

}  // namespace

Probe probe_ipsec_mb() {
  initialise();
  // Only lends its function pointers: those stay valid when the manager is gone.
  const std::unique_ptr<IMB_MGR, decltype(&free_mb_mgr)> manager(alloc_mb_mgr(0), &free_mb_mgr);
  if (!manager) return {nullptr, "no memory for its job manager"};
  init_mb_mgr_auto(manager.get(), nullptr);
  if (const int error = imb_get_errno(manager.get()); error != 0)
    return {nullptr, std::string("does not start: ") + imb_get_strerror(error)};

  constexpr std::uint64_t kAes = IMB_FEATURE_AESNI | IMB_FEATURE_PCLMULQDQ;
  const std::string_view arch = arch_in_words(*manager);
  if (arch.empty() || (manager->features & kAes) != kAes)
    return {nullptr, "this processor lacks AES-NI or PCLMULQDQ"};
  return {std::make_unique<IpsecMb>(*manager),
          std::string(arch) + ", version " + imb_get_version_str()};
}

}  // namespace espalier::crypto

#else

namespace espalier::crypto {

Probe probe_ipsec_mb() {
  return {nullptr, "not built in: libipsec-mb-dev was missing at build time"};
}

}  // namespace espalier::crypto

#endif
