#include "tools/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cstdint>
#include <fstream>
#include <string>
#include <string_view>

#include "tests/unit/tools/temp_folder.h"
#include "tools/keygen.h"

namespace espalier::tools {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

ifaces::Prefix prefix(const char* text) {
  return ifaces::Prefix::parse(text).value();
}
ifaces::IpAddress address(const char* text) {
  return ifaces::IpAddress::parse(text).value();
}

Config parse(std::string_view text) {
  return parse_config(text, "/etc/t.conf", CheckKeys::no);
}

Conn conn_of(const std::string& lines) {
  const Config config = parse("[conn a]\n" + lines);
  return config.conns.size() == 1 ? config.conns.front() : Conn{};
}

// The one line that the user would see; empty if nothing was refused.
std::string refusal(std::string_view text) {
  try {
    static_cast<void>(parse(text));
  } catch (const ConfigError& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos) << e.what();
    return e.what();
  }
  return "";
}

// What every conn needs, in three lines behind the section's.
const std::string kEnds = "left=192.1.2.23\nright=192.1.2.45\nkeys=a.keys\n";
// … and what makes it complete.
const std::string kSubnets = "leftsubnet=10.1.3.0/24\nrightsubnet=10.1.4.0/24\n";
const std::string kVti = "vti-interface=vti01\nmark=5\nvti-routing=no\n";

std::string conn_text(std::string_view name, std::string_view more) {
  return "[conn " + std::string(name) +
         "]\nleft=192.1.2.23\nright=192.1.2.45\nkeys=" + std::string(name) + ".keys\n" +
         std::string(more);
}

// libreswan's `routed-vpn`, word for word but for its keys, as its documentation has it.
TEST(Config, ReadsTheCompleteVtiExample) {
  const Config config = parse(R"(
[conn routed-vpn]
    left=192.1.2.23
    right=192.1.2.45
    keys=routed-vpn.keys
    leftsubnet=0.0.0.0/0
    rightsubnet=0.0.0.0/0
    auto=start
    # route-based VPN requires marking and an interface
    mark=5/0xffffffff
    vti-interface=vti01
    # do not setup routing because we don't want to send 0.0.0.0/0 over the tunnel
    vti-routing=no
    leftvti=10.0.1.1/24
)");
  ASSERT_EQ(config.conns.size(), 1U);
  const Conn& c = config.conns.front();
  EXPECT_EQ(c.name, "routed-vpn");
  EXPECT_EQ(c.where, "/etc/t.conf:2");
  EXPECT_EQ(c.left, address("192.1.2.23"));
  EXPECT_EQ(c.right, address("192.1.2.45"));
  EXPECT_THAT(c.leftsubnet, ElementsAre(prefix("0.0.0.0/0")));
  EXPECT_THAT(c.rightsubnet, ElementsAre(prefix("0.0.0.0/0")));
  EXPECT_EQ(c.mark_in, (dataplane::Mark{5, 0xffffffff}));
  EXPECT_EQ(c.mark_out, (dataplane::Mark{5, 0xffffffff}));
  EXPECT_EQ(c.vti_interface, "vti01");
  EXPECT_FALSE(c.vti_routing);
  EXPECT_FALSE(c.vti_shared);
  EXPECT_THAT(c.leftvti, ElementsAre(prefix("10.0.1.1/24")));
  EXPECT_EQ(c.encapsulation, dataplane::Encapsulation::udp);
  EXPECT_EQ(c.esp, crypto::Suite::aes_gcm256);
  EXPECT_TRUE(c.esn);
  EXPECT_EQ(c.keys, "/etc/routed-vpn.keys");
  EXPECT_EQ(state_file(c, config.globals), "/etc/routed-vpn.state");
  EXPECT_EQ(config.globals.keepalive_s, 20U);  // N1, RFC 3948 §4
}

TEST(Config, GlobalsStandAboveTheFirstSection) {
  const Config config = parse(
      "io = epoll\ncrypto=openssl\nworkers=auto\nlog=debug\ncontrol=/run/x.sock\n"
      "state-dir=/var/lib/e/\nkeepalive=0\n" +
      conn_text("a", kSubnets));
  EXPECT_EQ(config.globals.io, "epoll");
  EXPECT_EQ(config.globals.crypto, "openssl");
  EXPECT_EQ(config.globals.workers, 0U);
  EXPECT_EQ(config.globals.log, "debug");
  EXPECT_EQ(config.globals.control, "/run/x.sock");
  EXPECT_EQ(config.globals.keepalive_s, 0U);
  EXPECT_EQ(state_file(config.conns.at(0), config.globals), "/var/lib/e/a.state");
}

TEST(Config, Offloads) {
  EXPECT_EQ(parse_offloads("auto"), OffloadChoice{});
  EXPECT_EQ(parse_offloads("none"), (OffloadChoice{false, false, false, false}));
  EXPECT_EQ(parse_offloads("gso,tso4"), (OffloadChoice{true, false, false, true}));
  EXPECT_THROW((void)parse_offloads("gro"), std::invalid_argument);
  EXPECT_THROW((void)parse_offloads("tso4, tso6"), std::invalid_argument);
}

