// Against the real kernel, in a network namespace that lives as long as the test:
//
//   lo        test0 (TUN)
//
// What the kernel then has is read back by other means: /proc, ioctl, sockets.
#include "ifaces/netlink.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>
#include <system_error>

#include "ifaces/address_watch.h"
#include "ifaces/unique_fd.h"

namespace espalier::ifaces {
namespace {

IpAddress address(const char* text) {
  return IpAddress::parse(text).value();
}
Prefix prefix(const char* text) {
  return Prefix::parse(text).value();
}

ifreq request_for(const std::string& device) {
  ifreq request{};
  std::strncpy(request.ifr_name, device.c_str(), IFNAMSIZ - 1);
  return request;
}

class NetlinkTest : public ::testing::Test {
 protected:
  // Each test has a namespace of its own: what one leaves behind no other sees.
  void SetUp() override {
    if (::unshare(CLONE_NEWNET) != 0)
      GTEST_SKIP() << "no network namespace (needs root): " << std::strerror(errno);
    tun_ = UniqueFd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
    if (!tun_) GTEST_SKIP() << "no /dev/net/tun: " << std::strerror(errno);
    ifreq request = request_for("test0");
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    ASSERT_EQ(::ioctl(tun_.get(), TUNSETIFF, &request), 0) << std::strerror(errno);
    query_ = UniqueFd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    netlink_.emplace();
  }

  Netlink& netlink() { return *netlink_; }

  unsigned flags(const std::string& device) {
    ifreq request = request_for(device);
    EXPECT_EQ(::ioctl(query_.get(), SIOCGIFFLAGS, &request), 0);
    return static_cast<unsigned short>(request.ifr_flags);
  }
  int mtu(const std::string& device) {
    ifreq request = request_for(device);
    EXPECT_EQ(::ioctl(query_.get(), SIOCGIFMTU, &request), 0);
    return request.ifr_mtu;
  }

  // Can a socket have this source address now? (IPv6: not while duplicates are being looked for.)
  static bool can_bind(const IpAddress& a) {
    sockaddr_storage sa{};
    const socklen_t length = Endpoint{a, 0}.to(sa);
    const UniqueFd fd(
        ::socket(a.family == Family::v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    return ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&sa), length) == 0;
  }

  // The kernel's own word on where a packet would go: its source address after connect().
  static std::string source_towards(const IpAddress& to) {
    sockaddr_storage sa{};
    socklen_t length = Endpoint{to, 9}.to(sa);
    const UniqueFd fd(
        ::socket(to.family == Family::v6 ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&sa), length) != 0)
      return std::strerror(errno);
    sockaddr_storage mine{};
    length = sizeof mine;
    EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&mine), &length), 0);
    return Endpoint::from(mine).address.str();
  }

  static std::string file(const char* path) {
    std::ifstream in(path);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

  void up_with(const char* a4, const char* a6) {
    netlink().set_link("test0", {});
    netlink().add_address("test0", prefix(a4));
    netlink().add_address("test0", prefix(a6));
  }

  UniqueFd tun_, query_;
  std::optional<Netlink> netlink_;
};

template <typename Call>
std::system_error error_of(const Call& call) {
  try {
    call();
  } catch (const std::system_error& e) {
    return e;
  }
  ADD_FAILURE() << "did not throw";
  return std::system_error(std::error_code());
}

TEST_F(NetlinkTest, SetsMtuFlagsAndTakesThemBack) {
  netlink().set_link("test0", {.mtu = 1400, .up = true, .multicast = true});
  EXPECT_EQ(mtu("test0"), 1400);
  EXPECT_TRUE((flags("test0") & IFF_UP) != 0);
  EXPECT_TRUE((flags("test0") & IFF_MULTICAST) != 0);
  netlink().set_link("test0", {.mtu = 0, .up = false, .multicast = false});
  EXPECT_EQ(mtu("test0"), 1400);
  EXPECT_FALSE((flags("test0") & IFF_UP) != 0);
  EXPECT_FALSE((flags("test0") & IFF_MULTICAST) != 0);
}

TEST_F(NetlinkTest, KnowsWhichLinksExist) {
  EXPECT_TRUE(netlink().link_exists("test0"));
  EXPECT_TRUE(netlink().link_exists("lo"));
  EXPECT_FALSE(netlink().link_exists("absent0"));
  tun_.reset(-1);
  EXPECT_FALSE(netlink().link_exists("test0"));
}

