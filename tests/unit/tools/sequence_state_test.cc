// The promise of SequenceState: no number is handed out twice, whatever happens to the process or
// the file; and where that cannot be kept it refuses.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <system_error>

#include "ifaces/unique_fd.h"
#include "tests/unit/tools/temp_folder.h"
#include "tools/config.h"
#include "tools/keys.h"

namespace espalier::tools {
namespace {

using std::filesystem::path;
using ::testing::AllOf;
using ::testing::HasSubstr;

const std::string kOwner(64, 'a');
const std::string kStranger(64, 'b');

class SequenceStateTest : public ::testing::Test {
 protected:
  [[nodiscard]] path file() const { return folder_.path() / "a.state"; }
  [[nodiscard]] path witness() const { return folder_.path() / "run" / "witness"; }

  void SetUp() override { SequenceState::create(file(), kOwner); }

  SequenceState open() { return SequenceState(file(), witness(), kOwner); }

  std::string refusal(const std::string& owner = kOwner) {
    try {
      const SequenceState state(file(), witness(), owner);
    } catch (const ConfigError& e) {
      EXPECT_NE(std::string(e.what()).find("; "), std::string::npos) << e.what();
      return e.what();
    }
    return "";
  }

  TempFolder folder_;
};

TEST_F(SequenceStateTest, StartsAtOneAndKeepsWhatWasReserved) {
  {
    SequenceState state = open();
    EXPECT_EQ(state.next(), 1U);
    EXPECT_EQ(state.received(), 0U);
    state.reserve(1000);
    EXPECT_EQ(state.next(), 1000U);
    state.reserve(500);  // already ours
    EXPECT_EQ(state.next(), 1000U);
    state.record_received(77);
    state.record_received(76);
    EXPECT_EQ(state.received(), 77U);
  }  // no close(): as after a crash
  SequenceState state = open();
  EXPECT_EQ(state.next(), 1000U);
  EXPECT_EQ(state.received(), 77U);
}

TEST_F(SequenceStateTest, CloseGivesBackWhatWasNotUsed) {
  open().reserve(1U << 20);
  {
    SequenceState state = open();
    state.reserve(1U << 21);
    state.close((1U << 20) + 5, 9);
    EXPECT_EQ(refusal(), "");  // unlocked, although it still lives
  }
  {
    SequenceState state = open();
    EXPECT_EQ(state.next(), (1U << 20) + 5);
    EXPECT_EQ(state.received(), 9U);
    state.close(1, 1);  // less than was used before this life began: not believed
  }
  EXPECT_EQ(open().next(), (1U << 20) + 5);
  EXPECT_EQ(open().received(), 9U);
}

TEST_F(SequenceStateTest, FilesAreForTheirOwnerOnly) {
  SequenceState state = open();
  state.reserve(10);
  for (const path& p : {file(), witness() / kOwner}) {
    struct stat status {};
    ASSERT_EQ(::stat(p.c_str(), &status), 0) << p;
    EXPECT_EQ(status.st_mode & 07777, 0600U) << p;
  }
}

TEST_F(SequenceStateTest, CreateOverwritesNothing) {
  open().reserve(1000);
  try {
    SequenceState::create(file(), kOwner);
    ADD_FAILURE() << "overwritten";
  } catch (const std::system_error& e) {
    EXPECT_EQ(e.code().value(), EEXIST);
  }
  EXPECT_EQ(open().next(), 1000U);
}

TEST_F(SequenceStateTest, MissingOrForeignOrDamaged) {
  EXPECT_THAT(refusal(kStranger), HasSubstr("belongs to other keys"));
  const std::string good = folder_.read("a.state");
  for (std::size_t i = 0; i < good.size(); ++i) {
    folder_.write("a.state", good.substr(0, i), 0600);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("is damaged"), HasSubstr("espalier keygen"))) << i;
    std::string flipped = good;
    flipped[i] = static_cast<char>(flipped[i] ^ 1);
    folder_.write("a.state", flipped, 0600);
    EXPECT_THAT(refusal(), HasSubstr("is damaged")) << i;
  }
  folder_.write("a.state", good + "x", 0600);
  EXPECT_THAT(refusal(), HasSubstr("is damaged"));
  folder_.write("a.state", std::string(100000, 'x'), 0600);
  EXPECT_THAT(refusal(), HasSubstr("is damaged"));
  std::filesystem::remove(file());
  EXPECT_THAT(refusal(), AllOf(HasSubstr("is missing"), HasSubstr("espalier keygen")));
  // Nothing was made for a state that is not there.
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(SequenceStateTest, WritableByOthersOrNoFile) {
  ASSERT_EQ(::chmod(file().c_str(), 0620), 0);
  EXPECT_THAT(refusal(), HasSubstr("others may change"));
  const path real = folder_.path() / "real.state";
  std::filesystem::rename(file(), real);
  ASSERT_EQ(::chmod(real.c_str(), 0600), 0);
  std::filesystem::create_symlink(real, file());
  EXPECT_THAT(refusal(), HasSubstr("cannot be used"));  // renaming would replace the link
  std::filesystem::remove(file());
  std::filesystem::create_directory(file());
  EXPECT_THAT(refusal(), HasSubstr("not a regular file"));
}

TEST_F(SequenceStateTest, ASecondDaemonIsRefused) {
  SequenceState first = open();
  EXPECT_THAT(refusal(), AllOf(HasSubstr("another espalierd"), HasSubstr("stop it first")));
  // Not even with a copy of the keys and the state elsewhere.
  std::filesystem::copy(file(), folder_.path() / "copy.state");
  EXPECT_THROW(SequenceState(folder_.path() / "copy.state", witness(), kOwner), ConfigError);
  first.reserve(10);
  EXPECT_THAT(refusal(), HasSubstr("another espalierd"));  // the lock outlives the replaced file
}

TEST_F(SequenceStateTest, ARestoredCopyIsFoundOut) {
  open().reserve(1000);
  const std::string backup = folder_.read("a.state");
  open().reserve(2000);
  folder_.write("a.state", backup, 0600);
  EXPECT_THAT(refusal(),
              AllOf(HasSubstr("older than what was handed out"), HasSubstr("make fresh keys")));
  EXPECT_EQ(folder_.read("a.state"), backup);  // looking changed nothing
  // Also after a clean stop gave numbers back.
  folder_.write("a.state", "", 0600);
  std::filesystem::remove(file());
  std::filesystem::remove_all(witness());
  SequenceState::create(file(), kOwner);
  const std::string fresh = folder_.read("a.state");
  {
    SequenceState state = open();
    state.reserve(5000);
    state.close(4000, 12);
  }
  EXPECT_EQ(open().next(), 4000U);
  folder_.write("a.state", fresh, 0600);
  EXPECT_THAT(refusal(), HasSubstr("older"));
}

TEST_F(SequenceStateTest, AWitnessOfAnEarlierBootSaysNothing) {
  open().reserve(1000);
  const std::string backup = folder_.read("a.state");
  open().reserve(2000);
  // As if the boot's id had changed: the line names another owner, and the check is made anew.
  path witness_file = witness() / kOwner;
  std::filesystem::remove(witness_file);
  SequenceState::create(witness_file, kOwner + " 00000000-0000-0000-0000-000000000000");
  folder_.write("a.state", backup, 0600);
  EXPECT_EQ(open().next(), 1000U);
  // A damaged one says that something is wrong.
  std::ofstream(witness_file, std::ios::trunc) << "espalier-state 1\n";
  EXPECT_THAT(refusal(), HasSubstr("is damaged"));
}

// A rolled-back file that lost only what was received must not let old packets in again.
TEST_F(SequenceStateTest, TheWitnessRemembersWhatWasReceived) {
  open().reserve(1000);
  const std::string backup = folder_.read("a.state");
  open().record_received(500);
  folder_.write("a.state", backup, 0600);
  EXPECT_EQ(open().received(), 500U);
}

TEST_F(SequenceStateTest, WhatAKilledWriterLeftIsNoObstacle) {
  open().reserve(1000);
  folder_.write("a.state.new", "half a fi", 0600);
  SequenceState state = open();
  EXPECT_EQ(state.next(), 1000U);
  state.reserve(2000);
  EXPECT_FALSE(std::filesystem::exists(folder_.path() / "a.state.new"));
}

TEST_F(SequenceStateTest, WithoutAPlaceForTheWitness) {
  folder_.write("run", "a file where a folder should be");
  EXPECT_THAT(refusal(), AllOf(HasSubstr("cannot be used"), HasSubstr("ours to write")));
}

// In a mount namespace of its own, so that nothing is left mounted. Runs `body` in a child, which
// exits 0 if it held, 77 if the machine does not let us.
template <typename Body>
int in_mount_namespace(const Body& body) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::unshare(CLONE_NEWNS) != 0 ||
        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0)
      ::_exit(77);
    try {
      ::_exit(body() ? 0 : 1);
    } catch (const std::exception& e) {  // must not go on with the parent's tests
      std::fprintf(stderr, "%s\n", e.what());
      ::_exit(2);
    }
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
}

