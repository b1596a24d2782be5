#include "ifaces/tun.h"

#include <linux/ethtool.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <sys/wait.h>

#include <system_error>

#include "tests/unit/ifaces/sandbox.h"

namespace espalier::ifaces {
namespace {

using TunTest = test::SandboxTest;

std::string error_of(const std::string& name, bool multi_queue) {
  try {
    const UniqueFd fd = open_tun(name, multi_queue, {});
    return "";
  } catch (const std::system_error& e) {
    return e.what();
  }
}

bool has_carrier(const std::string& device) {
  const UniqueFd s(::socket(AF_INET, SOCK_DGRAM, 0));
  ethtool_value value{ETHTOOL_GLINK, 0};
  ifreq r = test::request(device);
  r.ifr_data = reinterpret_cast<char*>(&value);
  test::check(::ioctl(s.get(), SIOCETHTOOL, &r) == 0, "SIOCETHTOOL");
  return value.data != 0;
}

TEST_F(TunTest, DeviceLivesAsLongAsItsDescriptor) {
  UniqueFd fd = open_tun("vti01", false, {});
  ifreq r{};
  ASSERT_EQ(::ioctl(fd.get(), TUNGETIFF, &r), 0);
  EXPECT_STREQ(r.ifr_name, "vti01");
  EXPECT_EQ(r.ifr_flags & (IFF_TUN | IFF_NO_PI | IFF_VNET_HDR), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR);
  EXPECT_NE(::fcntl(fd.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  fd = UniqueFd();
  EXPECT_EQ(::if_nametoindex("vti01"), 0U);
}

TEST_F(TunTest, QueuesShareADeviceOnlyIfBothAskForIt) {
  const UniqueFd first = open_tun("vti01", true, {});
  const UniqueFd second = open_tun("vti01", true, {});
  EXPECT_TRUE(second);
  EXPECT_NE(error_of("vti01", false), "");
  const UniqueFd single = open_tun("vti02", false, {});
  const std::string error = error_of("vti02", false);
  EXPECT_NE(error.find("TUNSETIFF vti02"), std::string::npos) << error;
  EXPECT_NE(error.find("in use"), std::string::npos) << error;
}

TEST_F(TunTest, RefusesNamesThatTheKernelWouldChange) {
  EXPECT_NE(error_of("", false), "");
  EXPECT_NE(error_of("vti%d", false), "");
  EXPECT_NE(error_of("sixteen_letters_", false), "");
  EXPECT_EQ(error_of("fifteen_letters", false), "");
}

TEST_F(TunTest, ProbeGivesWhatIsWantedAndThere) {
  const TunOffloads all = probe_tun_offloads();
  EXPECT_TRUE(all.tso4 && all.tso6) << all.str();
  const TunOffloads only4 = probe_tun_offloads({true, false, false});
  EXPECT_EQ(only4.str(), "TSO4");
  EXPECT_EQ(probe_tun_offloads({false, false, false}).str(), "none");
  const UniqueFd fd = open_tun("vti01", false, all);
  EXPECT_TRUE(fd);
  EXPECT_EQ(::if_nametoindex("espprobe0"), 0U) << "the probe left its device";
}

TEST_F(TunTest, CarrierIsSeenFromOutside) {
  const UniqueFd fd = open_tun("vti01", false, {});
  test::set_up("vti01");
  set_carrier(fd.get(), false, "vti01");
  EXPECT_FALSE(has_carrier("vti01"));
  set_carrier(fd.get(), true, "vti01");
  EXPECT_TRUE(has_carrier("vti01"));
  EXPECT_THROW(set_carrier(-1, true, "vti01"), std::system_error);
}

TEST_F(TunTest, WithoutCapabilityTheErrorSaysWhatIsNeeded) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const std::string error = error_of("vti01", false);
    ::_exit(error.find("CAP_NET_ADMIN") != std::string::npos ||
                    error.find("not readable") != std::string::npos
                ? 0
                : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace espalier::ifaces
