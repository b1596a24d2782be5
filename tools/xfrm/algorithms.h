// The kernel's names of algorithms, and the suites of crypto/.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "crypto/secret.h"
#include "crypto/suite.h"
#include "tools/xfrm/message.h"

namespace espalier::tools::xfrm {

struct Algorithm {
  std::string name;            // the kernel's
  std::uint32_t icv_bits = 0;  // of an AEAD; of an integrity algorithm what it is cut to
  std::uint32_t key_bits = 0;
  crypto::SecretBytes key;  // of an AEAD: with its salt
};

// Does a listing show them? Without: their length is 0, and so nobody can add them again.
enum class Keys : std::uint8_t { without, with };

// What a state was given, and what a listing gives back.
struct Algorithms {
  std::optional<Algorithm> aead, auth, crypt;

  void put(Reply& reply, Keys keys) const;
};

// Throws Refused: malformed, unknown to us, or a pair that no suite is made of.
[[nodiscard]] Algorithms read_algorithms(const Request& request);

struct Transform {
  crypto::Suite suite{};
  crypto::SecretBytes keymat;  // as the data plane takes it
};
[[nodiscard]] Transform transform_of(const Algorithms& algorithms);

// Without keys.
[[nodiscard]] Algorithms algorithms_of(crypto::Suite suite);

}  // namespace espalier::tools::xfrm
