#include "dataplane/spd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace espalier::dataplane {
namespace {

ifaces::Prefix prefix(const char* text) {
  return *ifaces::Prefix::parse(text);
}

PolicySpec spec(const char* source, const char* destination, std::uint32_t priority = 100) {
  PolicySpec s;
  s.selector.source = prefix(source);
  s.selector.destination = prefix(destination);
  s.priority = priority;
  return s;
}

InnerKey packet(const char* source, const char* destination) {
  InnerKey key{};
  const auto s = *ifaces::IpAddress::parse(source);
  key.source = words(s);
  key.destination = words(*ifaces::IpAddress::parse(destination));
  key.ipv6 = s.family == ifaces::Family::v6;
  return key;
}

class SpdTest : public testing::Test {
 protected:
  const Policy& add(const PolicySpec& s) {
    policies_.push_back(std::make_unique<Policy>(PolicyId{next_++}, s));
    spd_.add(*policies_.back());
    return *policies_.back();
  }
  Spd spd_;
  std::vector<std::unique_ptr<Policy>> policies_;
  std::uint32_t next_ = 1;
};

TEST_F(SpdTest, NothingMatchesInAnEmptyTable) {
  EXPECT_EQ(spd_.find(packet("10.0.0.1", "10.0.0.2")), nullptr);
}

TEST_F(SpdTest, LowestPriorityNumberWins) {
  add(spec("0.0.0.0/0", "0.0.0.0/0", 300));
  const Policy& best = add(spec("10.0.0.0/8", "0.0.0.0/0", 100));
  add(spec("10.0.0.0/16", "10.2.0.0/16", 200));
  EXPECT_EQ(spd_.find(packet("10.0.0.1", "10.2.0.2")), &best);
}

TEST_F(SpdTest, LongerPrefixesWinAmongEquals) {
  add(spec("0.0.0.0/0", "0.0.0.0/0"));
  const Policy& wide = add(spec("10.0.0.0/8", "10.0.0.0/8"));
  const Policy& narrow = add(spec("10.1.3.0/24", "10.1.4.0/24"));
  EXPECT_EQ(spd_.find(packet("10.1.3.2", "10.1.4.2")), &narrow);
  EXPECT_EQ(spd_.find(packet("10.1.3.2", "10.1.5.2")), &wide);
}

TEST_F(SpdTest, FamiliesDoNotMix) {
  add(spec("0.0.0.0/0", "0.0.0.0/0"));
  EXPECT_EQ(spd_.find(packet("2001:db8::1", "2001:db8::2")), nullptr);
  const Policy& six = add(spec("::/0", "2001:db8::/33"));
  EXPECT_EQ(spd_.find(packet("2001:db8::1", "2001:db8:1::2")), &six);
  EXPECT_EQ(spd_.find(packet("2001:db8::1", "2001:db8:8000::2")), nullptr);
}

TEST_F(SpdTest, PortsAndProtocolDecideWithinABucket) {
  PolicySpec web = spec("0.0.0.0/0", "0.0.0.0/0", 50);
  web.selector.protocol = 6;
  web.selector.destination_port_first = 80;
  web.selector.destination_port_last = 443;
  const Policy& narrow = add(web);
  const Policy& rest = add(spec("0.0.0.0/0", "0.0.0.0/0", 60));
  InnerKey key = packet("10.0.0.1", "10.0.0.2");
  key.protocol = 6;
  key.has_ports = true;
  key.destination_port = 443;
  EXPECT_EQ(spd_.find(key), &narrow);
  key.destination_port = 444;
  EXPECT_EQ(spd_.find(key), &rest);
  key.destination_port = 80;
  key.has_ports = false;  // a later fragment matches only ANY
  EXPECT_EQ(spd_.find(key), &rest);
}

TEST_F(SpdTest, RemovedPoliciesAreNotFound) {
  const Policy& narrow = add(spec("10.1.3.0/24", "10.1.4.0/24"));
  const Policy& twin = add(spec("10.1.3.0/24", "10.1.4.0/24", 200));
  spd_.remove(narrow);
  EXPECT_EQ(spd_.find(packet("10.1.3.2", "10.1.4.2")), &twin);
  spd_.remove(twin);
  EXPECT_EQ(spd_.find(packet("10.1.3.2", "10.1.4.2")), nullptr);
  EXPECT_EQ(spd_.size(), 0U);
  spd_.reclaim();
}

// A slow reference: every policy, one by one.
TEST_F(SpdTest, AgreesWithAScan) {
  std::mt19937 engine(3);
  const auto random = [&engine] { return static_cast<std::uint32_t>(engine()); };
  const auto address = [&random] {
    return "10." + std::to_string(random() % 3) + "." + std::to_string(random() % 4) + "." +
           std::to_string(random() % 8);
  };
  for (int i = 0; i < 600; ++i) {
    const std::string source = address() + "/" + std::to_string(random() % 33);
    const std::string destination = address() + "/" + std::to_string(random() % 33);
    add(spec(source.c_str(), destination.c_str(), random() % 50));
  }
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 2000; ++i) {
      const InnerKey key = packet(address().c_str(), address().c_str());
      const Policy* found = spd_.find(key);
      const Policy* expected = nullptr;
      const auto rank = [](const Policy& p) {
        return std::pair{p.spec.priority,
                         -(p.spec.selector.source.length + p.spec.selector.destination.length)};
      };
      for (const auto& p : policies_)
        if (p->matcher.matches(key) && (expected == nullptr || rank(*p) < rank(*expected)))
          expected = p.get();
      ASSERT_EQ(found == nullptr, expected == nullptr);
      if (found != nullptr) {
        ASSERT_EQ(rank(*found), rank(*expected));
      }
    }
    for (int i = 0; i < 200; ++i) {
      const std::size_t victim = random() % policies_.size();
      spd_.remove(*policies_[victim]);
      spd_.reclaim();
      policies_.erase(policies_.begin() + static_cast<std::ptrdiff_t>(victim));
    }
  }
}

