#include "crypto/registry.h"

#include <gmock/gmock.h>

#include <array>
#include <thread>

#include "tests/unit/crypto/backend_case.h"

namespace espalier::crypto::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

std::string error_of(std::string_view choice) {
  try {
    const Registry registry(choice);
  } catch (const std::runtime_error& e) {
    return e.what();
  }
  return "none";
}

// A real backend with one fault put in.
class Faulty final : public Backend {
 public:
  enum class Fault { none, seal, open, accepts_forgeries, leaves_forged_text, throws };

  Faulty(std::unique_ptr<Backend> real, Fault fault, Suite where)
      : real_(std::move(real)), fault_(fault), where_(where) {}

  [[nodiscard]] std::string_view name() const noexcept override { return "faulty"; }
  [[nodiscard]] bool supports(Suite suite) const noexcept override {
    return real_->supports(suite);
  }
  [[nodiscard]] std::unique_ptr<AeadKey> expand(Suite suite,
                                                std::span<const std::uint8_t> key) const override {
    const Fault fault = suite == where_ ? fault_ : Fault::none;
    if (fault == Fault::throws) throw std::runtime_error("no key today");
    return std::make_unique<Key>(real_->expand(suite, key), fault);
  }

 private:
  class Key final : public AeadKey {
   public:
    Key(std::unique_ptr<AeadKey> real, Fault fault) : real_(std::move(real)), fault_(fault) {}
    void seal(std::span<AeadOp> ops) const noexcept override {
      real_->seal(ops);
      if (fault_ == Fault::seal) ops.back().text[ops.back().text_len - 1] ^= 1;
    }
    void open(std::span<AeadOp> ops) const noexcept override {
      real_->open(ops);
      if (fault_ == Fault::open) ops.back().text[0] ^= 1;
      if (fault_ == Fault::accepts_forgeries) ops.back().good = true;
      if (fault_ == Fault::leaves_forged_text && !ops.back().good) ops.back().text[0] = 1;
    }
    [[nodiscard]] bool shareable() const noexcept override { return false; }

   private:
    std::unique_ptr<AeadKey> real_;
    Fault fault_;
  };

  std::unique_ptr<Backend> real_;
  Fault fault_;
  Suite where_;
};

TEST(KnownAnswers, HoldForEveryBackendThatRunsHere) {
  for (const char* name : {"ipsec-mb", "openssl", "sodium"}) {
    const auto backend = make_backend(name);
    if (backend) {
      EXPECT_TRUE(known_answers_hold(*backend)) << name;
    }
  }
}

TEST(KnownAnswers, FindAnyFaultInAnySuite) {
  using Fault = Faulty::Fault;
  EXPECT_TRUE(known_answers_hold(Faulty(make_backend("openssl"), Fault::none, suites()[0].suite)));
  for (const SuiteInfo& s : suites())
    for (const Fault fault : {Fault::seal, Fault::open, Fault::accepts_forgeries,
                              Fault::leaves_forged_text, Fault::throws})
      EXPECT_FALSE(known_answers_hold(Faulty(make_backend("openssl"), fault, s.suite)))
          << s.name << ", fault " << static_cast<int>(fault);
}

TEST(Registry, ChoosesIpsecMbBeforeOpenssl) {
  const Registry registry("auto");
  const auto first = make_backend("ipsec-mb");
  for (const SuiteInfo& s : suites()) {
    ASSERT_NE(registry.backend(s.suite), nullptr) << s.name;
    const bool has = first && first->supports(s.suite);
    EXPECT_EQ(registry.backend(s.suite)->name(), has ? "ipsec-mb" : "openssl") << s.name;
  }
}

TEST(Registry, ReportsAllInOrderOfPreference) {
  const Registry registry("auto");
  ASSERT_EQ(registry.reports().size(), 3U);
  const std::array<const char*, 3> names = {"ipsec-mb", "openssl", "sodium"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    const BackendReport& r = registry.reports()[i];
    EXPECT_EQ(r.name, names[i]);
    EXPECT_EQ(r.usable, make_backend(r.name) != nullptr) << r.name;
    EXPECT_FALSE(r.detail.empty()) << r.name;
  }
}

TEST(Registry, UsesOnlyTheForcedBackend) {
  const Registry registry("openssl");
  ASSERT_EQ(registry.reports().size(), 1U);
  EXPECT_EQ(registry.reports()[0].name, "openssl");
  for (const SuiteInfo& s : suites()) EXPECT_EQ(registry.backend(s.suite)->name(), "openssl");
}

TEST(Registry, GivesNoBackendForASuiteThatTheForcedOneLacks) {
  if (!make_backend("sodium")) GTEST_SKIP() << why_missing("sodium");
  const Registry registry("sodium");
  EXPECT_EQ(registry.backend(Suite::aes_gcm128), nullptr);
  EXPECT_EQ(registry.backend(Suite::aes_gcm192), nullptr);
  EXPECT_EQ(registry.backend(Suite::aes256_sha256), nullptr);
  ASSERT_NE(registry.backend(Suite::aes_gcm256), nullptr);
  EXPECT_EQ(registry.backend(Suite::aes_gcm256)->name(), "sodium");
}

TEST(Registry, SaysWhatToWriteInsteadOfAnUnknownChoice) {
  for (const char* choice : {"", "Auto", "ipsec_mb", "nss"}) {
    EXPECT_THAT(error_of(choice), HasSubstr("write auto, ipsec-mb, openssl or sodium"));
    EXPECT_THAT(error_of(choice), Not(HasSubstr("\n")));
  }
  EXPECT_THAT(error_of("nss"), HasSubstr("'nss'"));
}

TEST(Registry, SaysWhyAForcedBackendIsNotUsable) {
  if (make_backend("ipsec-mb") == nullptr) {
    EXPECT_THAT(error_of("ipsec-mb"), HasSubstr("write auto"));
  } else {
    EXPECT_EQ(error_of("ipsec-mb"), "none");
  }
}

TEST(Registry, IsReadByManyThreadsAtOnce) {
  const Registry registry("auto");
  std::array<int, 4> keys{};
  std::vector<std::thread> threads;
  threads.reserve(keys.size());
  for (int& count : keys)
    threads.emplace_back([&registry, &count] {
      for (int i = 0; i < 20; ++i)
        for (const SuiteInfo& s : suites()) {
          const std::vector<std::uint8_t> key(s.keys(), static_cast<std::uint8_t>(i));
          count += registry.backend(s.suite)->expand(s.suite, key) != nullptr;
        }
    });
  for (std::thread& t : threads) t.join();
  EXPECT_THAT(keys, ::testing::Each(20 * int{kSuiteCount}));
}

TEST(MakeBackend, GivesNothingForAnUnknownName) {
  EXPECT_EQ(make_backend("nss"), nullptr);
  EXPECT_EQ(make_backend("auto"), nullptr);
}

}  // namespace
}  // namespace espalier::crypto::testing
