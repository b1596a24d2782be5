// CCM and ChaCha20-Poly1305 as jobs of ipsec-mb. CCM's authentication is a CBC chain, so it too
// gains from many packets in flight.
#ifdef ESPALIER_HAVE_IPSEC_MB

#include <sodium.h>

#include <array>
#include <cassert>
#include <new>

#include "crypto/backends.h"
#include "crypto/ipsec_mb_parts.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

constexpr std::size_t kRoundKeys = 15 * std::size_t{16};
constexpr std::size_t kTag = 16;

struct Algorithm {
  IMB_CIPHER_MODE cipher;
  IMB_HASH_ALG hash;
  // CCM authenticates the plaintext, ChaCha20-Poly1305 the ciphertext.
  IMB_CHAIN_ORDER seal_order;
  IMB_CHAIN_ORDER open_order;
  std::size_t nonce;
};
constexpr Algorithm kCcm = {IMB_CIPHER_CCM, IMB_AUTH_AES_CCM, IMB_ORDER_HASH_CIPHER,
                            IMB_ORDER_CIPHER_HASH, 11};
constexpr Algorithm kChacha20 = {IMB_CIPHER_CHACHA20_POLY1305, IMB_AUTH_CHACHA20_POLY1305,
                                 IMB_ORDER_CIPHER_HASH, IMB_ORDER_HASH_CIPHER, 12};

class JobKey final : public AeadKey {
 public:
  JobKey(const SuiteInfo& suite, std::span<const std::uint8_t> key, const IMB_MGR& manager)
      : algorithm_(suite.mode == Mode::ccm ? kCcm : kChacha20),
        keys_(2 * kRoundKeys),
        key_(suite.key),
        icv_(suite.icv) {
    const std::span<std::uint8_t> keys = keys_.bytes();
    if (suite.mode == Mode::ccm) {
      aes_key_expansion(manager, suite.key)(key.data(), keys.data(), keys.data() + kRoundKeys);
    } else {
      std::copy(key.begin(), key.end(), keys.begin());
    }
  }

  void seal(std::span<AeadOp> ops) const noexcept override {
    in_bursts(ops, [this](std::span<AeadOp> burst) { seal_burst(burst); });
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    in_bursts(ops, [this](std::span<AeadOp> burst) { open_burst(burst); });
  }

  [[nodiscard]] bool shareable() const noexcept override { return true; }

 private:
  void seal_burst(std::span<AeadOp> ops) const noexcept {
    run(ops, IMB_DIR_ENCRYPT, algorithm_.seal_order, [&ops](std::size_t i) { return ops[i].icv; });
  }

  // The library only computes the tag of what it decrypts; the verdict is ours.
  void open_burst(std::span<AeadOp> ops) const noexcept {
    std::array<std::array<std::uint8_t, kTag>, kBurst> tags;
    run(ops, IMB_DIR_DECRYPT, algorithm_.open_order,
        [&tags](std::size_t i) { return tags[i].data(); });
    for (std::size_t i = 0; i < ops.size(); ++i) {
      AeadOp& op = ops[i];
      op.good = op.good && sodium_memcmp(tags[i].data(), op.icv, icv_) == 0;
      if (!op.good) [[unlikely]]
        wipe({op.text, op.text_len});
    }
    sodium_memzero(tags.data(), ops.size() * sizeof tags.front());
  }

  void fill(IMB_JOB& job, AeadOp& op, std::uint8_t* tag) const noexcept {
    job.cipher_mode = algorithm_.cipher;
    job.hash_alg = algorithm_.hash;
    job.enc_keys = keys_.bytes().data();
    job.dec_keys = keys_.bytes().data();  // CTR and ChaCha20 run forward both ways
    job.key_len_in_bytes = key_;
    job.src = op.text;
    job.dst = op.text;
    job.cipher_start_src_offset_in_bytes = 0;
    job.msg_len_to_cipher_in_bytes = op.text_len;
    job.hash_start_src_offset_in_bytes = 0;
    job.msg_len_to_hash_in_bytes = op.text_len;
    job.iv = op.nonce.data();
    job.iv_len_in_bytes = algorithm_.nonce;
    job.auth_tag_output = tag;
    job.auth_tag_output_len_in_bytes = icv_;
    if (algorithm_.cipher == IMB_CIPHER_CCM) {
      job.u.CCM.aad = op.aad.data();
      job.u.CCM.aad_len_in_bytes = op.aad_len;
    } else {
      job.u.CHACHA20_POLY1305.aad = op.aad.data();
      job.u.CHACHA20_POLY1305.aad_len_in_bytes = op.aad_len;
      job.u.CHACHA20_POLY1305.ctx = nullptr;
    }
    job.user_data = &op;
  }

  // Sets `good` where a job is completed. The manager's queue is empty before and after.
  template <typename TagOf>
  void run(std::span<AeadOp> ops, IMB_CIPHER_DIRECTION direction, IMB_CHAIN_ORDER order,
           TagOf tag_of) const noexcept {
    for (AeadOp& op : ops) op.good = false;
    IMB_MGR* manager = thread_manager(false);
    if (manager == nullptr || ops.empty()) return;
    const auto count = static_cast<std::uint32_t>(ops.size());
    std::array<IMB_JOB*, kBurst> jobs;
    if (IMB_GET_NEXT_BURST(manager, count, jobs.data()) != count) return;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      fill(*jobs[i], ops[i], tag_of(i));
      jobs[i]->cipher_direction = direction;
      jobs[i]->chain_order = order;
    }
    std::uint32_t done = IMB_SUBMIT_BURST(manager, count, jobs.data());
    collect(jobs, done);
    // What is left waits for more packets to fill the lanes; there are none.
    while (done < count) {
      const std::uint32_t more = IMB_FLUSH_BURST(manager, count - done, jobs.data());
      if (more == 0) break;
      collect(jobs, more);
      done += more;
    }
  }

  static void collect(std::span<IMB_JOB* const> jobs, std::uint32_t count) noexcept {
    for (const IMB_JOB* job : jobs.first(count))
      static_cast<AeadOp*>(job->user_data)->good = job->status == IMB_STATUS_COMPLETED;
  }

  Algorithm algorithm_;
  SecretBytes keys_;
  std::size_t key_;
  std::size_t icv_;
};

}  // namespace

std::unique_ptr<AeadKey> ipsec_mb_job_key(const SuiteInfo& suite,
                                          std::span<const std::uint8_t> key) {
  const IMB_MGR* manager = thread_manager(false);
  if (manager == nullptr) throw std::bad_alloc();
  return std::make_unique<JobKey>(suite, key, *manager);
}

}  // namespace espalier::crypto

#endif
