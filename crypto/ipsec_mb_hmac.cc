// CBC with HMAC, and HMAC alone, many packets at once: neither CBC encryption nor a hash can use
// more than one lane of a vector for one packet, so the lanes are filled with packets.
//
// A batch goes through as two synchronous bursts, cipher and hash, in the order of RFC 4303:
// nothing of a packet that is not authentic reaches the cipher.
#ifdef ESPALIER_HAVE_IPSEC_MB

#include <sodium.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <new>

#include "crypto/backends.h"
#include "crypto/ipsec_mb_parts.h"
#include "crypto/secret.h"

namespace espalier::crypto {
namespace {

constexpr std::size_t kBlock = 16;
constexpr std::size_t kRoundKeys = 15 * kBlock;  // AES-256
constexpr std::size_t kDigest = 64;              // SHA-512
constexpr std::size_t kHashBlock = 128;          // SHA-384 and SHA-512; the others 64

struct HashFunctions {
  IMB_HASH_ALG algorithm;
  hash_one_block_t one_block;
  std::size_t block;
};

HashFunctions functions_of(const IMB_MGR& manager, Hash hash) {
  switch (hash) {
    case Hash::none:
      break;
    case Hash::sha1:
      return {IMB_AUTH_HMAC_SHA_1, manager.sha1_one_block, kHashBlock / 2};
    case Hash::sha256:
      return {IMB_AUTH_HMAC_SHA_256, manager.sha256_one_block, kHashBlock / 2};
    case Hash::sha384:
      return {IMB_AUTH_HMAC_SHA_384, manager.sha384_one_block, kHashBlock};
    case Hash::sha512:
      return {IMB_AUTH_HMAC_SHA_512, manager.sha512_one_block, kHashBlock};
  }
  throw std::invalid_argument("a suite of HMAC has a hash");
}

// The state of the hash after its first block (RFC 2104), which is all a packet needs.
struct Schedule {
  alignas(kBlock) std::array<std::uint8_t, kRoundKeys> encrypt;
  alignas(kBlock) std::array<std::uint8_t, kRoundKeys> decrypt;
  alignas(kBlock) std::array<std::uint8_t, kDigest> inner;
  alignas(kBlock) std::array<std::uint8_t, kDigest> outer;
};
static_assert(alignof(Schedule) <= SecretBytes::kAlignment);

void first_block(const HashFunctions& hash, std::span<const std::uint8_t> key, std::uint8_t pad,
                 std::span<std::uint8_t, kDigest> digest) {
  std::array<std::uint8_t, kHashBlock> block{};
  block.fill(pad);
  for (std::size_t i = 0; i < key.size(); ++i)
    block[i] = static_cast<std::uint8_t>(block[i] ^ key[i]);
  hash.one_block(block.data(), digest.data());
  wipe(block);
}

class HmacKey final : public AeadKey {
 public:
  HmacKey(const SuiteInfo& suite, std::span<const std::uint8_t> keys, const IMB_MGR& manager)
      : memory_(sizeof(Schedule)),
        iv_(suite.iv),
        icv_(suite.icv),
        key_size_(static_cast<IMB_KEY_SIZE_BYTES>(suite.key)),
        few_helps_(suite.hash == Hash::sha1 || suite.hash == Hash::sha256) {
    auto& schedule = *new (memory_.bytes().data()) Schedule;
    if (suite.key != 0)
      aes_key_expansion(manager, suite.key)(keys.data(), schedule.encrypt.data(),
                                            schedule.decrypt.data());
    const HashFunctions hash = functions_of(manager, suite.hash);
    hash_ = hash.algorithm;
    const auto auth_key =
        keys.subspan(suite.key).first(std::min<std::size_t>(suite.auth_key, hash.block));
    first_block(hash, auth_key, 0x36, schedule.inner);
    first_block(hash, auth_key, 0x5c, schedule.outer);
  }

  void seal(std::span<AeadOp> ops) const noexcept override {
    in_bursts(ops, [this](std::span<AeadOp> burst) { seal_burst(burst); });
  }

  void open(std::span<AeadOp> ops) const noexcept override {
    in_bursts(ops, [this](std::span<AeadOp> burst) { open_burst(burst); });
  }

  [[nodiscard]] bool shareable() const noexcept override { return true; }

 private:
  using Jobs = std::array<IMB_JOB, kBurst>;
  using Tags = std::array<std::array<std::uint8_t, kMaxIcvBytes>, kBurst>;

  [[nodiscard]] const Schedule& schedule() const noexcept {
    return *reinterpret_cast<const Schedule*>(memory_.bytes().data());
  }

  [[nodiscard]] bool fits(const AeadOp& op) const noexcept {
    return iv_ == 0 || (op.text_len > 0 && op.text_len % kBlock == 0);
  }