TEST_F(NetlinkTest, AChangeOfAddressesIsTold) {
  AddressWatch watch;  // the device is down: nobody but us gives it addresses
  EXPECT_FALSE(watch.changed());
  netlink().add_address("test0", prefix("10.0.1.1/24"));
  EXPECT_TRUE(watch.changed());
  EXPECT_FALSE(watch.changed());
  netlink().remove_address("test0", prefix("10.0.1.1/24"));
  EXPECT_TRUE(watch.changed());
  // Of IPv6: when the kernel has looked for duplicates.
  up_with("10.0.1.1/24", "2001:db8:1::1/64");
  EXPECT_TRUE(watch.changed());
  netlink().remove_address("test0", prefix("2001:db8:1::1/64"));
  pollfd told{watch.fd(), POLLIN, 0};
  EXPECT_EQ(::poll(&told, 1, 5000), 1);
}

TEST_F(NetlinkTest, GatewayOnlyWhereThereIsOne) {
  up_with("10.0.1.1/24", "2001:db8:1::1/64");
  EXPECT_EQ(netlink().gateway(address("10.0.1.9"), address("10.0.1.1")), std::nullopt);
  EXPECT_EQ(netlink().gateway(address("192.0.2.1"), address("10.0.1.1")), std::nullopt);
}

TEST_F(NetlinkTest, AddressesWorkAtOnceAndGoAgain) {
  EXPECT_FALSE(netlink().is_local(address("10.0.1.1")));
  up_with("10.0.1.1/24", "2001:db8:1::1/64");
  for (const char* a : {"10.0.1.1", "2001:db8:1::1"}) {
    EXPECT_TRUE(netlink().is_local(address(a))) << a;
    EXPECT_TRUE(can_bind(address(a))) << a;
  }
  EXPECT_FALSE(netlink().is_local(address("10.0.1.2")));  // the same subnet is not enough
  netlink().remove_address("test0", prefix("10.0.1.1/24"));
  netlink().remove_address("test0", prefix("2001:db8:1::1/64"));
  for (const char* a : {"10.0.1.1", "2001:db8:1::1"}) {
    EXPECT_FALSE(netlink().is_local(address(a))) << a;
    EXPECT_FALSE(can_bind(address(a))) << a;
  }
}

