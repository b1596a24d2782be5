#ifdef ESPALIER_HAVE_IPSEC_MB

#include "crypto/ipsec_mb_parts.h"

namespace espalier::crypto {
namespace {

struct FreeManager {
  void operator()(IMB_MGR* manager) const noexcept { free_mb_mgr(manager); }
};
using Manager = std::unique_ptr<IMB_MGR, FreeManager>;

Manager make(bool few) noexcept {
  Manager manager(alloc_mb_mgr(0));
  if (!manager) return nullptr;
  init_mb_mgr_auto(manager.get(), nullptr);
  // The SSE code is what uses SHA-NI, two packets at a time.
  if (few && (manager->features & IMB_FEATURE_SHANI) != 0) init_mb_mgr_sse(manager.get());
  if (imb_get_errno(manager.get()) != 0) return nullptr;
  return manager;
}

struct Managers {
  Manager many = make(false);
  Manager few = make(true);
};

}  // namespace

IMB_MGR* thread_manager(bool few) noexcept {
  static thread_local const Managers managers;
  return few ? managers.few.get() : managers.many.get();
}

AesKeyExpansion aes_key_expansion(const IMB_MGR& manager, std::size_t key) {
  if (key == IMB_KEY_128_BYTES) return manager.keyexp_128;
  return key == IMB_KEY_192_BYTES ? manager.keyexp_192 : manager.keyexp_256;
}

}  // namespace espalier::crypto

#endif
