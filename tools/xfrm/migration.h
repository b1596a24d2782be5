// XFRM_MSG_MIGRATE (RFC 4555 in the kernel's words): policies and states move to other addresses
// and go on with their keys.
#pragma once

#include <linux/xfrm.h>

#include <optional>
#include <vector>

#include "tools/xfrm/message.h"
#include "tools/xfrm/state.h"

namespace espalier::tools::xfrm {

struct Migration {
  std::vector<xfrm_user_migrate> moves;
  std::optional<xfrm_encap_tmpl> encap;  // none: as each state has it
  std::uint32_t if_id = 0;               // 0: any
};

// Checked as the kernel does. Throws Refused.
[[nodiscard]] Migration read_migration(const Request& request);

// Is it about this template, this state?
[[nodiscard]] bool meets(const xfrm_user_migrate& move, const xfrm_user_tmpl& wanted) noexcept;
[[nodiscard]] bool meets(const xfrm_user_migrate& move, const State& state) noexcept;
// `asked`: what the request names the policy by.
[[nodiscard]] bool names(const xfrm_selector& asked, const xfrm_selector& policy) noexcept;

// The templates with the new addresses; empty: none is met.
[[nodiscard]] std::vector<xfrm_user_tmpl> moved(const Migration& migration,
                                                std::vector<xfrm_user_tmpl> templates);

}  // namespace espalier::tools::xfrm
