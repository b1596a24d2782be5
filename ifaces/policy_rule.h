// Routing policy rules (ip-rule(8)) by rtnetlink: which packets ask which table.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <optional>

#include "ifaces/address.h"

namespace espalier::ifaces {

// Packets to `to`, from `from`, that bear `mark` (0: whatever they bear) ask `table`. What the
// table says by a prefix of `suppress_length` bits or fewer does not count.
struct PolicyRule {
  std::uint32_t priority = 0;  // lower ones are asked first; the main table's is 32766
  Prefix to;                   // of no length: anywhere, in its family
  std::uint32_t mark = 0;
  std::uint32_t table = 0;    // 0: none; go on behind the rules before `skip_to`
  std::uint32_t skip_to = 0;  // 0: no further
  std::optional<std::uint8_t> suppress_length;
  Prefix from{};              // of no length: from anywhere; any/32: no source chosen yet
  std::uint8_t protocol = 0;  // 0: any
  struct Ports {
    std::uint16_t first = 0, last = 0;               // 0, 0: any; of TCP, UDP and the like
    auto operator<=>(const Ports&) const = default;  // NOLINT(modernize-use-nullptr)
  };
  Ports source_ports{}, destination_ports{};
  bool own = false;                                     // only packets that this host itself sends
  auto operator<=>(const PolicyRule&) const = default;  // NOLINT(modernize-use-nullptr)
};

// Every call throws std::system_error that names the operation and the rule. Not thread-safe.
class PolicyRules {
 public:
  PolicyRules();
  PolicyRules(PolicyRules&&) noexcept;
  PolicyRules& operator=(PolicyRules&&) noexcept;
  ~PolicyRules();

  // One that is there already, left by a daemon that was killed, is taken over.
  void add(const PolicyRule& rule);
  void remove(const PolicyRule& rule);
  // The first one that is as this, whatever its destination. ENOENT: there is none.
  void remove_to_any(PolicyRule rule);
  // The first one of this priority that goes on at `skip_to`. ENOENT: there is none.
  void remove_jump(std::uint32_t priority, std::uint32_t skip_to, Family family);

 private:
  void ask(int type, int flags, const PolicyRule& rule, std::uint8_t protocol);
  struct Socket;
  std::unique_ptr<Socket> socket_;
};

}  // namespace espalier::ifaces
