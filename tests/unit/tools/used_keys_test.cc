#include "tools/used_keys.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <array>
#include <fstream>
#include <iterator>
#include <vector>

namespace espalier::tools {
namespace {

class UsedKeysTest : public testing::Test {
 protected:
  UsedKeysTest() {
    std::string name = testing::TempDir() + "used_keys.XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~UsedKeysTest() override { std::filesystem::remove_all(folder_); }

  static UsedKeys::Name name(std::uint8_t key) {
    const std::array<std::uint8_t, 20> keymat{key};
    return UsedKeys::name_of(keymat);
  }
  [[nodiscard]] std::filesystem::path file() const { return folder_ / "state" / "used-keys"; }

  std::filesystem::path folder_;
};

TEST_F(UsedKeysTest, T1TheNextDaemonKnowsThem) {
  UsedKeys first(file());
  first.add({name(1), name(2)});
  EXPECT_FALSE(first.is_from_before(name(1)));  // the data plane itself knows those
  UsedKeys second(file());
  EXPECT_TRUE(second.is_from_before(name(1)));
  EXPECT_TRUE(second.is_from_before(name(2)));
  EXPECT_FALSE(second.is_from_before(name(3)));
  second.add({name(1)});
  EXPECT_TRUE(second.is_from_before(name(1)));  // no SA has it, if adding one failed
  second.in_use({name(1)});
  EXPECT_FALSE(second.is_from_before(name(1)));
  EXPECT_TRUE(UsedKeys(file()).is_from_before(name(1)));
}

TEST_F(UsedKeysTest, ALineThatIsCutOffIsNone) {
  UsedKeys(file()).add({name(1)});
  std::ofstream(file(), std::ios::app) << name(2).substr(0, 9);
  UsedKeys(file()).add({name(3)});
  UsedKeys last(file());
  EXPECT_TRUE(last.is_from_before(name(1)));
  EXPECT_TRUE(last.is_from_before(name(3)));
  EXPECT_FALSE(last.is_from_before(name(2)));
}

TEST_F(UsedKeysTest, T1ADiskThatIsFullLosesNone) {
  UsedKeys keys(file());
  keys.add({name(1)});
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit full = before;
  full.rlim_cur = 40;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &full), 0);
  EXPECT_THROW(keys.add({name(2)}), std::runtime_error);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  keys.add({name(3)});
  EXPECT_EQ(std::filesystem::file_size(file()), 2 * 33U);
  UsedKeys next(file());
  EXPECT_TRUE(next.is_from_before(name(1)));
  EXPECT_FALSE(next.is_from_before(name(2)));
  EXPECT_TRUE(next.is_from_before(name(3)));
}

TEST_F(UsedKeysTest, T1WhatIsNoLineHidesNone) {
  UsedKeys(file()).add({name(1)});
  std::ofstream(file(), std::ios::app) << name(2).substr(0, 9) << name(3) << "\n"
                                       << std::string(40, '\0') << "\n"
                                       << name(4) << "\n";
  UsedKeys keys(file());
  for (const auto& kept : {name(1), name(3), name(4)}) EXPECT_TRUE(keys.is_from_before(kept));
  EXPECT_EQ(std::filesystem::file_size(file()), 3 * 33U);
}

TEST_F(UsedKeysTest, TheLastOnesStayWhenThereAreTooMany) {
  std::vector<UsedKeys::Name> many(UsedKeys::kMost, name(9));
  UsedKeys keys(file());
  keys.add({name(1)}, UsedKeys::Sync::later);
  keys.add(many, UsedKeys::Sync::later);
  keys.add({name(2)}, UsedKeys::Sync::later);
  keys.add(many, UsedKeys::Sync::later);
  const auto before = std::filesystem::file_size(file());
  keys.add({name(3)});
  EXPECT_LT(std::filesystem::file_size(file()), before);
  keys.add({name(4)});
  UsedKeys next(file());
  EXPECT_FALSE(next.is_from_before(name(1)));
  for (const auto& kept : {name(3), name(4), name(9)}) EXPECT_TRUE(next.is_from_before(kept));
}

TEST_F(UsedKeysTest, HoldsNoKeyAndIsPrivate) {
  UsedKeys(file()).add({name(0x41)});
  EXPECT_EQ(std::filesystem::status(file()).permissions(),
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  std::ifstream in(file());
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  EXPECT_EQ(text.size(), 33U);
  EXPECT_EQ(text.find("41000000"), std::string::npos);
}

TEST_F(UsedKeysTest, ForgetsTheOldest) {
  {
    UsedKeys(file()).add({name(1)});
    std::ofstream out(file(), std::ios::app);
    for (std::size_t i = 0; i < UsedKeys::kMost; ++i) out << std::string(32, 'f') << "\n";
  }
  UsedKeys keys(file());
  EXPECT_FALSE(keys.is_from_before(name(1)));
  EXPECT_EQ(std::filesystem::file_size(file()), UsedKeys::kMost * 33);
}

TEST_F(UsedKeysTest, SaysWhatToDoWhereItCannotWrite) {
  std::ofstream(folder_ / "state") << "a file where a folder should be";
  try {
    UsedKeys(file()).add({name(1)});
    ADD_FAILURE() << "no error";
  } catch (const std::runtime_error& e) {
    EXPECT_NE(std::string(e.what()).find("state-dir"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace espalier::tools