TEST(Config, ReadsEverySpelling) {
  const std::string base = kEnds + "vti-interface=v\nvti-routing=no\n";
  EXPECT_EQ(conn_of(base + "markin=0x2a/0xff\nmarkout=7\n").mark_in, (dataplane::Mark{42, 255}));
  EXPECT_EQ(conn_of(base + "mark-in=1\nmark-out=7\n").mark_out, (dataplane::Mark{7, 0xffffffff}));
  EXPECT_EQ(conn_of(base + "mark=12/0xffffff\n").mark_in, (dataplane::Mark{12, 0xffffff}));
  const std::string plain = kEnds + kSubnets;
  for (const char* udp : {"yes", "auto", "udp", "on"})
    EXPECT_EQ(conn_of(plain + "encapsulation=" + udp + "\n").encapsulation,
              dataplane::Encapsulation::udp)
        << udp;
  for (const char* raw : {"no", "esp", "off"})
    EXPECT_EQ(conn_of(plain + "encapsulation=" + raw + "\n").encapsulation,
              dataplane::Encapsulation::esp)
        << raw;
  EXPECT_EQ(conn_of(plain + "phase2alg=aes128gcm16\n").esp, crypto::Suite::aes_gcm128);
  EXPECT_EQ(conn_of(plain + "esp=aes256-sha1;modp2048\n").esp, crypto::Suite::aes256_sha1);
  EXPECT_EQ(conn_of(plain + "left-port=4501\n").left_port, 4501);
  EXPECT_EQ(conn_of(plain + "replay-window=65536\n").replay_window, 65536U);
  EXPECT_EQ(conn_of(plain + "replay-window=32\n").replay_window, 32U);
  EXPECT_EQ(conn_of(plain + "replay-window=no\nesn=no\n").replay_window, 0U);
  EXPECT_EQ(conn_of(plain + "mtu=1400\n").mtu, 1400U);
  EXPECT_FALSE(conn_of(plain + "esn=no\n").esn);
  EXPECT_EQ(conn_of(plain + "type=tunnel # the only one\n").name, "a");
  const std::string ends(kEnds);
  EXPECT_THAT(
      conn_of(ends + "rightsubnet=10.2.0.0/16\nleftsubnets={10.0.0.0/8, ,11.0.0.0/8 12.0.0.1}\n")
          .leftsubnet,
      ElementsAre(prefix("10.0.0.0/8"), prefix("11.0.0.0/8"), prefix("12.0.0.1/32")));
  EXPECT_THAT(
      conn_of(ends + "rightsubnet=\"10.2.0.0/16,2001:db8::/32\"\nleftsubnet=::/0,10.0.0.0/8\n")
          .rightsubnet,
      ElementsAre(prefix("10.2.0.0/16"), prefix("2001:db8::/32")));
  EXPECT_EQ(parse("\xef\xbb\xbf# with a byte order mark\r\n[conn a]\r\nleft=192.1.2.23\r\n"
                  "right=192.1.2.45\r\nkeys=k\r\nrightsubnet=10.0.0.0/8\r\n")
                .conns.size(),
            1U);
}

TEST(Config, EndsThatAreNotAddresses) {
  const std::string rest = std::string("keys=k\n") + kSubnets;
  const Conn any = conn_of("left=192.1.2.23\nright=%any\n" + rest);
  EXPECT_EQ(any.right.family, ifaces::Family::none);
  EXPECT_FALSE(any.right_is_default_route);
  EXPECT_TRUE(conn_of("left=%defaultroute\nright=192.1.2.45\n" + rest).left_is_default_route);
  EXPECT_TRUE(conn_of("left=192.1.2.23\nright=%defaultroute\n" + rest).right_is_default_route);
  const Conn both = conn_of("left=%defaultroute\nright=%any\n" + rest);
  EXPECT_TRUE(both.left_is_default_route);
}

TEST(Config, IgnoredConnsAreReadButLeftOut) {
  const std::string text = conn_text("a", "auto=ignore\n" + kSubnets);
  EXPECT_TRUE(parse(text).conns.empty());
  EXPECT_THAT(refusal(text + "mtu=1\n"), HasSubstr(":8: mtu"));
}

TEST(Config, SharedDeviceOfTwoGateways) {
  // The gateways may have different addresses here, unlike a kernel VTI.
  const std::string shared = "mark=10/0xffffff\nvti-interface=vti01\nvti-shared=yes\nleftsubnet=";
  const Config config =
      parse("[conn west]\nleft=1.2.3.4\nright=6.7.8.9\nkeys=w\nrightsubnet=10.2.0.0/16\n" + shared +
            "10.1.0.0/16\n[conn east]\nleft=10.11.12.13\nright=9.8.7.6\nkeys=e\n"
            "rightsubnet=10.3.0.0/16\n" +
            shared + "10.1.0.0/16\n");
  ASSERT_EQ(config.conns.size(), 2U);
  EXPECT_TRUE(config.conns[1].vti_shared);
}

