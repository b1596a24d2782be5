// The daemon against a real kernel: what it makes, what it leaves alone, what it leaves behind.
#include "tools/daemon.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <sched.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <fstream>

#include "tools/keygen.h"

namespace espalier::tools {
namespace {

using ifaces::IpAddress;
using ifaces::Prefix;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::string conf(const std::string& name, const std::string& device, unsigned number,
                 const std::string& more = {}) {
  const std::string n = std::to_string(number);
  return "[conn " + name + "]\nleft = 192.168.1.3\nright = 192.168.2." + n +
         "\nleftsubnet = 10.1.0.0/16\nrightsubnet = 10.2." + n + ".0/24\nmark = " + n +
         "/0xffffffff\nvti-interface = " + device + "\nleftvti = 10.9." + n +
         ".1/24\nkeys = " + name + ".keys\n" + more;
}

// A network namespace of its own, in which 192.168.1.3 is this host.
class DaemonTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root to make a network namespace";
    if (::access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "needs /dev/net/tun";
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
    ifaces::Netlink netlink;
    netlink.set_link("lo", {});
    netlink.add_address("lo", *Prefix::parse("192.168.1.3"));

    std::array<char, 32> name{"/tmp/espalier-daemon-XXXXXX"};
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name.data();
    options_.config = directory_ / "espalier.conf";
    options_.control = directory_ / "control.sock";
    ASSERT_EQ(::pipe2(pipe_.data(), O_NONBLOCK | O_CLOEXEC), 0);
    log_.emplace(pipe_[1]);
  }
  void TearDown() override {
    for (const int fd : pipe_) ::close(fd);
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }

  void make_keys(const std::string& conn) {
    KeygenRequest request;
    request.conn = conn;
    request.left = "192.168.1.3";
    request.right = "192.168.2.1";
    request.leftsubnet = "10.1.0.0/16";
    request.rightsubnet = "10.2.0.0/16";
    request.out = directory_ / conn;
    keygen(request);
    for (const char* kind : {".keys", ".state"})
      std::filesystem::rename(request.out / "left" / (conn + kind), directory_ / (conn + kind));
  }
  void write(const std::string& text) const { std::ofstream(options_.config) << text; }
  std::string logged() {
    std::array<char, 65536> text{};
    const ssize_t got = ::read(pipe_[0], text.data(), text.size());
    return {text.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0))};
  }
  static bool exists(const char* device) { return ::if_nametoindex(device) != 0; }
  static std::vector<std::string> states(const Daemon& daemon) {
    std::vector<std::string> out;
    for (const ConnStatus& c : daemon.status().conns)
      out.push_back(c.name + (c.up ? " up" : " failed"));
    return out;
  }
  static std::string sysctl(const std::string& path) {
    std::ifstream file("/proc/sys/net/" + path);
    std::string value;
    file >> value;
    return value;
  }

  std::filesystem::path directory_;
  DaemonOptions options_;
  std::array<int, 2> pipe_{};
  std::optional<Log> log_;
};

TEST_F(DaemonTest, MakesTheDeviceAsAVtiIsMadeAndLeavesNothingBehind) {
  make_keys("one");
  write(conf("one", "vti01", 4));
  {
    const Daemon daemon(options_, *log_);
    EXPECT_THAT(states(daemon), ElementsAre("one up"));
    EXPECT_TRUE(exists("vti01"));
    EXPECT_EQ(sysctl("ipv4/conf/vti01/disable_policy"), "1");
    EXPECT_EQ(sysctl("ipv4/conf/vti01/rp_filter"), "0");
    EXPECT_EQ(sysctl("ipv4/conf/vti01/forwarding"), "1");
    ifaces::Netlink netlink;
    EXPECT_EQ(netlink.route_device(*IpAddress::parse("10.2.4.9")), "vti01");
    EXPECT_TRUE(netlink.is_local(*IpAddress::parse("10.9.4.1")));
  }
  EXPECT_FALSE(exists("vti01"));
  EXPECT_FALSE(std::filesystem::exists(*options_.control));
  EXPECT_THAT(logged(), HasSubstr("conn one up: 192.168.1.3:4500 <=> 192.168.2.4:4500"));
}

