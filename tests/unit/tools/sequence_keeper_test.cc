// Sequence numbers: always reserved on disk before they may be used.
#include "tools/sequence_keeper.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <array>
#include <csignal>

#include "tools/config.h"

namespace espalier::tools {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasSubstr;

constexpr std::uint64_t kTop = std::uint64_t{1} << 32;

class Keeper : public testing::Test {
 protected:
  void SetUp() override {
    std::array<char, 32> name{"/tmp/espalier-keeper-XXXXXX"};
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name.data();
    file_ = directory_ / "one.state";
    SequenceState::create(file_, owner_);
    ASSERT_EQ(::pipe(pipe_.data()), 0);
    log_.emplace(pipe_[1]);
  }
  void TearDown() override {
    for (const int fd : pipe_) ::close(fd);
    std::filesystem::remove_all(directory_);
  }

  SequenceState open() { return {file_, directory_ / "witness", owner_}; }
  SequenceKeeper keeper(bool esn) { return {open(), esn, "one", *log_}; }
  // What a restart would find as the first number.
  std::uint64_t on_disk() {
    const std::filesystem::path copy = directory_ / "copy.state";
    std::filesystem::copy_file(file_, copy, std::filesystem::copy_options::overwrite_existing);
    return SequenceState(copy, directory_ / "other-witness", owner_).next();
  }
  std::string logged() {
    std::array<char, 4096> text{};
    const ssize_t got = ::read(pipe_[0], text.data(), text.size());
    return {text.data(), static_cast<std::size_t>(std::max<ssize_t>(got, 0))};
  }

  const std::string owner_ = std::string(64, 'a');
  std::filesystem::path directory_, file_;
  std::array<int, 2> pipe_{};
  std::optional<Log> log_;
  const std::chrono::steady_clock::time_point start_{seconds(1000)};
};

TEST_F(Keeper, StartsWithNumbersThatAreReserved) {
  const SequenceKeeper k = keeper(true);
  EXPECT_EQ(k.first(), 1U);
  EXPECT_EQ(k.limit(), kReserveEsn);
  EXPECT_EQ(on_disk(), k.limit() + 1);
}

TEST_F(Keeper, ExtendsWhenLessThanHalfIsLeft) {
  SequenceKeeper k = keeper(false);
  EXPECT_FALSE(k.look(kReserveNoEsn / 2, 0, start_));
  EXPECT_TRUE(k.busy());
  EXPECT_EQ(k.limit(), kReserveNoEsn);
  const std::uint64_t next = kReserveNoEsn / 2 + 2;
  EXPECT_TRUE(k.look(next, 0, start_ + milliseconds(100)));
  EXPECT_EQ(k.limit(), next + kReserveNoEsn - 1);
  EXPECT_EQ(on_disk(), k.limit() + 1);
}

TEST_F(Keeper, AnIdleSaHasThreeQuartersInStock) {
  SequenceKeeper k = keeper(false);
  const std::uint64_t next = kReserveNoEsn / 4 + 2;
  EXPECT_FALSE(k.look(next, 0, start_));
  EXPECT_TRUE(k.look(next, 0, start_ + milliseconds(100)));
  EXPECT_FALSE(k.busy());
  EXPECT_FALSE(k.look(next, 0, start_ + milliseconds(200)));
}

TEST_F(Keeper, WithoutEsnItEndsAtTwoToThe32) {
  {
    SequenceState state = open();
    state.reserve(kTop - 10);
  }
  SequenceKeeper k = keeper(false);
  EXPECT_EQ(k.first(), kTop - 10);
  EXPECT_EQ(k.limit(), kTop - 1);
  EXPECT_FALSE(k.look(kTop, 0, start_));
  EXPECT_FALSE(k.look(kTop, 0, start_ + seconds(1)));
  EXPECT_EQ(k.limit(), kTop - 1);
}

TEST_F(Keeper, RefusesToStartWithNoNumberLeft) {
  {
    SequenceState state = open();
    state.reserve(kTop);
  }
  EXPECT_THROW(keeper(false), ConfigError);
  EXPECT_EQ(keeper(true).first(), kTop);  // with ESN there are more
}

TEST_F(Keeper, GivesBackWhatWasNotUsed) {
  SequenceKeeper k = keeper(true);
  k.close(77, 33);
  const SequenceKeeper again = keeper(true);
  EXPECT_EQ(again.first(), 77U);
  EXPECT_EQ(again.received(), 33U);
}

TEST_F(Keeper, ACrashWastesNumbersAndRepeatsNone) {
  { const SequenceKeeper killed = keeper(true); }
  EXPECT_EQ(keeper(true).first(), kReserveEsn + 1);
}

TEST_F(Keeper, RecordsWhatWasReceivedOnceASecond) {
  {
    SequenceKeeper k = keeper(true);
    k.look(1, 10, start_);
    k.look(1, 20, start_ + milliseconds(999));
  }
  EXPECT_EQ(keeper(true).received(), 10U);
  {
    SequenceKeeper k = keeper(true);
    k.look(kReserveEsn + 1, 20, start_);
    k.look(kReserveEsn + 1, 30, start_ + seconds(1));
  }
  EXPECT_EQ(keeper(true).received(), 30U);
}

TEST_F(Keeper, ADiskThatRefusesStopsTheSaAtItsLimitAndIsToldOnce) {
  SequenceKeeper k = keeper(false);
  const std::filesystem::path away = directory_.string() + "-away";
  std::filesystem::rename(directory_, away);
  const std::uint64_t next = kReserveNoEsn - 5;
  EXPECT_FALSE(k.look(next, 0, start_));
  EXPECT_FALSE(k.look(next, 0, start_ + milliseconds(100)));
  EXPECT_EQ(k.limit(), kReserveNoEsn);
  std::string text = logged();
  EXPECT_THAT(text, HasSubstr("sending stops at sequence number 1048576"));
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);

  std::filesystem::rename(away, directory_);
  EXPECT_TRUE(k.look(next, 0, start_ + milliseconds(200)));
  EXPECT_EQ(on_disk(), k.limit() + 1);
  EXPECT_THAT(logged(), HasSubstr("again"));
}

}  // namespace
}  // namespace espalier::tools
