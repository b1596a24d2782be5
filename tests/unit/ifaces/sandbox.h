// A network namespace of the test's own, and the little that the tests of ifaces/ need in it.
#pragma once

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/ipv6.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::test {

inline void check(bool ok, const std::string& what) {
  if (!ok) throw std::runtime_error(what + ": " + std::strerror(errno));
}

inline ifreq request(const std::string& device) {
  ifreq r{};
  std::strncpy(r.ifr_name, device.c_str(), IFNAMSIZ - 1);
  return r;
}

inline void set_up(const std::string& device) {
  const ifaces::UniqueFd s(::socket(AF_INET, SOCK_DGRAM, 0));
  ifreq r = request(device);
  check(::ioctl(s.get(), SIOCGIFFLAGS, &r) == 0, "SIOCGIFFLAGS " + device);
  r.ifr_flags = static_cast<short>(r.ifr_flags | IFF_UP);
  check(::ioctl(s.get(), SIOCSIFFLAGS, &r) == 0, "SIOCSIFFLAGS " + device);
}

inline void set_mtu(const std::string& device, int mtu) {
  const ifaces::UniqueFd s(::socket(AF_INET, SOCK_DGRAM, 0));
  ifreq r = request(device);
  r.ifr_mtu = mtu;
  check(::ioctl(s.get(), SIOCSIFMTU, &r) == 0, "SIOCSIFMTU " + device);
}

inline void add_address(const std::string& device, const std::string& prefix) {
  const auto p = ifaces::Prefix::parse(prefix);
  check(p.has_value(), "bad prefix " + prefix);
  if (p->address.family == ifaces::Family::v6) {
    const ifaces::UniqueFd s(::socket(AF_INET6, SOCK_DGRAM, 0));
    in6_ifreq r{};
    std::memcpy(&r.ifr6_addr, p->address.bytes.data(), 16);
    r.ifr6_prefixlen = p->length;
    r.ifr6_ifindex = static_cast<int>(::if_nametoindex(device.c_str()));
    check(::ioctl(s.get(), SIOCSIFADDR, &r) == 0, "SIOCSIFADDR " + prefix);
    return;
  }
  const ifaces::UniqueFd s(::socket(AF_INET, SOCK_DGRAM, 0));
  ifreq r = request(device);
  sockaddr_storage sa;
  ifaces::Endpoint{p->address, 0}.to(sa);
  std::memcpy(&r.ifr_addr, &sa, sizeof r.ifr_addr);
  check(::ioctl(s.get(), SIOCSIFADDR, &r) == 0, "SIOCSIFADDR " + prefix);
  sockaddr_in mask{};
  mask.sin_family = AF_INET;
  mask.sin_addr.s_addr = htonl(p->length == 0 ? 0 : ~0U << (32 - p->length));
  std::memcpy(&r.ifr_netmask, &mask, sizeof mask);
  check(::ioctl(s.get(), SIOCSIFNETMASK, &r) == 0, "SIOCSIFNETMASK " + prefix);
}

inline void delete_device(const std::string& device) {
  struct {
    nlmsghdr header;
    ifinfomsg link;
  } message{};
  message.header.nlmsg_len = sizeof message;
  message.header.nlmsg_type = RTM_DELLINK;
  message.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  message.link.ifi_index = static_cast<int>(::if_nametoindex(device.c_str()));
  const ifaces::UniqueFd s(::socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE));
  check(::send(s.get(), &message, sizeof message, 0) > 0, "RTM_DELLINK " + device);
  std::array<char, 4096> answer{};
  check(::recv(s.get(), answer.data(), answer.size(), 0) > 0, "RTM_DELLINK answer");
  check(::if_nametoindex(device.c_str()) == 0, "RTM_DELLINK left " + device);
}

// From here on this thread, and those that it starts, live in a namespace of their own with lo up.
inline void new_namespace() {
  check(::unshare(CLONE_NEWNET) == 0, "unshare");
  set_up("lo");
}

// Every test in a fresh namespace; one that hangs is killed.
class SandboxTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root for a network namespace";
    if (::access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "no /dev/net/tun";
    ::alarm(60);
    new_namespace();
  }
  void TearDown() override { ::alarm(0); }
};

}  // namespace espalier::test