// The files of the documents that brought people here, with one line more: keys.
TEST(Config, ReadsLibreswansOwnForm) {
  const Config config = parse(
      "version 2.0\n"
      "config setup\n"
      "        protostack=netkey\n"
      "        nat_traversal=yes\n"
      "        plutodebug=control\n"
      "conn %default\n"
      "    keyingtries=1\n"
      "    esn=no\n"
      "    replay-window=128\n"
      "conn tunnel1\n"
      "    left=10.0.149.110\n"
      "    right=10.0.149.111\n"
      "    leftsubnet=0.0.0.0/0\n"
      "    rightsubnet=0.0.0.0/0\n"
      "    auto=start\n"
      "    authby=secret\n"
      "    ikev2=no\n"
      "    ike=aes256-sha512;modp4096\n"
      "    phase2=esp\n"
      "    dpddelay=30\n"
      "    dpdtimeout=120\n"
      "    replay-window=256\n"
      "    mark=5/0xffffffff\n"
      "    vti-interface=vti02\n"
      "    vti-routing=no\n"
      "    leftvti=192.168.10.3/24\n"
      "    keys=tunnel1.keys\n");
  ASSERT_EQ(config.conns.size(), 1U);
  const Conn& c = config.conns.front();
  EXPECT_EQ(c.name, "tunnel1");
  EXPECT_EQ(c.vti_interface, "vti02");
  EXPECT_FALSE(c.esn);               // of %default
  EXPECT_EQ(c.replay_window, 256U);  // its own
  ASSERT_EQ(config.remarks.size(), 6U);
  EXPECT_THAT(config.remarks.front(), StartsWith("/etc/t.conf:16: authby is an option of IKE"));
}

TEST(Config, RoadWarriorsOfTheWiki) {
  const Conn c = conn_of(
      "left=1.2.3.4\nleftsubnet=0.0.0.0/0\nright=%any\nrightaddresspool=10.0.1.0/24\n"
      "authby=rsasig\nleftcert=mycert\nleftid=%fromcert\nauto=add\nrekey=no\n"
      "mark=12/0xffffff\nvti-interface=vti02\nvti-routing=yes\nkeys=clients\n");
  EXPECT_THAT(c.rightsubnet, ElementsAre(prefix("10.0.1.0/24")));
  EXPECT_EQ(c.pool->str(), "10.0.1.0/24");
}

// type=passthrough, drop and reject: policies without a tunnel.
TEST(Config, ConnsThatOnlySayWhatIsNotProtected) {
  const std::string subnets = "leftsubnet=10.1.0.0/16\nrightsubnet=10.2.0.0/16\n";
  EXPECT_EQ(conn_of("type=passthrough\n" + subnets).action, dataplane::PolicyAction::bypass);
  for (const char* type : {"drop", "reject"})
    EXPECT_EQ(conn_of("type=" + std::string(type) + "\nmark=5\npriority=7\n" + subnets).action,
              dataplane::PolicyAction::discard);
  EXPECT_EQ(refusal("[conn d]\ntype=drop\n" + subnets + conn_text("a", subnets)).substr(0, 14),
            "/etc/t.conf:5:");
  EXPECT_EQ(refusal("[conn d]\ntype=drop\npriority=1\n" + subnets + conn_text("a", subnets)), "");
}

TEST(Config, PortsMakeTwoConnsOfOneSubnet) {
  EXPECT_EQ(refusal(conn_text("a", kSubnets) + conn_text("b", "leftprotoport=tcp/22\n" + kSubnets)),
            "");
  const Conn c =
      conn_of(kEnds + "leftprotoport=udp/1000-2000\nrightprotoport=17/%any\n" + kSubnets);
  EXPECT_EQ(c.leftprotoport.first, 1000);
  EXPECT_EQ(c.rightprotoport.str(), "udp");
}

struct Refusal {
  const char* name;
  std::string text;
  unsigned line;
  const char* says;   // what is wrong
  const char* write;  // what to write instead, behind the semicolon
};

void PrintTo(const Refusal& r, std::ostream* out) {
  *out << r.name;
}

class ConfigRefuses : public ::testing::TestWithParam<Refusal> {};

TEST_P(ConfigRefuses, WithFileLineAndWhatToWrite) {
  const Refusal& r = GetParam();
  const std::string what = refusal(r.text);
  EXPECT_THAT(what, StartsWith("/etc/t.conf:" + std::to_string(r.line) + ": "));
  EXPECT_THAT(what, HasSubstr(r.says));
  const auto semicolon = what.rfind("; ");
  ASSERT_NE(semicolon, std::string::npos) << what;
  EXPECT_THAT(what.substr(what.find("; ")), HasSubstr(r.write));
}

