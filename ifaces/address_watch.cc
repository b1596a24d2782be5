#include "ifaces/address_watch.h"

#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <system_error>

namespace espalier::ifaces {

AddressWatch::AddressWatch()
    : fd_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE)) {
  sockaddr_nl all{};
  all.nl_family = AF_NETLINK;
  all.nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
  if (!fd_ || ::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&all), sizeof all) != 0)
    throw std::system_error(errno, std::generic_category(), "rtnetlink addresses");
}

// What has changed does not matter, so the messages need no parsing, nor room for their whole
// length.
bool AddressWatch::changed() noexcept {
  bool any = false;
  std::array<char, 64> start{};
  for (;;) {
    if (::recv(fd_.get(), start.data(), start.size(), 0) >= 0 || errno == ENOBUFS)
      any = true;
    else if (errno != EINTR)
      return any;
  }
}

}  // namespace espalier::ifaces
