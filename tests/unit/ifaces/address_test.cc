#include "ifaces/address.h"

#include <gtest/gtest.h>
#include <netinet/in.h>

#include <string>
#include <string_view>

namespace espalier::ifaces {
namespace {

using namespace std::string_view_literals;

IpAddress address(std::string_view text) {
  const auto a = IpAddress::parse(text);
  EXPECT_TRUE(a) << text;
  return a.value_or(IpAddress{});
}

Prefix prefix(std::string_view text) {
  const auto p = Prefix::parse(text);
  EXPECT_TRUE(p) << text;
  return p.value_or(Prefix{});
}

TEST(IpAddress, ParsesBothFamiliesAndPrintsThem) {
  EXPECT_EQ(address("192.0.2.1").family, Family::v4);
  EXPECT_EQ(address("192.0.2.1").str(), "192.0.2.1");
  EXPECT_EQ(address("2001:DB8:0::1").family, Family::v6);
  EXPECT_EQ(address("2001:DB8:0::1").str(), "2001:db8::1");
  EXPECT_EQ(IpAddress{}.str(), "any");
}

TEST(IpAddress, RefusesWhatIsNone) {
  for (const std::string_view text :
       {""sv, "1.2.3"sv, "1.2.3.4.5"sv, "256.1.1.1"sv, "1.2.3.4 "sv, " 1.2.3.4"sv, "1.2.3.4/24"sv,
        "01.2.3.4x"sv, "::1::"sv, "fe80::1%eth0"sv, "host"sv, "%any"sv, "1.2.3.4\0x"sv, "::1\0"sv})
    EXPECT_FALSE(IpAddress::parse(text)) << text;
}

TEST(IpAddress, AnyHasAFamilyOrNone) {
  EXPECT_TRUE(IpAddress{}.is_any());
  EXPECT_TRUE(IpAddress::any(Family::v6).is_any());
  EXPECT_TRUE(address("0.0.0.0").is_any());
  EXPECT_FALSE(address("::1").is_any());
  EXPECT_NE(IpAddress::any(Family::v4), IpAddress::any(Family::v6));
}

TEST(Prefix, ParsesLengthAndHost) {
  EXPECT_EQ(prefix("10.1.3.0/24").length, 24);
  EXPECT_EQ(prefix("10.1.3.1").length, 32);
  EXPECT_EQ(prefix("2001:db8::/64").length, 64);
  EXPECT_EQ(prefix("2001:db8::1").length, 128);
  EXPECT_EQ(prefix("10.0.1.1/24").str(), "10.0.1.1/24");
  for (const std::string_view text :
       {"10.0.0.0/33"sv, "10.0.0.0/"sv, "10.0.0.0/-1"sv, "10.0.0.0/+1"sv, "10.0.0.0/8 "sv,
        "10.0.0.0/8/8"sv, "::/129"sv, "/8"sv, "10.0.0.0/99999999999"sv})
    EXPECT_FALSE(Prefix::parse(text)) << text;
}

// Against one bit at a time, for every length.
TEST(Prefix, ContainsAndNetworkAgreeWithASlowReference) {
  const IpAddress a = address("2001:db8:a5a5:5a5a:ff00:ff:1234:8765");
  const auto bit = [](const IpAddress& x, unsigned i) {
    return (x.bytes[i / 8] >> (7 - i % 8)) & 1;
  };
  for (unsigned length = 0; length <= 128; ++length) {
    const Prefix p{a, static_cast<std::uint8_t>(length)};
    for (unsigned i = 0; i < 128; ++i) {
      IpAddress other = a;
      other.bytes[i / 8] = static_cast<std::uint8_t>(other.bytes[i / 8] ^ (0x80 >> (i % 8)));
      EXPECT_EQ(p.contains(other), i >= length) << length << " " << i;
      EXPECT_EQ(bit(p.network().address, i), i < length ? bit(a, i) : 0) << length << " " << i;
    }
  }
}

TEST(Prefix, FamiliesDoNotMix) {
  EXPECT_FALSE(prefix("0.0.0.0/0").contains(address("::")));
  EXPECT_FALSE(prefix("::/0").contains(address("0.0.0.0")));
  EXPECT_FALSE(prefix("0.0.0.0/0").contains(IpAddress{}));
}

TEST(Endpoint, SurvivesTheWayThroughSockaddr) {
  for (const Endpoint& e :
       {Endpoint{address("192.0.2.1"), 4500}, Endpoint{address("2001:db8::1"), 500}}) {
    sockaddr_storage sa{};
    const socklen_t length = e.to(sa);
    EXPECT_EQ(length, e.address.family == Family::v4 ? sizeof(sockaddr_in) : sizeof(sockaddr_in6));
    EXPECT_EQ(Endpoint::from(sa), e);
  }
  sockaddr_storage other{};
  other.ss_family = AF_UNIX;
  EXPECT_EQ(Endpoint::from(other), Endpoint{});
}

TEST(Endpoint, PrintsBracketsAroundIpv6) {
  EXPECT_EQ((Endpoint{address("192.0.2.1"), 4500}).str(), "192.0.2.1:4500");
  EXPECT_EQ((Endpoint{address("2001:db8::1"), 4500}).str(), "[2001:db8::1]:4500");
  EXPECT_EQ((Endpoint{address("2001:db8::1"), 0}).str(), "2001:db8::1");
}

}  // namespace
}  // namespace espalier::ifaces
