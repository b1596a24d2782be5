// What the files of the ipsec-mb backend share. Private to crypto/.
#pragma once

#ifdef ESPALIER_HAVE_IPSEC_MB

#include <intel-ipsec-mb.h>

#include <memory>
#include <span>

#include "crypto/aead.h"

namespace espalier::crypto {

// A job manager of the calling thread's own, null without memory for it: a manager is not thread
// safe, and larger (200 KB) than one could have for each key. Made when a thread first asks; what
// a job reads of a key stays in the key. `few`: one that does well with less packets in flight than
// wide vector code needs, because the processor has instructions for SHA-1 and SHA-256.
[[nodiscard]] IMB_MGR* thread_manager(bool few) noexcept;

// Below so many packets the `few` one is the faster.
inline constexpr std::size_t kFewPackets = 8;

// The largest batch that is handed over at once.
inline constexpr std::size_t kBurst = 64;

template <typename Burst>
void in_bursts(std::span<AeadOp> ops, Burst&& burst) noexcept {
  for (; ops.size() > kBurst; ops = ops.subspan(kBurst)) burst(ops.first(kBurst));
  burst(ops);
}

using AesKeyExpansion = void (*)(const void* key, void* encrypt, void* decrypt);
[[nodiscard]] AesKeyExpansion aes_key_expansion(const IMB_MGR& manager, std::size_t key);

// CBC with HMAC, and HMAC alone. Throws std::bad_alloc without memory for a manager.
[[nodiscard]] std::unique_ptr<AeadKey> ipsec_mb_hmac_key(const SuiteInfo& suite,
                                                         std::span<const std::uint8_t> keys);
// CCM (not with keys of 192 bits, which the library lacks) and ChaCha20-Poly1305.
[[nodiscard]] std::unique_ptr<AeadKey> ipsec_mb_job_key(const SuiteInfo& suite,
                                                        std::span<const std::uint8_t> key);

}  // namespace espalier::crypto

#endif
