#include "tools/keep.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <string>
#include <vector>

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;
using Kind = Keep::Kind;

std::vector<std::uint8_t> bytes(const std::string& text) {
  return {text.begin(), text.end()};
}

std::string text(const Keep::Record& record) {
  const auto from = record.bytes.bytes();
  return {from.begin(), from.end()};
}

// As somebody who holds it has it when the daemon is dead.
UniqueFd held(const Keep& keep) {
  return UniqueFd(::fcntl(keep.fd(), F_DUPFD_CLOEXEC, 0));
}

const auto kNothing = [] {};

TEST(Keep, TheNextOneFindsWhatIsThereInItsOrder) {
  UniqueFd memory;
  {
    Keep keep;
    ASSERT_NE(keep.put(Kind::state, bytes("late"), {7, 8, 9, 10, 300}), Keep::kNone);
    const Keep::Slot gone = keep.put(Kind::policy, bytes("gone"));
    ASSERT_NE(keep.put(Kind::state, bytes("early"), {1, 2, 3, 4, 200}), Keep::kNone);
    keep.erase(gone);
    ASSERT_NE(keep.put(Kind::device, bytes("vti01")), Keep::kNone);  // in the place of "gone"
    memory = held(keep);
  }
  Keep next;
  const auto records = next.adopt(std::move(memory), kNothing);
  ASSERT_EQ(records.size(), 3U);
  EXPECT_EQ(text(records[0]), "vti01");
  EXPECT_EQ(text(records[1]), "early");
  EXPECT_EQ(records[1].kind, Kind::state);
  EXPECT_EQ(text(records[2]), "late");
  EXPECT_EQ(records[2].numbers.limit, 7U);
  EXPECT_EQ(records[2].numbers.seen, 8U);
  // In use from now on: a number set is seen by the one after.
  next.set(records[2].slot, {70, 8, 9, 10, 300});
  next.erase(records[0].slot);
  Keep third;
  const auto again = third.adopt(held(next), kNothing);
  ASSERT_EQ(again.size(), 2U);
  EXPECT_EQ(again[1].numbers.limit, 70U);
}

TEST(Keep, NobodyGoesOnInAMemoryTwice) {
  Keep dead;
  ASSERT_NE(dead.put(Kind::state, bytes("a"), {}), Keep::kNone);
  Keep next;
  EXPECT_EQ(next.adopt(held(dead), kNothing).size(), 1U);
  EXPECT_TRUE(next.adopt(held(dead), kNothing).empty()) << "it is the one in use";
  Keep other;
  ASSERT_NE(other.put(Kind::state, bytes("b"), {}), Keep::kNone);
  bool moved = false;
  EXPECT_EQ(other
                .adopt(held(next),
                       [&] {
                         moved = true;
                         EXPECT_NE(other.put(Kind::state, bytes("b"), {}), Keep::kNone);
                       })
                .size(),
            1U);
  EXPECT_TRUE(moved);
}

TEST(Keep, WhatWasLeftIsEmptyAndRefused) {
  Keep first, old;
  ASSERT_NE(first.put(Kind::state, bytes("secret"), {}), Keep::kNone);
  const UniqueFd left = held(first);
  ASSERT_EQ(first.adopt(held(old), kNothing).size(), 0U);
  std::array<char, 4096> page{};
  ASSERT_EQ(::pread(left.get(), page.data(), page.size(), 0), ssize_t{page.size()});
  EXPECT_EQ(std::string(page.data(), page.size()).find("secret"), std::string::npos);
  Keep third;
  EXPECT_TRUE(third.adopt(UniqueFd(::fcntl(left.get(), F_DUPFD_CLOEXEC, 0)), kNothing).empty());
}

// What comes back may be anything.
TEST(Keep, StrangersMemoryIsRefusedAndLiesAreNotBelieved) {
  Keep keep;
  UniqueFd small(::memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  EXPECT_THROW(keep.adopt(std::move(small), kNothing), std::runtime_error);
  EXPECT_THROW(keep.adopt(UniqueFd(::open("/dev/zero", O_RDWR | O_CLOEXEC)), kNothing),
               std::runtime_error);
  Keep liar;
  ASSERT_NE(liar.put(Kind::state, bytes("a"), {}), Keep::kNone);
  ASSERT_NE(liar.put(Kind::state, bytes("b"), {}), Keep::kNone);
  const UniqueFd memory = held(liar);
  const auto lie = [&](off_t at, std::uint32_t value) {
    ASSERT_EQ(::pwrite(memory.get(), &value, sizeof value, at), ssize_t{sizeof value});
  };
  lie(8, 0xffffffff);   // as many slots as can be counted
  lie(2048 + 4, 4000);  // longer than its slot
  lie(4096 + 0, 99);    // of no kind
  EXPECT_NE(::ftruncate(memory.get(), 4096), 0) << "nobody can take pages away";
  EXPECT_TRUE(keep.adopt(UniqueFd(::fcntl(memory.get(), F_DUPFD_CLOEXEC, 0)), kNothing).empty());
}

TEST(Keep, WhatIsTooLongHasNoSlot) {
  Keep keep;
  EXPECT_EQ(keep.put(Kind::state, std::vector<std::uint8_t>(2001), {}), Keep::kNone);
  keep.erase(Keep::kNone);
  keep.set(Keep::kNone, {});
  EXPECT_EQ(keep.numbers(Keep::kNone).limit, 0U);
}

TEST(Keep, WhatIsErasedTwiceIsFreeOnce) {
  Keep keep;
  const Keep::Slot gone = keep.put(Kind::state, bytes("a"));
  keep.erase(gone);
  keep.erase(gone);
  EXPECT_NE(keep.put(Kind::state, bytes("b")), keep.put(Kind::state, bytes("c")));
}

}  // namespace
}  // namespace espalier::tools