int errno_of_reserve(SequenceState& state, std::uint64_t next) {
  try {
    state.reserve(next);
  } catch (const std::system_error& e) {
    return e.code().value();
  }
  return 0;
}

TEST_F(SequenceStateTest, DiskFullLeavesTheOldFileWhole) {
  const path disk = folder_.path() / "disk";
  std::filesystem::create_directory(disk);
  const int result = in_mount_namespace([&] {
    if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=16k") != 0) ::_exit(77);
    const path state_file = disk / "a.state";
    SequenceState::create(state_file, kOwner);
    SequenceState state(state_file, witness(), kOwner);
    state.reserve(1000);
    std::ofstream filler(disk / "filler", std::ios::binary);
    while (filler << std::string(4096, 'x') && filler.flush()) {
    }
    const bool refused = errno_of_reserve(state, 2000) == ENOSPC && state.next() == 1000;
    bool close_refused = false;
    try {
      state.close(900, 0);
    } catch (const std::system_error&) {
      close_refused = true;
    }
    filler.close();
    std::filesystem::remove(disk / "filler");
    const bool goes_on = errno_of_reserve(state, 3000) == 0 && state.next() == 3000;
    { const SequenceState gone = std::move(state); }  // unlocks
    const bool kept = SequenceState(state_file, witness(), kOwner).next() == 3000;
    return refused && close_refused && goes_on && kept;
  });
  if (result == 77) GTEST_SKIP() << "no mount namespace (needs root)";
  EXPECT_EQ(result, 0);
}

