#include "tools/compile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>

#include "tools/config.h"

namespace espalier::tools {
namespace {

using dataplane::Direction;
using dataplane::Encapsulation;
using dataplane::Mark;
using dataplane::PolicySpec;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ifaces::Prefix prefix(const char* text) {
  return ifaces::Prefix::parse(text).value();
}
ifaces::IpAddress address(const char* text) {
  return ifaces::IpAddress::parse(text).value();
}

Conn conn_of(const std::string& lines) {
  return parse_config("[conn a]\nkeys=a.keys\n" + lines, "/etc/t.conf", CheckKeys::no).conns.at(0);
}

const std::string kEnds = "left=192.1.2.23\nright=192.1.2.45\n";
const std::string kSubnets = "leftsubnet=10.1.3.0/24\nrightsubnet=10.1.4.0/24\n";

StaticKeys keys(crypto::Suite suite = crypto::Suite::aes_gcm256) {
  StaticKeys k;
  k.suite = suite;
  k.spi_in = dataplane::Spi{1000};
  k.spi_out = dataplane::Spi{2000};
  k.keymat_in = crypto::SecretBytes(crypto::info(suite).keymat());
  k.keymat_in.bytes()[0] = 1;
  k.keymat_out = crypto::SecretBytes(crypto::info(suite).keymat());
  k.keymat_out.bytes()[0] = 2;
  return k;
}

Compiled compile_of(const std::string& lines, Side own, const ifaces::IpAddress& local = {}) {
  return compile(conn_of(lines), own, local, keys(), 7);
}

template <typename Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

auto is(const char* mine) {
  return [mine](const ifaces::IpAddress& a) { return a == address(mine); };
}

TEST(Orient, FindsTheLocalEnd) {
  const Conn c = conn_of(kEnds + kSubnets);
  EXPECT_EQ(orient(c, is("192.1.2.23")), Side::left);
  EXPECT_EQ(orient(c, is("192.1.2.45")), Side::right);
  EXPECT_THAT(refusal([&] { static_cast<void>(orient(c, is("192.1.2.99"))); }),
              AllOf(HasSubstr("/etc/t.conf:1: "), HasSubstr("neither left nor right")));
  EXPECT_THAT(refusal([&] { static_cast<void>(orient(c, [](const auto&) { return true; })); }),
              HasSubstr("two ends on this host"));
}

TEST(Orient, NeverTakesAnyForLocal) {
  const Conn any = conn_of("left=192.1.2.23\nright=%any\n" + kSubnets);
  EXPECT_EQ(orient(any, is("192.1.2.23")), Side::left);
  EXPECT_THROW(static_cast<void>(orient(any, is("192.1.2.99"))), ConfigError);
  const Conn route = conn_of("left=192.1.2.23\nright=%defaultroute\n" + kSubnets);
  EXPECT_EQ(orient(route, is("192.1.2.99")), Side::right);
  EXPECT_TRUE(local_is_default_route(route, Side::right));
  EXPECT_EQ(remote_address(route, Side::right), address("192.1.2.23"));
  EXPECT_THROW(static_cast<void>(orient(route, is("192.1.2.23"))), ConfigError);
}

TEST(Compile, VtiAsSeenFromBothEnds) {
  const std::string text = kEnds +
                           "leftsubnet=0.0.0.0/0\nrightsubnet=0.0.0.0/0\nmark-in=20\n"
                           "mark-out=21/0xff\nvti-interface=vti01\nvti-routing=no\n"
                           "leftvti=10.0.1.1/24\nrightvti=10.0.1.2/24\nreplay-window=128\nesn=no\n";
  const Compiled left = compile_of(text, Side::left);
  EXPECT_EQ(left.device.name, "vti01");
  EXPECT_EQ(left.device.ikey, 20U);
  EXPECT_EQ(left.device.okey, 21U);
  EXPECT_EQ(left.device.local, address("192.1.2.23"));
  EXPECT_EQ(left.device.remote, address("192.1.2.45"));
  EXPECT_THAT(left.addresses, ElementsAre(prefix("10.0.1.1/24")));
  EXPECT_THAT(left.routes, IsEmpty());
  ASSERT_EQ(left.policies.size(), 2U);
  EXPECT_EQ(left.policies[0].direction, Direction::out);
  EXPECT_EQ(left.policies[0].mark, (Mark{21, 0xff}));
  EXPECT_EQ(left.policies[1].direction, Direction::in);
  EXPECT_EQ(left.policies[1].mark, (Mark{20, 0xffffffff}));
  for (const PolicySpec& p : left.policies) {
    EXPECT_EQ(p.reqid, 7U);
    EXPECT_EQ(p.name, "a");
    EXPECT_EQ(p.action, dataplane::PolicyAction::protect);
  }

  EXPECT_EQ(left.sa_out.direction, Direction::out);
  EXPECT_EQ(static_cast<std::uint32_t>(left.sa_out.spi), 2000U);
  EXPECT_EQ(left.sa_out.keymat.bytes()[0], 2);
  EXPECT_EQ(left.sa_in.direction, Direction::in);
  EXPECT_EQ(static_cast<std::uint32_t>(left.sa_in.spi), 1000U);
  EXPECT_EQ(left.sa_in.keymat.bytes()[0], 1);
  for (const dataplane::SaSpec* sa : {&left.sa_in, &left.sa_out}) {
    EXPECT_EQ(sa->reqid, 7U);
    EXPECT_EQ(sa->encapsulation, Encapsulation::udp);
    EXPECT_EQ(sa->local.str(), "192.1.2.23:4500");
    EXPECT_EQ(sa->peer.str(), "192.1.2.45:4500");
    EXPECT_EQ(sa->window_bits, 128U);
    EXPECT_FALSE(sa->esn);
    EXPECT_TRUE(sa->follow_peer);
    EXPECT_EQ(sa->name, "a");
  }

  const Compiled right = compile_of(text, Side::right);
  EXPECT_EQ(right.device.local, address("192.1.2.45"));
  EXPECT_EQ(right.device.remote, address("192.1.2.23"));
  EXPECT_THAT(right.addresses, ElementsAre(prefix("10.0.1.2/24")));
  EXPECT_EQ(right.sa_out.local.str(), "192.1.2.45:4500");
}

TEST(Compile, DefaultDeviceHasKeyZeroAndRoutes) {
  const Compiled right = compile_of(kEnds + kSubnets, Side::right);
  EXPECT_EQ(right.device.name, kDefaultDevice);
  EXPECT_EQ(right.device.ikey, 0U);
  EXPECT_EQ(right.device.okey, 0U);
  EXPECT_TRUE(right.device.local.is_any());
  EXPECT_TRUE(right.device.remote.is_any());
  EXPECT_THAT(right.routes, ElementsAre(prefix("10.1.3.0/24")));
  ASSERT_EQ(right.policies.size(), 2U);
  EXPECT_EQ(right.policies[0].selector.source, prefix("10.1.4.0/24"));
  EXPECT_EQ(right.policies[0].selector.destination, prefix("10.1.3.0/24"));
  EXPECT_EQ(right.policies[1].selector.source, prefix("10.1.3.0/24"));
  EXPECT_EQ(right.policies[1].selector.destination, prefix("10.1.4.0/24"));
  for (const PolicySpec& p : right.policies) {
    EXPECT_TRUE(p.mark.matches(0));
    EXPECT_FALSE(p.mark.matches(5));  // a VTI's packets are none of this conn's
  }
}

TEST(Compile, APairOfPoliciesForEachPairOfSubnetsOfOneFamily) {
  const Compiled c = compile_of(kEnds +
                                    "leftsubnet=10.1.0.0/16,10.2.0.0/16,2001:db8:1::/48\n"
                                    "rightsubnet=10.3.0.0/16,2001:db8:2::/48,2001:db8:3::/48\n",
                                Side::left);
  EXPECT_EQ(c.policies.size(), 2U * (2 * 1 + 1 * 2));
  for (const PolicySpec& p : c.policies)
    EXPECT_EQ(p.selector.source.address.family, p.selector.destination.address.family);
  EXPECT_EQ(c.routes.size(), 3U);
}

TEST(Compile, TheMostSpecificSelectorWins) {
  const auto priority = [](const char* own, const char* peer) {
    return compile_of(kEnds + "vti-routing=no\nleftsubnet=" + own + "\nrightsubnet=" + peer + "\n",
                      Side::left)
        .policies.at(0)
        .priority;
  };
  EXPECT_LT(priority("10.0.0.0/8", "10.0.0.0/24"), priority("10.0.0.0/8", "10.0.0.0/16"));
  EXPECT_LT(priority("10.0.0.0/16", "10.0.0.0/16"), priority("10.0.0.0/8", "10.0.0.0/16"));
  EXPECT_LT(priority("10.0.0.0/8", "10.0.0.0/16"), priority("10.0.0.0/16", "10.0.0.0/8"));
  EXPECT_LT(priority("10.0.0.1", "10.0.0.2"), priority("0.0.0.0/0", "10.0.0.2"));
  EXPECT_LT(priority("::/0", "2001:db8::1"), priority("::/0", "::/0"));
  EXPECT_LT(
      compile_of(kEnds + kSubnets + "leftprotoport=tcp/22\n", Side::left).policies[0].priority,
      compile_of(kEnds + kSubnets + "leftprotoport=tcp\n", Side::left).policies[0].priority);
  EXPECT_LT(compile_of(kEnds + kSubnets + "leftprotoport=tcp\n", Side::left).policies[0].priority,
            compile_of(kEnds + kSubnets, Side::left).policies[0].priority);
  EXPECT_LT(priority("2001:db8::2", "2001:db8::1"), priority("2001:db8::2", "2001:db8::/127"));
  // Both directions of a pair have the same.
  const Compiled c =
      compile_of(kEnds + "leftsubnet=10.0.0.0/8\nrightsubnet=10.1.0.0/16\n", Side::left);
  EXPECT_EQ(c.policies[0].priority, c.policies[1].priority);
}

TEST(Compile, PortsAndRangesAsSeenFromBothEnds) {
  const std::string text = kEnds +
                           "leftsubnet=10.1.3.5-10.1.3.9\nrightsubnet=10.1.4.0/24\n"
                           "leftprotoport=tcp/22\nrightprotoport=tcp\n";
  const Compiled left = compile_of(text, Side::left), right = compile_of(text, Side::right);
  const dataplane::Selector& out = left.policies.at(0).selector;
  EXPECT_EQ(out.protocol, 6);
  EXPECT_EQ(out.source, prefix("10.1.3.0/28"));
  EXPECT_EQ(out.source_range->first, address("10.1.3.5"));
  EXPECT_EQ(out.source_port_first, 22);
  EXPECT_EQ(out.source_port_last, 22);
  EXPECT_EQ(out.destination_port_last, 65535);
  const dataplane::Selector& in = left.policies.at(1).selector;
  EXPECT_EQ(in.destination_range->last, address("10.1.3.9"));
  EXPECT_EQ(in.destination_port_first, 22);
  EXPECT_EQ(in.source_port_last, 65535);
  EXPECT_EQ(right.policies.at(0).selector, in);
  EXPECT_EQ(right.policies.at(1).selector, out);
  EXPECT_THAT(right.routes,
              ElementsAre(prefix("10.1.3.5"), prefix("10.1.3.6/31"), prefix("10.1.3.8/31")));
}

// A type belongs to the packet and not to an end.
TEST(Compile, AnIcmpTypeIsTheSameInBothDirections) {
  const Compiled c = compile_of(kEnds + kSubnets + "rightprotoport=icmp/8/0\n", Side::left);
  for (const PolicySpec& p : c.policies) {
    EXPECT_EQ(p.selector.protocol, 1);
    EXPECT_EQ(p.selector.source_port_first, 8);
    EXPECT_EQ(p.selector.source_port_last, 8);
    EXPECT_EQ(p.selector.destination_port_last, 0);
  }
}

TEST(Compile, PolicyConnsHaveNoSas) {
  const auto policy_conn = [](const std::string& type) {
    return parse_config("[conn p]\nleftsubnet=10.0.0.0/8\nrightsubnet=10.2.0.0/16\n" + type,
                        "/etc/t.conf", CheckKeys::no)
        .conns.at(0);
  };
  const auto nobody = [](const ifaces::IpAddress&) { return false; };
  const Conn drop = policy_conn("type=drop\nmark=5/0xff\npriority=3\n");
  EXPECT_EQ(orient(drop, nobody), Side::left);
  const Compiled dropped = compile(drop, Side::left, {}, {}, 7);
  EXPECT_FALSE(dropped.has_sas);
  EXPECT_TRUE(dropped.uses_device);  // what is dropped must come into a device first
  EXPECT_THAT(dropped.routes, ElementsAre(prefix("10.2.0.0/16")));
  ASSERT_EQ(dropped.policies.size(), 2U);
  for (const PolicySpec& p : dropped.policies) {
    EXPECT_EQ(p.action, dataplane::PolicyAction::discard);
    EXPECT_EQ(p.priority, 3U);
    EXPECT_EQ(p.mark, (Mark{5, 0xff}));
    EXPECT_EQ(p.reqid, 0U);
  }
  const Compiled passed = compile(policy_conn("type=passthrough\n"), Side::left, {}, {}, 7);
  EXPECT_FALSE(passed.uses_device);
  EXPECT_THAT(passed.routes, IsEmpty());
  ASSERT_EQ(passed.policies.size(), 1U);
  EXPECT_EQ(passed.policies[0].action, dataplane::PolicyAction::bypass);
  EXPECT_TRUE(passed.policies[0].mark.matches(99));  // on every device
}

TEST(Compile, ASharedDeviceLooksTheSameFromEachConn) {
  const std::string shared = kSubnets + "vti-interface=vti01\nmark=10/0xffffff\nvti-shared=yes\n";
  const Compiled west = compile_of("left=1.2.3.4\nright=6.7.8.9\n" + shared, Side::left);
  const Compiled east = compile_of("left=9.8.7.6\nright=10.11.12.13\n" + shared, Side::right);
  EXPECT_TRUE(west.device.local.is_any());
  EXPECT_TRUE(west.device.remote.is_any());
  EXPECT_EQ(west.device.local, east.device.local);
  EXPECT_EQ(west.device.remote, east.device.remote);
  EXPECT_EQ(west.device.okey, 10U);
  EXPECT_EQ(west.sa_in.peer.address, address("6.7.8.9"));
}

TEST(Compile, TheCarrierFollowsTheSasUnlessItIsToBeUpAlways) {
  const std::string lines = kEnds + kSubnets + "mark=5\nvti-interface=vti01\n";
  EXPECT_TRUE(compile_of(lines, Side::left).device.carrier_follows_sa);
  EXPECT_FALSE(compile_of(lines + "vti-carrier=always\n", Side::left).device.carrier_follows_sa);
}

TEST(Compile, RawEspHasNoPortsAndAFixedPeer) {
  const Compiled c = compile_of(kEnds + kSubnets + "encapsulation=no\n", Side::left);
  EXPECT_EQ(c.sa_out.encapsulation, Encapsulation::esp);
  EXPECT_EQ(c.sa_out.local.port, 0);
  EXPECT_EQ(c.sa_out.peer.port, 0);
  EXPECT_FALSE(c.sa_in.follow_peer);
}

TEST(Compile, EndsThatAreFoundLater) {
  const std::string text =
      "left=%defaultroute\nright=2001:db8::45\nrightsubnet=2001:db8:4::/48\n"
      "right-port=4501\n";
  const Compiled c = compile_of(text, Side::left, address("2001:db8::23"));
  EXPECT_EQ(c.sa_out.local.str(), "[2001:db8::23]:4500");
  EXPECT_EQ(c.sa_out.peer.str(), "[2001:db8::45]:4501");
  EXPECT_EQ(c.policies.at(0).selector.source, prefix("2001:db8::23"));
  EXPECT_THAT(refusal([&] { compile_of(text, Side::left, address("192.0.2.1")); }),
              HasSubstr("different families"));
  EXPECT_THAT(refusal([&] {
                compile_of("left=%defaultroute\nright=192.0.2.9\nrightsubnet=2001:db8:4::/48\n",
                           Side::left, address("192.0.2.1"));
              }),
              HasSubstr("of one family"));

  const Compiled any = compile_of("left=192.1.2.23\nright=%any\n" + kSubnets, Side::left);
  EXPECT_TRUE(any.sa_out.peer.address.is_any());
  EXPECT_EQ(any.sa_out.peer.address.family, ifaces::Family::v4);
}

TEST(Compile, RefusesARouteIntoItself) {
  // Seen from left it is fine: only right would route left's own address into the tunnel.
  const std::string text = kEnds + "leftsubnet=192.1.0.0/16\nrightsubnet=10.1.4.0/24\n";
  EXPECT_EQ(compile_of(text, Side::left).routes.size(), 1U);
  EXPECT_THAT(refusal([&] { compile_of(text, Side::right); }),
              AllOf(HasSubstr("/etc/t.conf:1: "), HasSubstr("192.1.0.0/16 covers the peer"),
                    HasSubstr("vti-routing=no"), HasSubstr("dev espalier0")));
  EXPECT_THAT(compile_of(text + "vti-routing=no\n", Side::right).routes, IsEmpty());
}

TEST(Compile, MarkOuterSetsApartWhatCoversThePeer) {
  const std::string text =
      kEnds + "leftsubnet=192.1.0.0/16,10.1.3.0/24\nrightsubnet=10.1.4.0/24\nmark-outer=77\n";
  const Compiled right = compile_of(text, Side::right);
  EXPECT_EQ(right.sa_out.outer_mark, 77U);
  ASSERT_EQ(right.unmarked_routes.size(), 1U);
  EXPECT_EQ(right.unmarked_routes.front().str(), "192.1.0.0/16");
  ASSERT_EQ(right.routes.size(), 1U);
  EXPECT_EQ(right.routes.front().str(), "10.1.3.0/24");
  EXPECT_EQ(compile_of(kEnds + kSubnets + "mark-outer=auto\n", Side::left).sa_out.outer_mark,
            kAutoOuterMark);
}

TEST(Compile, NatFollow) {
  EXPECT_TRUE(compile_of(kEnds + kSubnets, Side::left).sa_in.follow_peer);
  EXPECT_FALSE(compile_of(kEnds + kSubnets + "nat-follow=no\n", Side::left).sa_in.follow_peer);
}

TEST(Compile, RefusesKeysOfAnotherSuite) {
  const Conn conn = conn_of(kEnds + kSubnets);
  EXPECT_THAT(
      refusal([&] {
        static_cast<void>(compile(conn, Side::left, {}, keys(crypto::Suite::aes_gcm128), 1));
      }),
      HasSubstr("write esp=aes_gcm128"));
}

}  // namespace
}  // namespace espalier::tools