TEST_F(DaemonTest, AStrictReversePathFilterForAllIsMadeLooseForTheDevice) {
  std::ofstream("/proc/sys/net/ipv4/conf/all/rp_filter") << 1;
  make_keys("one");
  write(conf("one", "vti01", 4));
  const Daemon daemon(options_, *log_);
  EXPECT_EQ(sysctl("ipv4/conf/vti01/rp_filter"), "2");
}

TEST_F(DaemonTest, AStartThatFailsTakesBackTheConnsThatWereUp) {
  make_keys("one");
  make_keys("two");
  std::filesystem::remove(directory_ / "two.state");
  write(conf("one", "vti01", 4) + conf("two", "vti02", 5));
  EXPECT_THROW(Daemon(options_, *log_), ConfigError);
  EXPECT_FALSE(exists("vti01"));
  EXPECT_FALSE(exists("vti02"));
  EXPECT_FALSE(std::filesystem::exists(*options_.control));
}

TEST_F(DaemonTest, RefusesToRunTwice) {
  make_keys("one");
  write(conf("one", "vti01", 4));
  const Daemon daemon(options_, *log_);
  try {
    const Daemon second(options_, *log_);
    ADD_FAILURE();
  } catch (const std::exception& e) {
    EXPECT_THAT(e.what(), HasSubstr("already running"));
  }
  EXPECT_TRUE(exists("vti01"));
}

TEST_F(DaemonTest, ReloadAddsChangesAndRemovesAndLeavesTheRestAlone) {
  for (const char* name : {"one", "two", "three"}) make_keys(name);
  write(conf("one", "vti01", 4) + conf("two", "vti02", 5));
  Daemon daemon(options_, *log_);
  const unsigned one = ::if_nametoindex("vti01");
  const unsigned two = ::if_nametoindex("vti02");
  const auto since = daemon.status().conns[0].since;

  // A line in front moves `one`, and changes nothing in it.
  write("# moved\n" + conf("one", "vti01", 4) + conf("two", "vti02", 5, "mtu = 1300\n"));
  daemon.reload();
  EXPECT_THAT(states(daemon), ElementsAre("one up", "two up"));
  EXPECT_EQ(daemon.status().conns[0].since, since);
  EXPECT_EQ(daemon.status().conns[1].mtu, 1300U);
  // The device stays while its conn is replaced: its routes never lead elsewhere.
  EXPECT_EQ(::if_nametoindex("vti02"), two);

  write(conf("three", "vti03", 6) + conf("one", "vti01", 4));
  daemon.reload();
  EXPECT_THAT(states(daemon), ElementsAre("three up", "one up"));
  EXPECT_EQ(::if_nametoindex("vti01"), one);
  EXPECT_FALSE(exists("vti02"));
  EXPECT_EQ(daemon.status().sas.size(), 4U);
}

TEST_F(DaemonTest, ConnsMayTradeTheirDevices) {
  make_keys("one");
  make_keys("two");
  write(conf("one", "vti01", 4) + conf("two", "vti02", 5));
  Daemon daemon(options_, *log_);
  write(conf("one", "vti02", 4) + conf("two", "vti01", 5));
  daemon.reload();
  EXPECT_THAT(states(daemon), ElementsAre("one up", "two up"));
  EXPECT_EQ(daemon.status().conns[0].device, "vti02");
}

TEST_F(DaemonTest, ABadFileChangesNothing) {
  make_keys("one");
  write(conf("one", "vti01", 4));
  Daemon daemon(options_, *log_);
  const auto since = daemon.status().conns[0].since;
  for (const std::string& bad :
       {std::string("[conn"), conf("one", "vti01", 4, "nonsense = 1\n"),
        conf("one", "vti01", 4) + conf("two", "vti02", 5) /* no such keys */}) {
    (void)logged();
    write(bad);
    daemon.reload();
    EXPECT_THAT(logged(), HasSubstr("runs on as before"));
    EXPECT_THAT(states(daemon), ElementsAre("one up"));
    EXPECT_EQ(daemon.status().conns[0].since, since);
  }
  std::filesystem::remove(options_.config);
  daemon.reload();
  EXPECT_THAT(states(daemon), ElementsAre("one up"));
}

