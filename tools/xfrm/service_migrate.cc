// The request to move a policy and its states.
#include <cerrno>

#include "tools/xfrm/service.h"

namespace espalier::tools::xfrm {

// The states first, for the policy's new templates name them; a packet in between waits as one
// without a state does, and nobody is asked for one: the policy that it met has gone.
void Service::migrate(const Call& call) {
  const auto id = call.request.read<xfrm_userpolicy_id>();
  if (!call.request.has(XFRMA_MIGRATE)) throw Refused(EINVAL, "Missing required MIGRATE attribute");
  check_policy_type(call.request);
  const Migration migration = read_migration(call.request);
  check_direction(id.dir);
  Policy& policy = policies_.find(id, migration);
  const States::Moves moves = states_.migrate(migration);
  try {
    policies_.migrate(policy, migration);
  } catch (...) {
    states_.put_back(moves);
    throw;
  }

  tell(XFRMNLGRP_MIGRATE, call.output, [&] {
    Reply reply(XFRM_MSG_MIGRATE, {});
    auto body = zeroed<xfrm_userpolicy_id>();
    body.sel = id.sel;
    body.dir = id.dir;
    reply.append(body);
    const auto ends = call.request.data(XFRMA_KMADDRESS);
    if (!ends.empty()) reply.put(XFRMA_KMADDRESS, ends.first(sizeof(xfrm_user_kmaddress)));
    if (migration.encap) reply.put(XFRMA_ENCAP, *migration.encap);
    put_policy_type(reply);
    for (const xfrm_user_migrate& move : migration.moves) reply.put(XFRMA_MIGRATE, move);
    return reply;
  });
}

}  // namespace espalier::tools::xfrm
