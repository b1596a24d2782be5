// Where OpenSSL keeps expanded keys: on the pages of secrets, not on its heap. Private to crypto/.
#pragma once

namespace espalier::crypto {

// To be called before OpenSSL allocates anything; afterwards it changes nothing, and keys are on
// the heap (wiped when freed, but in a core file).
void divert_openssl_memory() noexcept;

// While one lives, what OpenSSL allocates in this thread lies on pages of secrets, and is wiped
// when it is freed, whenever that is.
class OpensslSecrets {
 public:
  OpensslSecrets() noexcept;
  ~OpensslSecrets();
  OpensslSecrets(const OpensslSecrets&) = delete;
  OpensslSecrets& operator=(const OpensslSecrets&) = delete;
};

}  // namespace espalier::crypto
