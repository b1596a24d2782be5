// What the owner is told of an SA and a device.
#pragma once

#include "dataplane/dataplane.h"
#include "dataplane/sa.h"

namespace espalier::dataplane {

[[nodiscard]] SaStatus status_of(const OutboundSa& sa);
[[nodiscard]] SaStatus status_of(InboundSa& sa);
[[nodiscard]] DeviceStatus status_of(const Device& device, std::size_t workers);

}  // namespace espalier::dataplane
