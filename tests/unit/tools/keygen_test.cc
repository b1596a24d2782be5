#include "tools/keygen.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "tests/unit/tools/temp_folder.h"
#include "tools/compile.h"
#include "tools/config.h"
#include "tools/keys.h"

namespace espalier::tools {
namespace {

using std::filesystem::path;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Keygen : public ::testing::Test {
 protected:
  KeygenRequest routed_vpn() const {
    KeygenRequest r;
    r.conn = "routed-vpn";
    r.left = "192.1.2.23";
    r.right = "192.1.2.45";
    r.leftsubnet = r.rightsubnet = "0.0.0.0/0";
    r.mark = "5/0xffffffff";
    r.vti_interface = "vti01";
    r.vti_routing = "no";
    r.leftvti = "10.0.1.1/24";
    r.rightvti = "10.0.1.2/24";
    r.out = out();
    return r;
  }
  path out() const { return folder_.path() / "new" / "keys"; }

  // What was refused; nothing may be left of it.
  std::string refusal(const KeygenRequest& r) const {
    try {
      keygen(r);
    } catch (const ConfigError& e) {
      EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
      EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
      return e.what();
    }
    return "";
  }

  TempFolder folder_;
};

mode_t mode_of(const path& p) {
  struct stat status {};
  EXPECT_EQ(::stat(p.c_str(), &status), 0) << p;
  return status.st_mode & 07777;
}

TEST_F(Keygen, MakesAPairThatFitsTogether) {
  const std::vector<path> files = keygen(routed_vpn());
  ASSERT_EQ(files.size(), 6U);
  for (const path& f : files) EXPECT_TRUE(std::filesystem::is_regular_file(f)) << f;

  const Config left = load_config(out() / "left" / "espalier.conf");
  const Config right = load_config(out() / "right" / "espalier.conf");
  ASSERT_EQ(left.conns.size(), 1U);
  Conn l = left.conns[0], r = right.conns[0];
  StaticKeys lk = load_keys(l.keys), rk = load_keys(r.keys);
  EXPECT_EQ(lk.spi_in, rk.spi_out);
  EXPECT_EQ(lk.spi_out, rk.spi_in);
  EXPECT_TRUE(lk.keymat_in.equals(rk.keymat_out));
  EXPECT_TRUE(lk.keymat_out.equals(rk.keymat_in));
  EXPECT_FALSE(lk.keymat_in.equals(lk.keymat_out));
  EXPECT_GE(static_cast<std::uint32_t>(lk.spi_in), 256U);
  EXPECT_EQ(lk.suite, crypto::Suite::aes_gcm256);

  // Both start at once, each with its own state.
  const path witness = folder_.path() / "witness";
  EXPECT_EQ(SequenceState(state_file(l, left.globals), witness, lk.fingerprint).next(), 1U);
  EXPECT_EQ(SequenceState(state_file(r, right.globals), witness, rk.fingerprint).next(), 1U);
  EXPECT_THROW(SequenceState(state_file(l, left.globals), witness, rk.fingerprint), ConfigError);

  l.where = r.where = "";
  l.keys = r.keys = "";
  EXPECT_EQ(l, r);  // the same words at both ends
  EXPECT_EQ(l.vti_interface, "vti01");
}

TEST_F(Keygen, KeysAreForTheirOwnerOnly) {
  const mode_t before = ::umask(0);
  keygen(routed_vpn());
  ::umask(before);
  for (const char* side : {"left", "right"}) {
    EXPECT_EQ(mode_of(out() / side), 0700U);
    EXPECT_EQ(mode_of(out() / side / "routed-vpn.keys"), 0600U);
    EXPECT_EQ(mode_of(out() / side / "routed-vpn.state"), 0600U);
  }
}

TEST_F(Keygen, EveryRunMakesOtherKeys) {
  KeygenRequest r = routed_vpn();
  r.esp = "aes_gcm128";
  keygen(r);
  r.out = folder_.path() / "again";
  keygen(r);
  const StaticKeys one = load_keys(out() / "left" / "routed-vpn.keys");
  const StaticKeys two = load_keys(r.out / "left" / "routed-vpn.keys");
  EXPECT_EQ(one.keymat_in.size(), 20U);
  EXPECT_FALSE(one.keymat_in.equals(two.keymat_in));
  EXPECT_FALSE(one.keymat_out.equals(two.keymat_out));
  EXPECT_NE(one.spi_in, two.spi_in);
}

TEST_F(Keygen, AnEndWithoutAnAddressIsNamedFromWhereItIsSeen) {
  KeygenRequest r = routed_vpn();
  r.left = "%defaultroute";
  keygen(r);
  EXPECT_THAT(folder_.read("new/keys/left/espalier.conf"), HasSubstr("\nleft = %defaultroute\n"));
  EXPECT_THAT(folder_.read("new/keys/right/espalier.conf"), HasSubstr("\nleft = %any\n"));
  r.left = "192.1.2.23";
  r.right = "%any";
  r.out = folder_.path() / "again";
  keygen(r);
  EXPECT_THAT(folder_.read("again/left/espalier.conf"), HasSubstr("\nright = %any\n"));
  EXPECT_THAT(folder_.read("again/right/espalier.conf"), HasSubstr("\nright = %defaultroute\n"));
}

TEST_F(Keygen, OverwritesNothing) {
  keygen(routed_vpn());
  const std::string before = folder_.read("new/keys/left/routed-vpn.keys");
  EXPECT_THROW(keygen(routed_vpn()), ConfigError);
  std::filesystem::remove_all(out() / "left");
  try {  // one of them is enough
    keygen(routed_vpn());
    ADD_FAILURE() << "overwritten";
  } catch (const ConfigError& e) {
    EXPECT_THAT(e.what(), AllOf(HasSubstr("right exists"), HasSubstr("another folder")));
  }
  EXPECT_FALSE(std::filesystem::exists(out() / "left"));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(out()), {}), 1);
  EXPECT_FALSE(before.empty());
}