TEST_F(SequenceStateTest, ReadOnlyDiskRefuses) {
  const int result = in_mount_namespace([&] {
    const path disk = folder_.path() / "disk";
    std::filesystem::create_directory(disk);
    if (::mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=64k") != 0) ::_exit(77);
    const path state_file = disk / "a.state";
    SequenceState::create(state_file, kOwner);
    bool refused = false;
    {
      SequenceState state(state_file, witness(), kOwner);
      state.reserve(1000);
    }
    if (::mount(nullptr, disk.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr) != 0) ::_exit(77);
    try {
      const SequenceState state(state_file, witness(), kOwner);
    } catch (const ConfigError&) {
      refused = true;
    }
    if (::mount(nullptr, disk.c_str(), nullptr, MS_REMOUNT, nullptr) != 0) ::_exit(77);
    return refused && SequenceState(state_file, witness(), kOwner).next() == 1000;
  });
  if (result == 77) GTEST_SKIP() << "no mount namespace (needs root)";
  EXPECT_EQ(result, 0);
}

struct Range {
  std::uint64_t first, end;
};

// Reserves for ever, and reports each range before it would be used: what was reported may have
// been sent.
[[noreturn]] void reserve_until_killed(const path& file, const path& witness, int report,
                                       unsigned seed) {
  std::mt19937 random(seed);
  try {
    SequenceState state(file, witness, kOwner);
    for (;;) {
      const std::uint64_t first = state.next();
      const std::uint64_t end = first + 1 + random() % 1000;
      state.reserve(end);
      const bool stop = random() % 4 == 0;  // cleanly, with most of the range unused
      const Range used{first, stop ? first + 1 : end};
      if (::write(report, &used, sizeof used) != sizeof used) ::_exit(3);
      if (!stop) continue;
      state.close(used.end, 0);
      state = SequenceState(file, witness, kOwner);
    }
  } catch (const std::exception&) {
    ::_exit(4);
  }
}

TEST_F(SequenceStateTest, KilledFiftyTimesNoNumberIsHandedOutTwice) {
  constexpr unsigned kRounds = 50;
  std::mt19937 random(2024);
  std::uint64_t used_below = 1;  // every number below was perhaps used
  std::uint64_t ranges = 0;
  for (unsigned round = 0; round < kRounds; ++round) {
    int pipe_ends[2];
    ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
    ifaces::UniqueFd in(pipe_ends[0]), out(pipe_ends[1]);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0)
      reserve_until_killed(file(), witness(), out.get(), static_cast<unsigned>(random()));
    out.reset(-1);
    // Killed at a random moment behind a random number of reservations.
    const std::uint64_t wanted = 1 + random() % 4;
    const auto delay_us = static_cast<useconds_t>(random() % 3000);
    Range range{};
    for (std::uint64_t got = 0; ::read(in.get(), &range, sizeof range) == sizeof range;) {
      ++ranges;
      ASSERT_GT(range.end, range.first);
      ASSERT_GE(range.first, used_below) << "round " << round;
      used_below = range.end;
      if (++got == wanted) {
        ::usleep(delay_us);  // the moment of death is what is being varied
        ::kill(child, SIGKILL);
      }
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "round " << round << " exit " << WEXITSTATUS(status);
  }
  EXPECT_GE(ranges, kRounds);
  EXPECT_GE(open().next(), used_below);
}

}  // namespace
}  // namespace espalier::tools