// What a selector means, read from the specification alone.
bool allows(const Selector& s, const InnerKey& key, const ifaces::IpAddress& source,
            const ifaces::IpAddress& destination) {
  if (!s.source.contains(source) || !s.destination.contains(destination)) return false;
  const auto inside = [](const std::optional<AddressRange>& r, const ifaces::IpAddress& a) {
    return !r || (r->first.bytes <= a.bytes && a.bytes <= r->last.bytes);
  };
  if (!inside(s.source_range, source) || !inside(s.destination_range, destination)) return false;
  if (s.protocol != 0 && s.protocol != key.protocol) return false;
  const bool any = s.source_port_first == 0 && s.source_port_last == 65535 &&
                   s.destination_port_first == 0 && s.destination_port_last == 65535;
  if (any) return true;
  return key.has_ports && s.source_port_first <= key.source_port &&
         key.source_port <= s.source_port_last &&
         s.destination_port_first <= key.destination_port &&
         key.destination_port <= s.destination_port_last;
}

// RFC 4301 §4.4.1: ordered entries of three kinds, with ranges of addresses and ports, a protocol,
// and packets that show no ports.
TEST_F(SpdTest, RandomSelectorsOfEveryKindAgreeWithTheSpecification) {
  std::mt19937 engine(4301);
  const auto random = [&engine](unsigned below) { return static_cast<unsigned>(engine() % below); };
  const auto address = [&random](bool ipv6) {
    const std::string tail =
        std::to_string(random(3)) + (ipv6 ? ":" : ".") + std::to_string(random(32));
    return *ifaces::IpAddress::parse(ipv6 ? "fd00::" + tail : "10.1." + tail);
  };
  constexpr std::array<std::uint8_t, 5> kProtocols = {0, 1, 6, 17, 58};
  for (int i = 0; i < 500; ++i) {
    PolicySpec s;
    const bool ipv6 = random(3) == 0;
    const unsigned bits = ipv6 ? 128 : 32;
    const auto side = [&](ifaces::Prefix& prefix, std::optional<AddressRange>& range) {
      const ifaces::IpAddress a = address(ipv6), b = address(ipv6);
      if (random(2) == 0) {
        prefix = ifaces::Prefix{a, static_cast<std::uint8_t>(bits - random(20))}.network();
        return;
      }
      range = AddressRange{std::min(a, b), std::max(a, b)};
      std::uint8_t length = static_cast<std::uint8_t>(bits);
      while (!ifaces::Prefix{a, length}.contains(b)) --length;
      prefix = ifaces::Prefix{a, length}.network();
    };
    side(s.selector.source, s.selector.source_range);
    side(s.selector.destination, s.selector.destination_range);
    s.selector.protocol = kProtocols[random(kProtocols.size())];
    if (random(3) == 0) {
      s.selector.source_port_first = static_cast<std::uint16_t>(random(10));
      s.selector.source_port_last =
          static_cast<std::uint16_t>(s.selector.source_port_first + random(5));
    }
    if (random(3) == 0) s.selector.destination_port_last = static_cast<std::uint16_t>(random(10));
    s.action = static_cast<PolicyAction>(random(3));
    s.priority = random(40);
    add(s);
  }
  const auto rank = [](const Policy& p) {
    return std::pair{p.spec.priority,
                     -(p.spec.selector.source.length + p.spec.selector.destination.length)};
  };
  unsigned hits = 0;
  for (int i = 0; i < 5000; ++i) {
    const bool ipv6 = random(3) == 0;
    const ifaces::IpAddress source = address(ipv6), destination = address(ipv6);
    InnerKey key{};
    key.source = words(source);
    key.destination = words(destination);
    key.ipv6 = ipv6;
    key.protocol = kProtocols[1 + random(kProtocols.size() - 1)];
    key.has_ports = random(4) != 0;
    if (key.has_ports) {
      key.source_port = static_cast<std::uint16_t>(random(14));
      key.destination_port = static_cast<std::uint16_t>(random(14));
    }
    const Policy* expected = nullptr;
    for (const auto& p : policies_)
      if (allows(p->spec.selector, key, source, destination) &&
          (expected == nullptr || rank(*p) < rank(*expected)))
        expected = p.get();
    const Policy* found = spd_.find(key);
    ASSERT_EQ(found == nullptr, expected == nullptr);
    if (found == nullptr) continue;
    ++hits;
    ASSERT_EQ(rank(*found), rank(*expected));
    ASSERT_TRUE(allows(found->spec.selector, key, source, destination));
  }
  EXPECT_GT(hits, 1000U);
}

