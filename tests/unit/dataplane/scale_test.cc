// Many SAs: how long they take to come and go, and what they leave behind.
#include <gtest/gtest.h>
#include <malloc.h>

#include <fstream>

#include "tests/unit/dataplane/two_sites.h"

namespace espalier::test {
namespace {

std::size_t resident_bytes() {
  std::size_t total = 0;
  std::size_t resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

class Scale : public SandboxTest {
 protected:
  void SetUp() override {
    SandboxTest::SetUp();
    if (IsSkipped()) return;
    crypto::initialise();
    registry.emplace("auto");
    plane.emplace(*registry, TwoSites::options(1));
    DeviceSpec device;
    device.name = "a0";
    plane->add_device(device);
  }
  static SaSpec spec(Direction direction, std::uint32_t i) {
    SaSpec sa = TwoSites::sa(direction, 0x1000 + i, 0, i + 1);
    if (direction == Direction::in) std::swap(sa.local, sa.peer);
    const std::uint32_t number = 2 * i + (direction == Direction::in ? 1 : 0);
    std::memcpy(sa.keymat.bytes().data(), &number, sizeof number);
    sa.name = "conn-" + std::to_string(i);
    return sa;
  }
  static PolicySpec policy(Direction direction, std::uint32_t i) {
    PolicySpec p = TwoSites::policy(direction, i + 1);
    const ifaces::Prefix mine = *ifaces::Prefix::parse("10.1.0.0/16");
    std::array<std::uint8_t, 4> bytes{};
    store_be(bytes.data(), 0x0b000000 + i);
    const ifaces::Prefix theirs{ifaces::IpAddress::v4(bytes), 32};
    p.selector.source = direction == Direction::out ? mine : theirs;
    p.selector.destination = direction == Direction::out ? theirs : mine;
    return p;
  }
  struct Made {
    std::vector<SaId> sas;
    std::vector<PolicyId> policies;
  };
  Made add(std::uint32_t pairs, bool policies) {
    Made made;
    made.sas.reserve(std::size_t{2} * pairs);
    made.policies.reserve(std::size_t{2} * pairs);
    const Dataplane::Batch batch(*plane);
    for (std::uint32_t i = 0; i < pairs; ++i)
      for (const Direction direction : {Direction::in, Direction::out}) {
        if (policies) made.policies.push_back(plane->add_policy(policy(direction, i)));
        made.sas.push_back(plane->add_sa(spec(direction, i)));
      }
    return made;
  }
  void remove(const Made& made) {
    const Dataplane::Batch batch(*plane);
    for (const SaId id : made.sas) plane->remove_sa(id);
    for (const PolicyId id : made.policies) plane->remove_policy(id);
  }
  // Of this thread on a processor: what else the machine does is not ours.
  static double seconds() {
    timespec ts{};
    ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return static_cast<double>(ts.tv_sec) + static_cast<double>(ts.tv_nsec) * 1e-9;
  }

  std::optional<crypto::Registry> registry;
  std::optional<Dataplane> plane;
};

TEST_F(Scale, L10AHundredThousandPairs) {
  constexpr std::uint32_t kPairs = kSanitized ? 2000 : 100000;
  // What is made once stays out of the account: the tables of UsedNumbers fill up.
  for (int i = 0; i < 2; ++i) remove(add(kPairs, false));
  remove(add(100, true));
  ::malloc_trim(0);
  const std::size_t before = resident_bytes();
  const double start = seconds();
  Made made = add(kPairs, true);
  const double added_s = seconds() - start;
  const std::size_t full = resident_bytes();
  const double listing = seconds();
  EXPECT_EQ(plane->sas().size(), 2 * kPairs);
  const double listed_s = seconds() - listing;
  const double removing = seconds();
  remove(made);
  const double removed_s = seconds() - removing;
  made = {};
  EXPECT_TRUE(plane->sas().empty());
  EXPECT_TRUE(plane->policies().empty());
  ::malloc_trim(0);
  const std::size_t after = resident_bytes();
  std::cout << kPairs << " pairs with two policies each: added in " << added_s << " s, listed in "
            << listed_s << " s, removed in " << removed_s << " s; " << (full - before) / kPairs
            << " bytes a pair; resident " << before / 1024 << " KiB before, " << after / 1024
            << " KiB after\n";
  EXPECT_LT(added_s, 5.0);
  EXPECT_LT(removed_s, 5.0);
  if (!kSanitized) {
    EXPECT_LT(after, before + before / 20 + (std::size_t{1} << 20));
  }
}

// What an SA pair takes before its first packet, without its policies.
TEST_F(Scale, MemoryOfAPair) {
  if (kSanitized) return;  // a sanitizer has memory of its own
  for (const std::uint32_t pairs : {5000U, 100000U}) {
    remove(add(100, false));
    ::malloc_trim(0);
    const std::size_t before = resident_bytes();
    const Made made = add(pairs, false);
    const std::size_t a_pair = (resident_bytes() - before) / pairs;
    std::cout << pairs << " pairs: " << a_pair << " bytes a pair\n";
    EXPECT_LT(a_pair, 2048U);
    remove(made);
  }
}

// T12: a table that only ever changes stays as small as what is in it.
TEST_F(Scale, ChurnLeavesNothing) {
  constexpr std::uint32_t kTurns = kSanitized ? 2000 : 30000;
  (void)add(100, true);
  ::malloc_trim(0);
  std::size_t before = 0;
  for (std::uint32_t i = 0; i < kTurns; ++i) {
    if (i == kTurns / 4) before = resident_bytes();
    SaSpec in = spec(Direction::in, 200000 + i);
    const SaId id = plane->add_sa(std::move(in));
    plane->remove_sa(id);
  }
  if (!kSanitized) {
    EXPECT_LT(resident_bytes(), before + (std::size_t{1} << 20));
  }
  EXPECT_EQ(plane->sas().size(), 200U);
}

}  // namespace
}  // namespace espalier::test
