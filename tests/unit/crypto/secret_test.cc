#include "crypto/secret.h"

#include <gmock/gmock.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace espalier::crypto {
namespace {

using ::testing::Each;
using ::testing::Eq;
using ::testing::HasSubstr;

// The sanitizers make mlock do nothing and report success.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCanLock = false;
#else
constexpr bool kCanLock = true;
#endif

// The kernel's flags of the mapping that holds `address`: " lo" is locked, " dd" not dumped.
std::string vm_flags(const void* address) {
  const auto wanted = reinterpret_cast<std::uintptr_t>(address);
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    char dash = 0;
    if (fields >> std::hex >> begin >> dash >> end && dash == '-')
      inside = begin <= wanted && wanted < end;
    if (inside && line.starts_with("VmFlags:")) return line;
  }
  return "not mapped";
}

TEST(Secret, IsZeroFilledAlignedAndWritable) {
  for (const std::size_t size : {1U, 16U, 63U, 64U, 65U, 1008U, 4096U, 4097U, 200000U}) {
    SecretBytes secret(size);
    ASSERT_EQ(secret.size(), size);
    EXPECT_THAT(secret.bytes(), Each(Eq(0)));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(secret.bytes().data()) % SecretBytes::kAlignment,
              0U);
    std::fill(secret.bytes().begin(), secret.bytes().end(), std::uint8_t{0x5A});
  }
}

TEST(Secret, LiesOnPagesThatAreNotDumped) {
  const SecretBytes small(32);
  const SecretBytes large(100000);
  EXPECT_THAT(vm_flags(small.bytes().data()), HasSubstr(" dd"));
  EXPECT_THAT(vm_flags(large.bytes().data()), HasSubstr(" dd"));
  if (secrets_are_locked() && kCanLock) {
    EXPECT_THAT(vm_flags(small.bytes().data()), HasSubstr(" lo"));
  }
}

TEST(Secret, StaysLockedWhenItsNeighbourGoes) {
  auto neighbour = std::make_unique<SecretBytes>(32);
  const SecretBytes secret(32);
  neighbour.reset();
  EXPECT_THAT(vm_flags(secret.bytes().data()), HasSubstr(" dd"));
  if (secrets_are_locked() && kCanLock) {
    EXPECT_THAT(vm_flags(secret.bytes().data()), HasSubstr(" lo"));
  }
}

TEST(Secret, IsWipedWhenFreed) {
  for (const std::size_t size : {64U, 1008U, 4096U}) {
    const std::uint8_t* where = nullptr;
    const SecretBytes neighbour(size);  // keeps the pages there
    {
      SecretBytes secret(size);
      std::fill(secret.bytes().begin(), secret.bytes().end(), std::uint8_t{0x5A});
      where = secret.bytes().data();
    }
    EXPECT_THAT(std::span(where, size), Each(Eq(0)));
    const SecretBytes again(size);
    EXPECT_THAT(again.bytes(), Each(Eq(0)));
  }
}

TEST(Secret, MovesAndLeavesNothingBehind) {
  SecretBytes a(std::array<std::uint8_t, 3>{1, 2, 3});
  SecretBytes b = std::move(a);
  EXPECT_EQ(a.size(), 0U);  // NOLINT(bugprone-use-after-move)
  EXPECT_EQ(b.size(), 3U);
  EXPECT_EQ(b.bytes()[2], 3);
  const std::uint8_t* where = b.bytes().data();
  SecretBytes c(std::array<std::uint8_t, 2>{9, 9});
  c = std::move(b);
  EXPECT_EQ(b.size(), 0U);  // NOLINT(bugprone-use-after-move)
  EXPECT_TRUE(b.bytes().empty());
  EXPECT_EQ(c.bytes().data(), where);
}

TEST(Secret, ComparesByContent) {
  const SecretBytes a(std::array<std::uint8_t, 3>{1, 2, 3});
  EXPECT_TRUE(a.equals(SecretBytes(std::array<std::uint8_t, 3>{1, 2, 3})));
  EXPECT_FALSE(a.equals(SecretBytes(std::array<std::uint8_t, 3>{1, 2, 4})));
  EXPECT_FALSE(a.equals(SecretBytes(std::array<std::uint8_t, 2>{1, 2})));
  EXPECT_TRUE(SecretBytes().equals(SecretBytes()));
}

TEST(Secret, RandomIsNeverTheSame) {
  EXPECT_FALSE(SecretBytes::random(32).equals(SecretBytes::random(32)));
  EXPECT_FALSE(SecretBytes::random(32).equals(SecretBytes(32)));
  EXPECT_EQ(SecretBytes::random(0).size(), 0U);
}