  // The good ones among `ops` through CBC. False if the library did not take them.
  [[nodiscard]] bool cipher(std::span<AeadOp> ops, IMB_CIPHER_DIRECTION direction,
                            Jobs& jobs) const noexcept {
    if (iv_ == 0) return true;
    std::uint32_t count = 0;
    for (const AeadOp& op : ops) {
      if (!op.good) continue;
      IMB_JOB& job = jobs[count++];
      job.enc_keys = schedule().encrypt.data();
      job.dec_keys = schedule().decrypt.data();
      job.src = op.text;
      job.dst = op.text;
      job.cipher_start_src_offset_in_bytes = 0;
      job.msg_len_to_cipher_in_bytes = op.text_len;
      job.iv = op.text - kBlock;
      job.iv_len_in_bytes = kBlock;
    }
    if (count == 0) return true;
    IMB_MGR* manager = thread_manager(false);
    return manager != nullptr &&
           IMB_SUBMIT_CIPHER_BURST(manager, jobs.data(), count, IMB_CIPHER_CBC, direction,
                                   key_size_) == count;
  }

  // The tags of the good ones; `tag_of` says where each goes.
  template <typename TagOf>
  [[nodiscard]] bool hash(std::span<AeadOp> ops, Jobs& jobs, TagOf tag_of) const noexcept {
    std::uint32_t count = 0;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      const AeadOp& op = ops[i];
      if (!op.good) continue;
      assert(op.icv == op.text + op.text_len);
      IMB_JOB& job = jobs[count++];
      job.src = op.text - iv_ - kEspHeaderBytes;
      job.hash_start_src_offset_in_bytes = 0;
      job.msg_len_to_hash_in_bytes = kEspHeaderBytes + iv_ + op.text_len + (op.esn() ? kSeqHi : 0);
      job.auth_tag_output = tag_of(i);
      job.auth_tag_output_len_in_bytes = icv_;
      job.u.HMAC._hashed_auth_key_xor_ipad = schedule().inner.data();
      job.u.HMAC._hashed_auth_key_xor_opad = schedule().outer.data();
    }
    if (count == 0) return true;
    IMB_MGR* manager = thread_manager(few_helps_ && count < kFewPackets);
    return manager != nullptr && IMB_SUBMIT_HASH_BURST(manager, jobs.data(), count, hash_) == count;
  }

  void seal_burst(std::span<AeadOp> ops) const noexcept {
    Jobs jobs;
    for (AeadOp& op : ops) op.good = fits(op);
    const bool encrypted = cipher(ops, IMB_DIR_ENCRYPT, jobs);
    // RFC 4303 §2.2.1: the high half is authenticated behind the rest, and not sent. It stands
    // where the ICV is written once the hash has read it.
    for (AeadOp& op : ops)
      if (op.good && op.esn()) std::memcpy(op.icv, op.seq_hi(), kSeqHi);
    if (encrypted && hash(ops, jobs, [&ops](std::size_t i) { return ops[i].icv; })) return;
    for (AeadOp& op : ops) op.good = false;
  }

  void open_burst(std::span<AeadOp> ops) const noexcept {
    Jobs jobs;
    Tags tags;
    std::array<std::array<std::uint8_t, kSeqHi>, kBurst> covered;
    for (std::size_t i = 0; i < ops.size(); ++i) {
      AeadOp& op = ops[i];
      op.good = fits(op);
      if (!op.good || !op.esn()) continue;
      std::memcpy(covered[i].data(), op.icv, kSeqHi);
      std::memcpy(op.icv, op.seq_hi(), kSeqHi);
    }
    const bool hashed = hash(ops, jobs, [&tags](std::size_t i) { return tags[i].data(); });
    for (std::size_t i = 0; i < ops.size(); ++i) {
      AeadOp& op = ops[i];
      if (!op.good) continue;
      if (op.esn()) std::memcpy(op.icv, covered[i].data(), kSeqHi);
      op.good = hashed && sodium_memcmp(tags[i].data(), op.icv, icv_) == 0;
    }
    const bool decrypted = cipher(ops, IMB_DIR_DECRYPT, jobs);
    for (AeadOp& op : ops) {
      op.good = op.good && decrypted;
      if (!op.good) [[unlikely]]
        wipe({op.text, op.text_len});
    }
    // The tag of a forged packet is what the forger lacks.
    sodium_memzero(tags.data(), ops.size() * sizeof tags.front());
  }

  SecretBytes memory_;
  std::size_t iv_;
  std::size_t icv_;
  IMB_HASH_ALG hash_{};
  IMB_KEY_SIZE_BYTES key_size_;
  bool few_helps_;
};

}  // namespace

std::unique_ptr<AeadKey> ipsec_mb_hmac_key(const SuiteInfo& suite,
                                           std::span<const std::uint8_t> keys) {
  const IMB_MGR* manager = thread_manager(false);
  if (manager == nullptr) throw std::bad_alloc();
  return std::make_unique<HmacKey>(suite, keys, *manager);
}

}  // namespace espalier::crypto

#endif
