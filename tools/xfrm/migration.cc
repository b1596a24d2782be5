#include "tools/xfrm/migration.h"

#include <netinet/udp.h>

#include <algorithm>
#include <cerrno>
#include <tuple>

namespace espalier::tools::xfrm {
namespace {

constexpr std::size_t kMaxMoves = 6;  // XFRM_MAX_DEPTH

auto old_place(const xfrm_user_migrate& move) {
  return std::tuple(to_address(move.old_saddr, move.old_family),
                    to_address(move.old_daddr, move.old_family), move.proto, move.mode, move.reqid,
                    move.old_family);
}

void check(const std::vector<xfrm_user_migrate>& moves) {
  for (auto move = moves.begin(); move != moves.end(); ++move) {
    for (const std::uint16_t family : {move->old_family, move->new_family})
      if (family != AF_INET && family != AF_INET6)
        throw Refused(EINVAL, "Invalid address family in the MIGRATE attribute's list");
    if (to_address(move->new_saddr, move->new_family).is_any() ||
        to_address(move->new_daddr, move->new_family).is_any())
      throw Refused(EINVAL, "Addresses in the MIGRATE attribute's list cannot be null");
    const auto is_same = [&](const auto& other) { return old_place(other) == old_place(*move); };
    if (std::any_of(std::next(move), moves.end(), is_same))
      throw Refused(EINVAL, "Entries in the MIGRATE attribute's list must be unique");
  }
}

}  // namespace

Migration read_migration(const Request& request) {
  const std::span<const std::uint8_t> bytes = request.data(XFRMA_MIGRATE);
  const std::size_t count = bytes.size() / sizeof(xfrm_user_migrate);
  if (count == 0 || count > kMaxMoves)
    throw Refused(EINVAL,
                  "Invalid number of SAs to migrate, must be 0 < num <= XFRM_MAX_DEPTH (6)");
  Migration out;
  out.moves.resize(count);
  std::memcpy(out.moves.data(), bytes.data(), count * sizeof(xfrm_user_migrate));
  check(out.moves);
  out.encap = request.get<xfrm_encap_tmpl>(XFRMA_ENCAP);
  if (out.encap && out.encap->encap_type != UDP_ENCAP_ESPINUDP)
    throw Refused(EPROTONOSUPPORT, "of the encapsulations there is espinudp only");
  out.if_id = request.u32(XFRMA_IF_ID);
  return out;
}

bool meets(const xfrm_user_migrate& move, const xfrm_user_tmpl& wanted) noexcept {
  if (wanted.mode != move.mode || wanted.id.proto != move.proto) return false;
  if (move.reqid != 0 && wanted.reqid != move.reqid) return false;
  if (wanted.mode != XFRM_MODE_TUNNEL) return true;
  return wanted.family == move.old_family &&
         to_address(wanted.id.daddr, wanted.family) ==
             to_address(move.old_daddr, move.old_family) &&
         to_address(wanted.saddr, wanted.family) == to_address(move.old_saddr, move.old_family);
}

bool meets(const xfrm_user_migrate& move, const State& state) noexcept {
  const xfrm_usersa_info& info = state.info;
  if (info.mode != move.mode || info.id.proto != move.proto) return false;
  if (move.reqid != 0 && info.reqid != move.reqid) return false;
  return state.source() == to_address(move.old_saddr, move.old_family) &&
         state.destination() == to_address(move.old_daddr, move.old_family);
}

// Without a protocol the prefixes are enough.
bool names(const xfrm_selector& asked, const xfrm_selector& policy) noexcept {
  if (asked.family != policy.family || asked.prefixlen_d != policy.prefixlen_d ||
      asked.prefixlen_s != policy.prefixlen_s ||
      to_address(asked.saddr, asked.family) != to_address(policy.saddr, policy.family) ||
      to_address(asked.daddr, asked.family) != to_address(policy.daddr, policy.family))
    return false;
  return asked.proto == 0 ||
         std::tuple(asked.proto, asked.sport, asked.sport_mask, asked.dport, asked.dport_mask,
                    asked.ifindex, asked.user) ==
             std::tuple(policy.proto, policy.sport, policy.sport_mask, policy.dport,
                        policy.dport_mask, policy.ifindex, policy.user);
}

std::vector<xfrm_user_tmpl> moved(const Migration& migration,
                                  std::vector<xfrm_user_tmpl> templates) {
  bool any = false;
  for (xfrm_user_tmpl& wanted : templates)
    for (const xfrm_user_migrate& move : migration.moves) {
      if (!meets(move, wanted)) continue;
      any = true;
      if (wanted.mode != XFRM_MODE_TUNNEL) continue;
      wanted.id.daddr = move.new_daddr;
      wanted.saddr = move.new_saddr;
      wanted.family = move.new_family;
      break;
    }
  if (!any) templates.clear();
  return templates;
}

}  // namespace espalier::tools::xfrm