// On a device with neighbours the kernel would first look for duplicates.
TEST_F(NetlinkTest, Ipv6AddressesSkipDuplicateDetection) {
  const UniqueFd tap(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  ifreq request = request_for("tap0");
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  ASSERT_EQ(::ioctl(tap.get(), TUNSETIFF, &request), 0) << std::strerror(errno);
  netlink().set_link("tap0", {});
  netlink().add_address("tap0", prefix("2001:db8:2::1/64"));
  EXPECT_TRUE(can_bind(address("2001:db8:2::1")));
}

TEST_F(NetlinkTest, RoutesLeadThroughTheDeviceFromTheSource) {
  up_with("10.0.1.1/24", "2001:db8:1::1/64");
  netlink().add_address("test0", prefix("10.0.2.1/32"));
  netlink().add_route("test0", prefix("10.1.4.0/24"), address("10.0.2.1"));
  netlink().add_route("test0", prefix("2001:db8:4::/48"));
  EXPECT_EQ(source_towards(address("10.1.4.2")), "10.0.2.1");
  EXPECT_EQ(source_towards(address("2001:db8:4::2")), "2001:db8:1::1");
  EXPECT_EQ(netlink().route_device(address("10.1.4.2")), "test0");
  EXPECT_EQ(netlink().route_device(address("2001:db8:4::2")), "test0");
  netlink().remove_route("test0", prefix("10.1.4.0/24"));
  netlink().remove_route("test0", prefix("2001:db8:4::/48"));
  EXPECT_EQ(source_towards(address("10.1.4.2")), std::strerror(ENETUNREACH));
  EXPECT_EQ(source_towards(address("2001:db8:4::2")), std::strerror(ENETUNREACH));
}

TEST_F(NetlinkTest, ReplacesItsOwnRouteOnly) {
  up_with("10.0.1.1/24", "2001:db8:1::1/64");
  netlink().add_address("test0", prefix("10.0.2.1/32"));
  netlink().set_link("lo", {.multicast = false});
  for (const char* to : {"10.1.4.0/24", "0.0.0.0/0", "2001:db8:4::/48", "::/0"}) {
    netlink().add_route("test0", prefix(to));
    netlink().add_route("test0", prefix(to));  // as after a reload
    const std::system_error taken = error_of([&] { netlink().add_route("lo", prefix(to)); });
    EXPECT_EQ(taken.code().value(), EEXIST) << to << " " << taken.what();
  }
  netlink().add_route("test0", prefix("10.1.4.0/24"), address("10.0.2.1"));
  EXPECT_EQ(source_towards(address("10.1.4.2")), "10.0.2.1");
  EXPECT_EQ(netlink().route_device(address("10.1.4.2")), "test0");
  netlink().remove_route("test0", prefix("10.1.4.0/24"));
  EXPECT_EQ(
      error_of([&] { netlink().remove_route("test0", prefix("10.1.4.0/24")); }).code().value(),
      ESRCH);
}

TEST_F(NetlinkTest, HostBitsOfARouteAreIgnored) {
  up_with("10.0.1.1/24", "2001:db8:1::1/64");
  netlink().add_route("test0", prefix("10.1.4.7/24"));
  EXPECT_EQ(netlink().route_device(address("10.1.4.2")), "test0");
  netlink().remove_route("test0", prefix("10.1.4.0/24"));
}

TEST_F(NetlinkTest, DefaultSourceIsThatOfTheDefaultRoute) {
  EXPECT_EQ(netlink().default_source(Family::v4), std::nullopt);
  EXPECT_EQ(netlink().default_source(Family::v6), std::nullopt);
  up_with("10.0.1.1/24", "2001:db8:1::1/64");
  EXPECT_EQ(netlink().default_source(Family::v4), std::nullopt);
  netlink().add_route("test0", prefix("0.0.0.0/0"));
  netlink().add_route("test0", prefix("::/0"));
  EXPECT_EQ(netlink().default_source(Family::v4), address("10.0.1.1"));
  EXPECT_EQ(netlink().default_source(Family::v6), address("2001:db8:1::1"));
  netlink().add_address("test0", prefix("10.0.2.1/32"));
  netlink().add_route("test0", prefix("0.0.0.0/0"), address("10.0.2.1"));
  EXPECT_EQ(netlink().default_source(Family::v4), address("10.0.2.1"));
}

TEST_F(NetlinkTest, ErrorsNameOperationDeviceAndErrno) {
  const std::system_error no_device =
      error_of([&] { netlink().set_link("absent0", {.mtu = 1400}); });
  EXPECT_EQ(no_device.code().value(), ENODEV);
  EXPECT_NE(std::string(no_device.what()).find("set absent0"), std::string::npos)
      << no_device.what();

  EXPECT_EQ(error_of([&] { netlink().set_link("test0", {.mtu = 7}); }).code().value(), EINVAL);
  netlink().set_link("test0", {});
  netlink().add_address("test0", prefix("10.0.1.1/24"));
  const std::system_error twice =
      error_of([&] { netlink().add_address("test0", prefix("10.0.1.1/24")); });
  EXPECT_EQ(twice.code().value(), EEXIST);
  EXPECT_NE(std::string(twice.what()).find("10.0.1.1/24 dev test0"), std::string::npos);
  EXPECT_EQ(
      error_of([&] { netlink().remove_address("test0", prefix("10.0.9.9/24")); }).code().value(),
      EADDRNOTAVAIL);
  EXPECT_EQ(error_of([&] { static_cast<void>(netlink().route_device(address("203.0.113.1"))); })
                .code()
                .value(),
            ENETUNREACH);
  netlink().set_link("test0", {.up = false});
  EXPECT_EQ(error_of([&] { netlink().add_route("test0", prefix("10.9.0.0/16")); }).code().value(),
            ENETDOWN);
  // A refusal leaves the socket in step: the next answers are its own.
  EXPECT_TRUE(netlink().link_exists("test0"));
  EXPECT_TRUE(netlink().is_local(address("10.0.1.1")));
}

TEST_F(NetlinkTest, SysctlsOfADevice) {
  EXPECT_TRUE(set_device_sysctl("test0", "rp_filter", 0));
  EXPECT_EQ(file("/proc/sys/net/ipv4/conf/test0/rp_filter"), "0\n");
  EXPECT_TRUE(set_device_sysctl("test0", "rp_filter", 2));
  EXPECT_EQ(file("/proc/sys/net/ipv4/conf/test0/rp_filter"), "2\n");
  EXPECT_FALSE(set_device_sysctl("absent0", "rp_filter", 0));
  EXPECT_FALSE(set_device_sysctl("../../ipv4", "ip_forward", 1));
}

}  // namespace
}  // namespace espalier::ifaces