TEST_F(Keygen, RefusesWhatTheDaemonWouldRefuse) {
  KeygenRequest r = routed_vpn();
  r.mark = "0xf42/0xf00";
  EXPECT_THAT(refusal(r), AllOf(HasSubstr("mark: '0xf42/0xf00'"), HasSubstr("; write")));
  r = routed_vpn();
  r.left = "gw.example.org";
  EXPECT_EQ(refusal(r).substr(0, 6), "left: ");
  r = routed_vpn();
  r.conn = "../../etc/passwd";
  EXPECT_THAT(refusal(r), HasSubstr("no name for a conn"));
  r = routed_vpn();
  r.esp = "aes256";
  EXPECT_THAT(refusal(r), AllOf(HasSubstr("'aes256' encrypts without authentication"),
                                HasSubstr("write aes256-sha256")));
  r = routed_vpn();
  r.left = r.right = "%any";
  EXPECT_THAT(refusal(r), HasSubstr("neither left nor right"));
  r = routed_vpn();
  r.leftvti = "10.0.1.1/24\nkeys = /etc/shadow";
  EXPECT_THAT(refusal(r), HasSubstr("line break"));
  r = routed_vpn();
  r.vti_routing = std::nullopt;
  EXPECT_THAT(refusal(r), HasSubstr("vti-routing=no"));
  r = routed_vpn();
  r.out = "";
  EXPECT_THAT(refusal(r), HasSubstr("no folder"));
}

// Each gateway starts from its own file, so a loop at either end is found here.
TEST_F(Keygen, RefusesALoopSeenFromOneEndOnly) {
  KeygenRequest r = routed_vpn();
  r.vti_routing = "yes";
  r.leftsubnet = "192.1.0.0/16";  // covers left itself: right would route it into the tunnel
  r.rightsubnet = "10.1.4.0/24";
  EXPECT_THAT(refusal(r), AllOf(HasSubstr("seen from right"), HasSubstr("192.1.0.0/16 covers")));
}

TEST_F(Keygen, DiskFullLeavesNothing) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", folder_.path().c_str(), "tmpfs", 0, "size=16k") != 0)
      ::_exit(77);
    const auto leaves_nothing_in = [&](const path& folder) {
      try {
        keygen(routed_vpn());
      } catch (const std::system_error&) {
        return std::filesystem::is_empty(folder);
      }
      return false;
    };
    if (!leaves_nothing_in(folder_.path())) ::_exit(1);
    std::filesystem::create_directories(out());
    ::_exit(leaves_nothing_in(out()) ? 0 : 2);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77) GTEST_SKIP() << "no mount namespace (needs root)";
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace espalier::tools