TEST_F(SpdTest, PriorityBeforePrefixLengthWhateverTheAction) {
  PolicySpec discard = spec("10.1.0.0/16", "10.2.0.0/16", 10);
  discard.action = PolicyAction::discard;
  PolicySpec bypass = spec("10.1.3.0/24", "10.2.0.0/16", 20);
  bypass.action = PolicyAction::bypass;
  const Policy& first = add(discard);
  const Policy& second = add(bypass);
  const Policy& third = add(spec("10.1.3.2/32", "10.2.3.2/32", 30));
  EXPECT_EQ(spd_.find(packet("10.1.3.2", "10.2.3.2")), &first);
  spd_.remove(first);
  EXPECT_EQ(spd_.find(packet("10.1.3.2", "10.2.3.2")), &second);
  spd_.remove(second);
  EXPECT_EQ(spd_.find(packet("10.1.3.2", "10.2.3.2")), &third);
}

// ------------------------------------------------------------------- what a packet shows

using Bytes = std::vector<std::uint8_t>;

Bytes v4(std::uint8_t protocol, std::uint16_t fragment, const Bytes& payload) {
  Bytes p = {0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2};
  p[6] = static_cast<std::uint8_t>(fragment >> 8);
  p[7] = static_cast<std::uint8_t>(fragment);
  p.insert(p.end(), payload.begin(), payload.end());
  p[3] = static_cast<std::uint8_t>(p.size());
  return p;
}

Bytes v6(std::uint8_t next, const Bytes& payload) {
  Bytes p(40);
  p[0] = 0x60;
  p[5] = static_cast<std::uint8_t>(payload.size());
  p[6] = next;
  p.insert(p.end(), payload.begin(), payload.end());
  return p;
}

InnerKey key_of(const Bytes& packet) {
  InnerKey key{};
  EXPECT_TRUE(parse_inner(packet, key));
  return key;
}

TEST(ParseInner, TheTypeAndCodeOfIcmpStandWherePortsDo) {
  const Bytes echo = {8, 3, 0, 0, 0, 0, 0, 0};
  InnerKey key = key_of(v4(1, 0, echo));
  EXPECT_TRUE(key.has_ports);
  EXPECT_EQ(key.source_port, 8);
  EXPECT_EQ(key.destination_port, 3);
  key = key_of(v6(58, {128, 1, 0, 0}));
  EXPECT_TRUE(key.has_ports);
  EXPECT_EQ(key.source_port, 128);
  EXPECT_EQ(key.destination_port, 1);
  EXPECT_FALSE(key_of(v4(58, 0, echo)).has_ports);  // ICMPv6 in IPv4 is nothing
  EXPECT_FALSE(key_of(v6(1, echo)).has_ports);
  key = key_of(v6(135, {59, 0, 5, 0, 0, 0, 0, 0}));  // RFC 6275: a binding update
  EXPECT_EQ(key.protocol, 135);
  EXPECT_EQ(key.source_port, 5);
}

TEST(ParseInner, OnlyAFirstFragmentShowsItsPorts) {
  const Bytes udp = {0x10, 0x01, 0x00, 0x35, 0, 8, 0, 0};
  EXPECT_EQ(key_of(v4(17, 0x2000, udp)).destination_port, 53);  // more fragments, offset 0
  EXPECT_FALSE(key_of(v4(17, 0x0001, udp)).has_ports);
  Bytes fragment = {17, 0, 0, 1, 0, 0, 0, 1};  // IPv6 fragment header, offset 0, more to come
  fragment.insert(fragment.end(), udp.begin(), udp.end());
  EXPECT_EQ(key_of(v6(44, fragment)).destination_port, 53);
  fragment[3] = 9;  // offset 8
  const InnerKey later = key_of(v6(44, fragment));
  EXPECT_FALSE(later.has_ports);
  EXPECT_EQ(later.protocol, 17);
}

}  // namespace
}  // namespace espalier::dataplane