TEST_F(DaemonTest, AChangeThatCannotBeMadeLeavesTheConnAsItWas) {
  make_keys("one");
  make_keys("bad");
  std::filesystem::remove(directory_ / "bad.state");
  write(conf("one", "vti01", 4));
  Daemon daemon(options_, *log_);
  std::string changed = conf("one", "vti01", 4);
  changed.replace(changed.find("one.keys"), 8, "bad.keys");
  write(changed);
  daemon.reload();
  EXPECT_THAT(states(daemon), ElementsAre("one up"));
  EXPECT_THAT(logged(), HasSubstr("as it was before"));

  // A new one that cannot be brought up is listed with the reason, and tried again next time.
  write(conf("one", "vti01", 4) + conf("bad", "vti02", 5));
  daemon.reload();
  EXPECT_THAT(states(daemon), ElementsAre("one up", "bad failed"));
  EXPECT_THAT(daemon.status().conns[1].error, HasSubstr("bad.state"));
  EXPECT_FALSE(exists("vti02"));
}

TEST_F(DaemonTest, FreshKeysInTheSameFileReplaceTheConn) {
  make_keys("one");
  write(conf("one", "vti01", 4));
  Daemon daemon(options_, *log_);
  const auto before = daemon.status().sas.at(0).spi;
  std::filesystem::remove_all(directory_ / "one");
  make_keys("one");
  daemon.reload();
  EXPECT_THAT(states(daemon), ElementsAre("one up"));
  EXPECT_NE(daemon.status().sas.at(0).spi, before);
}

TEST_F(DaemonTest, SharedDevicesGoWithTheLastOfTheirConns) {
  make_keys("one");
  make_keys("two");
  const std::string shared = "vti-shared = yes\n";
  std::string two = conf("two", "vti01", 5, shared);
  two.replace(two.find("mark = 5"), 8, "mark = 4");
  write(conf("one", "vti01", 4, shared + "encapsulation = no\n") + two);
  Daemon daemon(options_, *log_);
  EXPECT_THAT(states(daemon), ElementsAre("one up", "two up"));
  EXPECT_EQ(daemon.status().devices.size(), 1U);
  const unsigned both = daemon.status().conns[0].mtu;

  write(conf("one", "vti01", 4, shared + "encapsulation = no\n"));
  daemon.reload();
  EXPECT_TRUE(exists("vti01"));
  EXPECT_EQ(daemon.status().conns[0].mtu, both + 8);  // without the UDP header of the other
  ifaces::Netlink netlink;
  EXPECT_TRUE(netlink.is_local(*IpAddress::parse("10.9.4.1")));
  EXPECT_FALSE(netlink.is_local(*IpAddress::parse("10.9.5.1")));
}

TEST_F(DaemonTest, ReloadMakesADeviceAgainThatSomebodyDeleted) {
  make_keys("one");
  write(conf("one", "vti01", 4));
  Daemon daemon(options_, *log_);
  ASSERT_EQ(std::system("ip link del vti01"), 0);
  ASSERT_FALSE(exists("vti01"));
  daemon.reload();
  EXPECT_TRUE(exists("vti01"));
  EXPECT_THAT(states(daemon), ElementsAre("one up"));
  ifaces::Netlink netlink;
  EXPECT_EQ(netlink.route_device(*IpAddress::parse("10.2.4.9")), "vti01");
}

TEST_F(DaemonTest, NeverTellsAKey) {
  make_keys("one");
  write(conf("one", "vti01", 4));
  log_->set_level(LogLevel::debug);
  options_.log = "debug";
  std::vector<std::string> secrets;
  std::ifstream keys(directory_ / "one.keys");
  for (std::string word; keys >> word;)
    if (word.size() == 64) secrets.push_back(word);
  ASSERT_EQ(secrets.size(), 2U);
  Daemon daemon(options_, *log_);
  daemon.reload();
  const nlohmann::json json = status_json(daemon.status(), std::chrono::steady_clock::now());
  const std::string all = json.dump() + status_text(json) + logged();
  for (const std::string& secret : secrets) EXPECT_THAT(all, Not(HasSubstr(secret)));
}

}  // namespace
}  // namespace espalier::tools
