// XFRM: any datagrams on a session of `espalier exec`, with the real operations on a data plane in
// a network namespace of its own behind them; and what a command writes to NETLINK_ROUTE. What is
// answered is netlink, whatever was asked; listings end; a flush leaves nothing.
//
//   input: 1 byte (bit 0: NETLINK_ROUTE; bits 1, 2: extended, capped ACKs), bytes
#include <sched.h>
#include <unistd.h>

#include <cstring>
#include <optional>
#include <vector>

#include "crypto/registry.h"
#include "tests/fuzz/input.h"
#include "tools/device_pool.h"
#include "tools/exec/tunnel_request.h"
#include "tools/log.h"
#include "tools/xfrm/service.h"

namespace {

using namespace espalier;
using namespace espalier::tools;
using espalier::fuzz::Input;
using espalier::fuzz::require;
using xfrm::Output;

// One for the whole run: a data plane has threads. Empty: no rights for a namespace.
struct System {
  System() {
    crypto::initialise();
    if (::unshare(CLONE_NEWNET) != 0) return;
    netlink.emplace();
    netlink->set_link("lo", {});
    for (const char* const address : {"192.0.2.1", "10.9.0.1", "2001:db8::1"})
      netlink->add_address("lo", *ifaces::Prefix::parse(address));
    registry.emplace("openssl");
    dataplane::Dataplane::Options options;
    options.io = "epoll";
    plane.emplace(*registry, options);
    devices.emplace(*plane, *netlink, log);
    service.emplace(*plane, *netlink, *devices, log);
    service->set_keep(keep);
  }

  Log log{STDERR_FILENO, LogLevel::error};
  Keep keep;
  std::optional<ifaces::Netlink> netlink;
  std::optional<crypto::Registry> registry;
  std::optional<dataplane::Dataplane> plane;
  std::optional<DevicePool> devices;
  std::optional<xfrm::Service> service;
};

void check_messages(std::span<const std::uint8_t> bytes) {
  require(!bytes.empty() && bytes.size() <= 65536, "a datagram has a size");
  while (!bytes.empty()) {
    nlmsghdr header{};
    require(bytes.size() >= sizeof header, "a whole header");
    std::memcpy(&header, bytes.data(), sizeof header);
    require(header.nlmsg_len >= sizeof header && header.nlmsg_len <= bytes.size() &&
                header.nlmsg_len % 4 == 0,
            "a length that is a multiple of four and there");
    bytes = bytes.subspan(header.nlmsg_len);
  }
}

void ask(xfrm::Service& service, const xfrm::Client& client, std::span<const std::uint8_t> bytes) {
  // Aligned, as what a socket's buffer holds.
  std::vector<std::uint64_t> memory((bytes.size() + 7) / 8);
  const std::span<std::uint8_t> datagram(reinterpret_cast<std::uint8_t*>(memory.data()),
                                         bytes.size());
  std::copy(bytes.begin(), bytes.end(), datagram.begin());
  Output output;
  service.handle(client, datagram, output);
  for (const xfrm::Datagram& reply : output.replies) check_messages(reply.bytes());
  for (const xfrm::Notice& notice : output.notices) check_messages(notice.message.bytes());
  for (int pages = 0; output.dump && !output.dump->done; ++pages) {
    require(pages < 1000, "a listing ends");
    check_messages(service.next(*output.dump, client).bytes());
  }
}

void flush(System& system, const xfrm::Client& client, std::uint16_t type) {
  struct {
    nlmsghdr header;
    xfrm_usersa_flush body;
  } request{};
  request.header.nlmsg_len = type == XFRM_MSG_FLUSHSA ? NLMSG_LENGTH(sizeof request.body)
                                                      : static_cast<unsigned>(NLMSG_HDRLEN);
  request.header.nlmsg_type = type;
  request.header.nlmsg_flags = NLM_F_REQUEST;
  ask(*system.service, client,
      {reinterpret_cast<const std::uint8_t*>(&request), request.header.nlmsg_len});
}

void check_tunnel_request(std::span<const std::uint8_t> bytes) {
  const auto request = parse_new_link(bytes);
  if (!request) return;
  require(!request->device.name.empty(), "a device has a name");
  check_messages(request->rest);
}

}  // namespace

// What OpenSSL keeps of its algorithms hangs on pages of secrets, where the leak checker does not
// look.
extern "C" const char* __lsan_default_suppressions() {  // NOLINT(bugprone-reserved-identifier)
  return "leak:libcrypto";
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static System system;
  Input input(data, size);
  const std::uint8_t kind = input.byte();
  if ((kind & 1) != 0) {
    check_tunnel_request(input.rest());
    return 0;
  }
  if (!system.service) return 0;
  xfrm::Client client;
  client.portid = 1;
  client.extended_ack = (kind & 2) != 0;
  client.capped_ack = (kind & 4) != 0;
  client.keys = (kind & 8) != 0 ? xfrm::Keys::with : xfrm::Keys::without;
  ask(*system.service, client, input.rest());
  Output output;
  system.service->take_due(std::chrono::steady_clock::now(), output);
  flush(system, client, XFRM_MSG_FLUSHPOLICY);
  flush(system, client, XFRM_MSG_FLUSHSA);
  require(system.plane->sa_count() == 0, "no SA is left");
  require(system.plane->policies().empty(), "no policy is left");
  return 0;
}
