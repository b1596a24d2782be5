#include "dataplane/spd.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
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

}  // namespace
}  // namespace espalier::dataplane