bool holds_only(std::span<const std::uint8_t> bytes, std::size_t value) {
  return std::all_of(bytes.begin(), bytes.end(), [value](std::uint8_t b) { return b == value; });
}

// Resident bytes of the process.
std::size_t resident() {
  std::ifstream statm("/proc/self/statm");
  std::size_t total = 0;
  std::size_t pages = 0;
  statm >> total >> pages;
  return pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

TEST(Secret, TakesNoMemoryUntilItIsWrittenAndGivesItBack) {
  constexpr std::size_t kCount = 20000;
  constexpr std::size_t kSize = 1024;
  std::vector<SecretBytes> secrets;
  secrets.reserve(kCount);
  const std::size_t before = resident();
  for (std::size_t i = 0; i < kCount; ++i) secrets.emplace_back(kSize);
  const std::size_t reserved = resident();
  for (SecretBytes& secret : secrets) secret.bytes()[0] = 1;
  const std::size_t written = resident();
  secrets.clear();
  const std::size_t freed = resident();
  EXPECT_LT(reserved - before, kCount * kSize / 4);
  EXPECT_GT(written - before, kCount * kSize * 3 / 4);
  EXPECT_LT(freed, before + kCount * kSize / 4);
}

TEST(Secret, ManyOverlapNowhere) {
  std::vector<SecretBytes> secrets;
  for (int round = 0; round < 3; ++round) {
    for (std::size_t i = 0; i < 500; ++i) {
      secrets.emplace_back(1 + i * 37 % 1500);
      const auto bytes = secrets.back().bytes();
      ASSERT_TRUE(holds_only(bytes, 0));
      std::fill(bytes.begin(), bytes.end(), static_cast<std::uint8_t>(secrets.size() % 255 + 1));
    }
    for (std::size_t i = 0; i < secrets.size(); ++i)
      ASSERT_TRUE(holds_only(secrets[i].bytes(), (i + 1) % 255 + 1)) << i;
    // Every second goes, and the marks are set anew for the places that are left.
    for (std::size_t i = 0; i < secrets.size() / 2; ++i) secrets[i] = std::move(secrets[2 * i]);
    secrets.erase(secrets.begin() + static_cast<std::ptrdiff_t>(secrets.size() / 2), secrets.end());
    for (std::size_t i = 0; i < secrets.size(); ++i)
      std::fill(secrets[i].bytes().begin(), secrets[i].bytes().end(),
                static_cast<std::uint8_t>((i + 1) % 255 + 1));
  }
}

TEST(Secret, ServesSeveralThreads) {
  std::array<int, 4> wrong{};
  std::vector<std::thread> threads;
  threads.reserve(wrong.size());
  for (std::size_t t = 0; t < wrong.size(); ++t)
    threads.emplace_back([&w = wrong[t], t] {
      const auto mark = static_cast<std::uint8_t>(t + 1);
      for (std::size_t i = 0; i < 5000; ++i) {
        SecretBytes secret(64 + i % 256);
        std::fill(secret.bytes().begin(), secret.bytes().end(), mark);
        w += std::count(secret.bytes().begin(), secret.bytes().end(), mark) !=
             static_cast<std::ptrdiff_t>(secret.size());
      }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_THAT(wrong, Each(0));
}

// In a process that may lock nothing: status 0 if secrets work all the same and it is told.
[[noreturn]] void use_secrets_without_memlock() {
  const rlimit none{0, 0};
  if (setrlimit(RLIMIT_MEMLOCK, &none) != 0) _exit(2);
  if (geteuid() == 0 && setresuid(65534, 65534, 65534) != 0) _exit(3);
  prctl(PR_SET_DUMPABLE, 1);  // a change of user closes /proc/self/smaps
  std::vector<SecretBytes> secrets;
  for (int i = 0; i < 100; ++i) secrets.emplace_back(4096);
  const SecretBytes large(100000);
  if (secrets_are_locked() && kCanLock) _exit(4);
  if (vm_flags(secrets.back().bytes().data()).find(" dd") == std::string::npos) _exit(5);
  if (vm_flags(large.bytes().data()).find(" dd") == std::string::npos) _exit(6);
  _exit(0);
}

TEST(Secret, WorksWhereNothingMayBeLocked) {
  EXPECT_EXIT(use_secrets_without_memlock(), ::testing::ExitedWithCode(0), "");
}

TEST(Wipe, Zeroes) {
  std::array<std::uint8_t, 40> bytes{};
  bytes.fill(0x5A);
  wipe(bytes);
  EXPECT_THAT(bytes, Each(Eq(0)));
  wipe({});
}

TEST(Initialise, MayBeRepeated) {
  EXPECT_NO_THROW(initialise());
  EXPECT_NO_THROW(initialise());
}

}  // namespace
}  // namespace espalier::crypto