// A conn whose line 5 is `line`.
std::string with(std::string_view line) {
  return "[conn a]\n" + kEnds + std::string(line) + "\n" + kSubnets;
}
// The same with a device: line 8.
std::string with_vti(std::string_view line) {
  return "[conn a]\n" + kEnds + kVti + std::string(line) + "\n" + kSubnets;
}
// Two conns; the second begins at line 6 + `before`'s lines.
std::string two(std::string_view a, std::string_view b) {
  return conn_text("a", a) + conn_text("b", b);
}

INSTANTIATE_TEST_SUITE_P(
    Lines, ConfigRefuses,
    ::testing::Values(
        Refusal{"Include", "include /etc/ipsec.d/*.conf\n", 1, "included", "one file"},
        Refusal{"SetupOption", "protostack=netkey\n", 1, "protostack", "remove the line"},
        Refusal{"NoEquals", with("esn yes"), 5, "'esn yes'", "NAME = VALUE"},
        Refusal{"NoValue", with("esn ="), 5, "esn has no value", "write one"},
        Refusal{"NoName", with("= yes"), 5, "no name before '='", "write NAME"},
        Refusal{"OpenBracket", "[conn a\n", 1, "bracket", "[conn NAME]"},
        Refusal{"OtherSection", "[connection a]\n", 1, "no section", "[conn NAME]"},
        Refusal{"Unnamed", "[conn]\n", 1, "no name", "letters"},
        Refusal{"BadName", "[conn ../../etc]\n", 1, "no name", "letters"},
        Refusal{"Typo", with("leftsubent=10.0.0.0/8"), 5, "'leftsubent'", "write leftsubnet"},
        Refusal{"TypoVti", with("vti-inteface=x"), 5, "unknown", "write vti-interface"},
        Refusal{"Unknown", with("colour=blue"), 5, "unknown option 'colour'", "remove"},
        Refusal{"IkeAboveConns", "authby=secret\n", 1, "IKE", "[conn NAME] above"},
        Refusal{"Compress", with("compress=yes"), 5, "'yes'", "write no"},
        Refusal{"Ah", with("phase2=ah"), 5, "'ah'", "esp"},
        Refusal{"PoolOfOneHost", with("rightaddresspool=10.0.1.0/24"), 5, "one host", "right=%any"},
        Refusal{"Swanctl", with("remote_ts = 10.0.0.0/8"), 5, "'remote_ts'", "rightsubnet=PREFIX"},
        Refusal{"GlobalInConn", with("workers=2"), 5, "global", "above the first"},
        Refusal{"ConnInGlobal", "left=1.2.3.4\n", 1, "left belongs to a conn", "[conn NAME]"},
        Refusal{"Twice", with("left=192.1.2.24"), 5, "first in line 2", "once"},
        Refusal{"TwiceByAlias", with_vti("markin=5\nmark-in=5"), 8, "mark in one conn", "mark"},
        Refusal{"SubnetAlias", with("leftsubnets=10.0.0.0/8"), 6, "second time", "once"},
        Refusal{"SameName", two(kSubnets, "") + conn_text("b", ""), 11, "second [conn b]",
                "another"},
        Refusal{"Umlaut", with("keys=\xc3\xa4.keys"), 5, "ASCII", "comment"},
        Refusal{"Nul", with(std::string_view("esn=\0yes", 8)), 5, "ASCII", "comment"},
        Refusal{"Escape", with("esn=\x1b[31m"), 5, "'esn=?[31m'", "comment"}),
    [](const auto& i) { return i.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Values, ConfigRefuses,
    ::testing::Values(
        Refusal{"Hostname", "[conn a]\nleft=gw.example.org\n", 2, "'gw.example.org'", "an address"},
        Refusal{"LongAddress", "[conn a]\nleft=1.2.3.4.5\n", 2, "1.2.3.4.5", "an address"},
        Refusal{"Zero", "[conn a]\nleft=0.0.0.0\n", 2, "unspecified", "%any"},
        Refusal{"Group", "[conn a]\nleft=%group\n", 2, "%group", "%any"},
        Refusal{"Multicast", "[conn a]\nleft=224.0.0.9\n", 2, "no address of a host",
                "one that is"},
        Refusal{"LinkLocal", "[conn a]\nleft=fe80::1\n", 2, "link-local", "global"},
        Refusal{"Mapped", "[conn a]\nleft=::ffff:1.2.3.4\n", 2, "IPv4", "a.b.c.d"},
        Refusal{"HostBits", with("mtu=1400\nleftsubnet=10.1.3.1/24"), 6, "behind its length",
                "10.1.3.0/24"},
        Refusal{"BadPrefix", "[conn a]\nleftsubnet=10.0.0.0/33\n", 2, "10.0.0.0/33", "ADDRESS/LEN"},
        Refusal{"Brace", "[conn a]\nleftsubnets={10.0.0.0/8\n", 2, "brace", "{PREFIX"},
        Refusal{"EmptyList", "[conn a]\nleftsubnets={ , }\n", 2, "empty", "prefix"},
        Refusal{"SubnetTwice", "[conn a]\nleftsubnet=10.0.0.0/8,10.0.0.0/8\n", 2, "twice", "once"},
        Refusal{"MarkOutsideMask", with_vti("") + "\n[conn b]\nmark=0xf42/0xf00\n", 13,
                "(mark & MASK) == VALUE", "0xf00/0xf00 or 0xf42/0xf42"},
        Refusal{"MarkText", "[conn a]\nmark=five\n", 2, "'five'", "5/0xffffffff"},
        Refusal{"MarkNegative", "[conn a]\nmark=-1\n", 2, "made up", "a number"},
        Refusal{"MarkUnique", "[conn a]\nmark=%unique\n", 2, "made up", "a number"},
        Refusal{"MarkTooLong", "[conn a]\nmark=0x100000000\n", 2, "no mark", "VALUE/MASK"},
        Refusal{"MarkEmptyMask", "[conn a]\nmark=5/\n", 2, "no mark", "VALUE/MASK"},
        Refusal{"MarkZero", "[conn a]\nmark=0/0\n", 2, "value 0", "from 1"},
        Refusal{"DeviceLong", "[conn a]\nvti-interface=abcdefghijklmnop\n", 2, "15", "shorter"},
        Refusal{"DeviceSlash", "[conn a]\nvti-interface=../x\n", 2, "no name", "vti01"},
        Refusal{"DevicePercent", "[conn a]\nvti-interface=vti%d\n", 2, "no name", "vti01"},
        Refusal{"DeviceLo", "[conn a]\nvti-interface=lo\n", 2, "no name", "vti01"},
        Refusal{"DeviceDefault", "[conn a]\nvti-interface=espalier0\n", 2, "without one",
                "another"},
        Refusal{"YesNo", "[conn a]\nvti-routing=maybe\n", 2, "'maybe'", "yes or no"},
        Refusal{"VtiNoLength", "[conn a]\nleftvti=10.0.1.1\n", 2, "10.0.1.1", "10.0.1.1/24"},
        Refusal{"Encapsulation", "[conn a]\nencapsulation=tcp\n", 2, "'tcp'", "UDP port 4500"},
        Refusal{"Suite", "[conn a]\nesp=aes256-rot13;modp2048\n", 2, "aes256-rot13;modp2048",
                "aes_gcm256"},
        Refusal{"EncryptionOnly", "[conn a]\nesp=aes256\n", 2, "without authentication",
                "aes256-sha256"},
        Refusal{"WindowZero", "[conn a]\nreplay-window=0\n", 2, "every packet", "replay-window=no"},
        Refusal{"WindowLarge", "[conn a]\nreplay-window=65537\n", 2, "32 to 65536", "write one"},
        Refusal{"WindowHuge", "[conn a]\nreplay-window=4294967360\n", 2, "32 to 65536",
                "write one"},
        Refusal{"Mtu", "[conn a]\nmtu=575\n", 2, "576", "write one"},
        Refusal{"Port", "[conn a]\nleft-port=0\n", 2, "1 to 65535", "write one"},
        Refusal{"Auto", "[conn a]\nauto=stat\n", 2, "'stat'", "start"},
        Refusal{"Transport", "[conn a]\ntype=transport\n", 2, "'transport'", "tunnel"},
        Refusal{"Io", "io=iouring\n", 1, "'iouring'", "write io_uring"},
        Refusal{"Crypto", "crypto=gnutls\n", 1, "'gnutls'", "ipsec-mb"},
        Refusal{"Workers", "workers=0\n", 1, "1 to 64", "write one"},
        Refusal{"Log", "log=verbose\n", 1, "'verbose'", "debug"},
        Refusal{"Control", "control=e.sock\n", 1, "socket", "absolute"},
        Refusal{"ControlLong", "control=/" + std::string(108, 'x') + "\n", 1, "socket", "107"},
        Refusal{"StateDir", "state-dir=state\n", 1, "absolute", "starts with /"},
        Refusal{"Keepalive", "keepalive=-5\n", 1, "0 to 3600", "write one"}),
    [](const auto& i) { return i.param.name; });

INSTANTIATE_TEST_SUITE_P(
    WithinAConn, ConfigRefuses,
    ::testing::Values(
        Refusal{"NoLeft", "\n[conn a]\nright=1.2.3.4\n", 2, "no left", "left=ADDRESS"},
        Refusal{"NoRight", "[conn a]\nleft=1.2.3.4\n", 1, "no right", "right=ADDRESS"},
        Refusal{"NoKeys", "[conn a]\nleft=1.2.3.4\nright=1.2.3.5\n" + kSubnets, 1, "no keys",
                "keys=FILE"},
        Refusal{"KeysAreState",
                with("").substr(0, 0) +
                    "[conn a]\nleft=1.2.3.4\nright=1.2.3.5\n"
                    "keys=a.state\n" +
                    kSubnets,
                4, "state file", "a.keys"},
        Refusal{"NeitherKnown", "[conn a]\nleft=%any\nright=%any\n", 3, "neither", "%defaultroute"},
        Refusal{"Families", "[conn a]\nleft=1.2.3.4\nright=2001:db8::1\n", 3, "families", "two"},
        Refusal{"SameEnds", "[conn a]\nleft=1.2.3.4\nright=1.2.3.4\n", 3, "same", "peer's"},
        Refusal{"AnyRaw", "[conn a]\nleft=1.2.3.4\nright=%any\nencapsulation=no\n", 4, "%any",
                "encapsulation=yes"},
        Refusal{"PortRaw", "[conn a]\nleft=1.2.3.4\nright=1.2.3.5\nencapsulation=no\nleft-port=5\n",
                5, "without UDP", "remove"},
        Refusal{"AnyNoSubnet", "[conn a]\nleft=1.2.3.4\nright=%any\nkeys=k\n", 3, "rightsubnet",
                "rightsubnet=PREFIX"},
        Refusal{
            "SubnetFamilies",
            "[conn a]\n" + kEnds + "leftsubnet=10.0.0.0/8,2001:db8::/32\nrightsubnet=10.2.0.0/16\n",
            5, "2001:db8::/32 has no rightsubnet", "IPv6 rightsubnet"},
        Refusal{"HostFamily", "[conn a]\n" + kEnds + "rightsubnet=2001:db8::/32\n", 1,
                "leftsubnet 192.1.2.23/32 has no rightsubnet", "IPv4 rightsubnet"},
        Refusal{"VtiNoMark", with("vti-interface=vti01"), 5, "needs a mark", "mark=5/0xffffffff"},
        Refusal{"VtiHalfMark", with("vti-interface=vti01\nmark-in=5"), 6, "one direction",
                "mark-out"},
        Refusal{"MarkNoVti", with("mark=5"), 5, "needs a device", "vti-interface=vti01"},
        Refusal{"VtiAddressNoVti", with("leftvti=10.0.0.1/24"), 5, "device", "vti-interface"},
        Refusal{"MarkAndMarkIn", with_vti("mark-in=6"), 8, "mark in one conn", "mark-out"},
        Refusal{"MtuForV6", with_vti("mtu=1279\nleftvti=2001:db8::1/64"), 8, "IPv6", "1280"},
        Refusal{"Loop",
                "[conn a]\n" + kEnds +
                    "leftsubnet=0.0.0.0/0\nrightsubnet=0.0.0.0/0\nvti-interface=vti01\nmark=5\n",
                6, "0.0.0.0/0 covers the peer 192.1.2.45", "vti-routing=no"},
        Refusal{"LoopAny",
                "[conn a]\nleft=192.1.2.23\nright=%any\nkeys=k\n"
                "leftsubnet=0.0.0.0/0\nrightsubnet=0.0.0.0/0\n",
                6, "%any", "vti-routing=no"},
        Refusal{"TwoProtocols", with("leftprotoport=tcp/22\nrightprotoport=udp"), 6,
                "two protocols", "write one"},
        Refusal{"TwoIcmpTypes", with("leftprotoport=icmp/8\nrightprotoport=icmp/0"), 6, "one type",
                "leftprotoport only"},
        Refusal{"PolicyWithDevice", "[conn a]\ntype=drop\nvti-interface=v\n", 3, "no tunnel",
                "mark= says"},
        Refusal{"PolicyWithKeys", "[conn a]\ntype=passthrough\nkeys=k\n", 3, "no tunnel",
                "remove the line"},
        Refusal{"PolicyForNothing", "[conn a]\ntype=drop\nleftsubnet=10.0.0.0/8\n", 1,
                "which packets", "rightsubnet=PREFIX"},
        Refusal{"HostToHost", "[conn a]\n" + kEnds, 1, "192.1.2.45/32 covers the peer",
                "dev espalier0"}),
    [](const auto& i) { return i.param.name; });

const std::string kOther = "leftsubnet=10.7.0.0/16\nrightsubnet=10.8.0.0/16\n";

INSTANTIATE_TEST_SUITE_P(
    BetweenConns, ConfigRefuses,
    ::testing::Values(
        Refusal{"SameDevice", two(kVti + kSubnets, kVti + kOther), 14,
                "conn a has the device vti01", "vti-shared=yes in both"},
        Refusal{"SharedByOne", two(kVti + kSubnets, kVti + "vti-shared=yes\n" + kOther), 14,
                "vti01", "in both"},
        Refusal{"SharedMarks",
                two(kVti + "vti-shared=yes\n" + kSubnets,
                    "vti-interface=vti01\nmark=6\nvti-shared=yes\n" + kOther),
                16, "other marks", "mark-in=5/0xffffffff"},
        Refusal{
            "SharedMtu",
            two(kVti + "vti-shared=yes\n" + kSubnets, kVti + "vti-shared=yes\nmtu=1400\n" + kOther),
            19, "mtu", "same"},
        Refusal{"SharedAddress",
                two(kVti + "vti-shared=yes\nleftvti=10.0.0.1/24\n" + kSubnets,
                    kVti + "vti-shared=yes\nleftvti=10.0.0.1/24\n" + kOther),
                20, "leftvti", "one of them"},
        Refusal{"SameSubnets", two(kSubnets, kSubnets), 12, "same subnets", "vti-interface"},
        Refusal{"SameMarkSameSubnets",
                two(kVti + kSubnets, "vti-interface=vti02\nmark=5\n" + kSubnets), 15,
                "also matches the device vti01", "another mark"},
        Refusal{"MaskedMarkSameEnds",
                two("vti-interface=vti01\nmark=5/0xff\n" + kSubnets,
                    "vti-interface=vti02\nmark=0x105\n" + kOther),
                14, "also matches", "another"},
        Refusal{"SameKeyFile",
                conn_text("a", kSubnets) +
                    "[conn b]\nleft=192.1.2.23\nright=192.1.2.46\nkeys=./a.keys\n" + kOther,
                10, "same key file", "espalier keygen"},
        Refusal{"SameStateFile",
                "state-dir=/var/lib/e\n" + conn_text("a", kSubnets) +
                    "[conn b]\nleft=192.1.2.23\nright=192.1.2.46\nkeys=x/a.keys\n" + kOther,
                11, "state file", "another file name"}),
    [](const auto& i) { return i.param.name; });

// What looks like the refused cases and is none.
TEST(Config, AcceptsWhatOnlyLooksLikeAConflict) {
  // Different marks, everything else equal: route-based tunnels beside each other.
  EXPECT_EQ(
      refusal(two(kVti + kSubnets, "vti-interface=vti02\nmark=6\nvti-routing=no\n" + kSubnets)),
      "");
  // The same mark on two devices to two peers with different subnets.
  EXPECT_EQ(refusal(conn_text("a", kVti + kSubnets) +
                    "[conn b]\nleft=192.1.2.23\nright=192.1.2.46\nkeys=b\nvti-interface=vti02\n"
                    "mark=5\n" +
                    kOther),
            "");
  // A policy-based conn beside a VTI with the same subnets.
  EXPECT_EQ(refusal(two(kVti + kSubnets, kSubnets)), "");
  // Nested subnets: the more specific decides.
  EXPECT_EQ(refusal(two(kSubnets, "leftsubnet=10.1.0.0/16\nrightsubnet=10.1.4.0/25\n")), "");
  // The gateway stands in its own subnet: seen from there no route loops.
  EXPECT_EQ(refusal("[conn a]\n" + kEnds + "leftsubnet=192.1.2.0/27\nrightsubnet=10.0.0.0/8\n"),
            "");
  // A server for clients at unknown addresses routes only towards them.
  EXPECT_EQ(refusal("[conn a]\nleft=1.2.3.4\nright=%any\nkeys=k\nleftsubnet=0.0.0.0/0\n"
                    "rightsubnet=10.0.1.0/24\n"),
            "");
  // Everything IPv6 through an IPv4 tunnel.
  EXPECT_EQ(refusal("[conn a]\n" + kEnds + "leftsubnet=::/0\nrightsubnet=::/0\n"), "");
}

TEST(Config, FileProblems) {
  const TempFolder folder;
  const auto load = [&](const char* name) {
    try {
      static_cast<void>(load_config(folder.path() / name));
    } catch (const ConfigError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_THAT(load("absent.conf"), HasSubstr("absent.conf: cannot be opened (No such file"));
  EXPECT_THAT(load("."), HasSubstr("not a regular file"));
  ASSERT_EQ(::mkfifo((folder.path() / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(load("fifo"), HasSubstr("not a regular file"));  // and does not wait for a writer
  folder.write("long.conf", std::string((1 << 20) + 1, '#'));
  EXPECT_THAT(load("long.conf"), HasSubstr("longer than"));
}

// With key files: made by keygen, then spoilt.
class ConfigKeys : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"a", "b"})
      keygen({.conn = name,
              .left = "192.0.2.1",
              .right = "192.0.2.2",
              .leftsubnet = "10.1.0.0/16",
              .rightsubnet = name[0] == 'a' ? "10.2.0.0/16" : "10.3.0.0/16",
              .out = folder_.path() / name});
  }

  std::string load(const std::string& text) const {
    folder_.write("t.conf", text);
    try {
      static_cast<void>(load_config(folder_.path() / "t.conf"));
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  }

  static std::string conns(const std::string& b_keys, const std::string& b_right = "192.0.2.3") {
    return "[conn a]\nleft=192.0.2.1\nright=192.0.2.2\nkeys=a/left/a.keys\n"
           "rightsubnet=10.2.0.0/16\n[conn b]\nleft=192.0.2.1\nright=" +
           b_right + "\nkeys=" + b_keys + "\nrightsubnet=10.3.0.0/16\n";
  }

  TempFolder folder_;
};

TEST_F(ConfigKeys, WhatKeygenMakesIsAccepted) {
  EXPECT_EQ(load(conns("b/left/b.keys")), "");
}

TEST_F(ConfigKeys, AConnWithAPoolBecomesOneForEachClient) {
  KeygenRequest request;
  request.conn = "rw";
  request.left = "1.2.3.4";
  request.right = "%any";
  request.leftsubnet = "0.0.0.0/0";
  request.rightaddresspool = "10.0.1.0/29";
  request.leftvti = "10.0.1.1/29";
  request.mark = "12/0xffffff";
  request.vti_interface = "vti02";
  request.clients = 3;
  const TempFolder folder;
  request.out = folder.path() / "out";
  static_cast<void>(keygen(request));
  const auto load = [&] { return load_config(request.out / "left" / "espalier.conf"); };
  const Config config = load();
  ASSERT_EQ(config.conns.size(), 3U);
  for (std::size_t i = 0; i < 3; ++i) {
    const Conn& c = config.conns[i];
    const std::string own = "10.0.1." + std::to_string(i + 2);  // .1 is the server's
    EXPECT_EQ(c.name, "rw/" + own);
    EXPECT_TRUE(c.is_client);
    EXPECT_THAT(c.rightsubnet, ElementsAre(prefix(own.c_str())));
    const Config client = load_config(request.out / "clients" / own / "espalier.conf");
    ASSERT_EQ(client.conns.size(), 1U);
    EXPECT_TRUE(client.conns[0].right_is_default_route);
    EXPECT_EQ(client.conns[0].rightvti.at(0).str(), own + "/29");
    EXPECT_FALSE(client.conns[0].vti_routing);  // 0.0.0.0/0 covers the server
  }
  const auto server_keys = request.out / "left" / "rw.clients";
  std::filesystem::rename(server_keys / "10.0.1.4.keys", server_keys / "10.0.2.4.keys");
  EXPECT_THROW(static_cast<void>(load()), ConfigError);  // outside the pool
  std::filesystem::rename(server_keys / "10.0.2.4.keys", server_keys / "x.keys");
  EXPECT_THROW(static_cast<void>(load()), ConfigError);
  std::filesystem::remove(server_keys / "x.keys");
  EXPECT_EQ(load().conns.size(), 2U);
  request.out = folder.path() / "few";
  request.clients = 6;  // .2 to .6 are free
  EXPECT_THROW(static_cast<void>(keygen(request)), ConfigError);
  EXPECT_FALSE(std::filesystem::exists(request.out));
}

TEST_F(ConfigKeys, MissingKeyFileNamesBothFiles) {
  EXPECT_THAT(load(conns("absent.keys")),
              ::testing::AllOf(HasSubstr("t.conf:9: "), HasSubstr("/absent.keys: cannot be opened"),
                               HasSubstr("espalier keygen")));
}

TEST_F(ConfigKeys, OtherSuiteThanTheConnSays) {
  EXPECT_THAT(load(conns("b/left/b.keys") + "esp=aes_gcm128\n"),
              ::testing::AllOf(HasSubstr("t.conf:11: the keys are for aes_gcm256"),
                               HasSubstr("write esp=aes_gcm256")));
}

TEST_F(ConfigKeys, ACopyOfTheKeysIsFoundOut) {
  std::filesystem::copy(folder_.path() / "a/left/a.keys", folder_.path() / "copy.keys");
  EXPECT_THAT(load(conns("copy.keys")), HasSubstr("t.conf:9: conn a has"));
  // Not even with another SPI, or as the other end has them.
  EXPECT_THAT(load(conns("a/right/a.keys", "192.0.2.4")),
              HasSubstr("t.conf:9: conn a has one of these keys"));
}

TEST_F(ConfigKeys, SameInboundSpiAtOneAddress) {
  std::string a = folder_.read("a/left/a.keys"), b = folder_.read("b/left/b.keys");
  const auto line = [](std::string& text) {
    const auto begin = text.find("spi-in");
    return std::pair(begin, text.find('\n', begin) - begin);
  };
  const auto [from, from_size] = line(a);
  const auto [to, to_size] = line(b);
  b.replace(to, to_size, a.substr(from, from_size));
  folder_.write("same.keys", b, 0600);
  EXPECT_THAT(load(conns("same.keys")),
              HasSubstr("t.conf:9: conn a has the same spi-in at the same address"));
}

// Every prefix of a good file, and every line of it alone: refused or accepted, never worse.
TEST(Config, CutTextNeverDoesMoreThanThrow) {
  const std::string text = "io=auto\n" + with_vti("leftvti=10.0.1.1/24") +
                           conn_text("b", "leftsubnet={2001:db8::/32}\nrightsubnet=::/1\n");
  ASSERT_EQ(refusal(text), "");
  for (std::size_t i = 0; i < text.size(); ++i) {
    static_cast<void>(refusal(text.substr(0, i)));
    static_cast<void>(refusal(text.substr(i)));
    std::string flipped = text;
    flipped[i] = static_cast<char>(flipped[i] ^ 0x10);
    static_cast<void>(refusal(flipped));
  }
}

}  // namespace
}  // namespace espalier::tools
