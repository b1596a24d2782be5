// Packets that carry nobody's data: what the control thread asks a worker to send.
#pragma once

#include <chrono>

#include "dataplane/sa.h"
#include "dataplane/tables.h"
#include "dataplane/workers.h"

namespace espalier::dataplane {

// RFC 4303 §2.6. Throws std::invalid_argument for a length that no packet should have.
void send_dummies(const Workers& workers, OutboundSa& sa, unsigned count, unsigned length);

// RFC 3948 §2.3, as in Dataplane::send_keepalives.
void send_keepalives(const Workers& workers, const Tables& tables, std::chrono::seconds idle);

}  // namespace espalier::dataplane
