#include "tools/subnet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>

namespace espalier::tools {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

ifaces::Prefix prefix(const char* text) {
  return ifaces::Prefix::parse(text).value();
}
ifaces::IpAddress address(const char* text) {
  return ifaces::IpAddress::parse(text).value();
}

std::string refusal(std::string (*call)(std::string_view), std::string_view text) {
  try {
    return "accepted as " + call(text);
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
}
std::string subnet(std::string_view text) {
  return parse_subnet(text).str();
}
std::string ports(std::string_view text) {
  return parse_protoport(text).str();
}

TEST(Subnet, ARangeIsShownAsWrittenAndAPrefixStaysOne) {
  EXPECT_EQ(subnet("10.1.3.0/24"), "10.1.3.0/24");
  EXPECT_EQ(subnet("10.1.3.5-10.1.3.9"), "10.1.3.5-10.1.3.9");
  EXPECT_EQ(subnet("10.1.2.0-10.1.3.255"), "10.1.2.0/23");
  EXPECT_EQ(subnet("0.0.0.0-255.255.255.255"), "0.0.0.0/0");
  EXPECT_EQ(subnet("fd00::1-fd00::1"), "fd00::1/128");
  EXPECT_EQ(subnet("::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"), "::/0");
  EXPECT_EQ(parse_subnet("10.1.3.5-10.1.3.9").prefix, prefix("10.1.3.0/28"));
  EXPECT_THAT(refusal(subnet, "10.1.3.9-10.1.3.5"), HasSubstr("write 10.1.3.5-10.1.3.9"));
  EXPECT_THAT(refusal(subnet, "10.1.3.9-fd00::1"), HasSubstr("no range"));
  EXPECT_THAT(refusal(subnet, "10.1.3.1/24"), HasSubstr("write 10.1.3.0/24"));
}

TEST(Subnet, OverlapsByAddressesNotByCoveringPrefixes) {
  const Subnet low = parse_subnet("10.1.3.0-10.1.3.9"), high = parse_subnet("10.1.3.10-10.1.3.20");
  EXPECT_FALSE(overlap(low, high));
  EXPECT_TRUE(overlap(low, parse_subnet("10.1.3.9-10.1.3.10")));
  EXPECT_TRUE(overlap(high, parse_subnet("10.0.0.0/8")));
  EXPECT_FALSE(overlap(parse_subnet("0.0.0.0/0"), parse_subnet("::/0")));
  EXPECT_TRUE(low.contains(address("10.1.3.9")));
  EXPECT_FALSE(low.contains(address("10.1.3.10")));
}

TEST(Subnet, ARangeAsPrefixesForRoutes) {
  EXPECT_THAT(parse_subnet("10.1.3.5-10.1.3.9").prefixes(),
              ElementsAre(prefix("10.1.3.5/32"), prefix("10.1.3.6/31"), prefix("10.1.3.8/31")));
  EXPECT_THAT(parse_subnet("0.0.0.1-255.255.255.255").prefixes().size(), 32U);
  EXPECT_THAT(parse_subnet("::1-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff").prefixes().size(), 128U);
  EXPECT_THAT(parse_subnet("fd00::/64").prefixes(), ElementsAre(prefix("fd00::/64")));
}

TEST(Subnet, CountsItsAddresses) {
  EXPECT_EQ(count(parse_subnet("10.0.1.0/24").addresses()), 256U);
  EXPECT_EQ(count(parse_subnet("::/0").addresses()), 0xffffffffU);
  EXPECT_EQ(nth(parse_subnet("10.0.1.0/24").addresses(), 255), address("10.0.1.255"));
}

TEST(ProtoPort, AsLibreswanWritesThem) {
  EXPECT_EQ(ports("tcp/22"), "tcp/22");
  EXPECT_EQ(ports("6/22"), "tcp/22");
  EXPECT_EQ(ports("udp/1000-2000"), "udp/1000-2000");
  EXPECT_EQ(ports("17/%any"), "udp");
  EXPECT_EQ(ports("17/0"), "udp");
  EXPECT_EQ(ports("47"), "gre");
  EXPECT_EQ(ports("200"), "200");
  EXPECT_EQ(ports("%any"), "");
  EXPECT_EQ(ports("icmp/8"), "icmp/8");
  EXPECT_EQ(ports("icmp/0"), "icmp/0");  // echo reply: not the same as every type
  EXPECT_EQ(ports("ipv6-icmp/128-129/0"), "ipv6-icmp/128-129/0");
  EXPECT_THAT(refusal(ports, "tpc/22"), HasSubstr("no protocol"));
  EXPECT_THAT(refusal(ports, "gre/1"), HasSubstr("the protocol alone"));
  EXPECT_THAT(refusal(ports, "tcp/70000"), HasSubstr("0 to 65535"));
  EXPECT_THAT(refusal(ports, "icmp/256"), HasSubstr("255"));
  EXPECT_THAT(refusal(ports, "udp/20-10"), HasSubstr("wrong way round"));
  EXPECT_THAT(refusal(ports, "/22"), HasSubstr("no protocol"));
}

}  // namespace
}  // namespace espalier::tools
