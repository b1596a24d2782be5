// A key leaves nothing behind: after it is gone, no writable page of the process holds it.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>

#include "ifaces/unique_fd.h"
#include "tests/unit/crypto/backend_case.h"
#include "tests/unit/crypto/vectors.h"

namespace espalier::crypto::testing {
namespace {

// Knows a key only masked, so that the search does not find the one who searches.
class Search {
 public:
  explicit Search(std::span<const std::uint8_t> key) : masked_(key.begin(), key.end()) {
    for (std::uint8_t& b : masked_) b ^= kMask;
  }

  // How often the key occurs in the writable memory of this process.
  [[nodiscard]] int count() {
    int found = 0;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      std::istringstream fields(line);
      std::uintptr_t begin = 0;
      std::uintptr_t end = 0;
      char dash = 0;
      std::string access;
      fields >> std::hex >> begin >> dash >> end >> access;
      // What a sanitizer reserves is huge, and no copy of anything.
      if (access.starts_with("rw") && end - begin < (std::size_t{1} << 30U))
        found += count_between(begin, end);
    }
    return found;
  }

 private:
  static constexpr std::uint8_t kMask = 0xA7;

  int count_between(std::uintptr_t begin, std::uintptr_t end) {
    int found = 0;
    // Windows overlap by one byte less than the key: nothing is missed or counted twice.
    const std::size_t step = window_.size() - masked_.size() + 1;
    for (std::uintptr_t at = begin; at < end; at += step) {
      const std::size_t wanted = std::min<std::size_t>(window_.size(), end - at);
      const ssize_t got = pread(memory_.get(), window_.data(), wanted, static_cast<off_t>(at));
      if (got > 0) found += count_in(std::span(window_).first(static_cast<std::size_t>(got)));
      wipe(window_);  // which is searched, too
    }
    return found;
  }

  [[nodiscard]] int count_in(std::span<const std::uint8_t> bytes) const {
    int found = 0;
    const auto same = [](std::uint8_t m, std::uint8_t b) { return (b ^ m) == kMask; };
    while (bytes.size() >= masked_.size()) {
      const void* first = std::memchr(bytes.data(), masked_.front() ^ kMask, bytes.size());
      if (first == nullptr) break;
      const auto* at = static_cast<const std::uint8_t*>(first);
      bytes = bytes.subspan(static_cast<std::size_t>(at - bytes.data()));
      if (bytes.size() < masked_.size()) break;
      found += std::equal(masked_.begin(), masked_.end(), bytes.begin(), same);
      bytes = bytes.subspan(1);
    }
    return found;
  }

  std::vector<std::uint8_t> masked_;
  std::vector<std::uint8_t> window_ = std::vector<std::uint8_t>(std::size_t{1} << 20U);
  ifaces::UniqueFd memory_{::open("/proc/self/mem", O_RDONLY | O_CLOEXEC)};
};

class KeyWipe : public OnEveryBackend {};

// The AES key schedule begins with the key itself, so the search finds what it has to lose. Half of
// a key is enough to look for, and the first half may be overwritten by what memory is used for
// when it is free. Of HMAC's key a backend may keep only what it made of it.
TEST_P(KeyWipe, LeavesNoKeyInMemory) {
  const SuiteInfo& s = info(suite());
  auto secret = std::make_unique<SecretBytes>(SecretBytes::random(s.keys()));
  const auto second_half = [](std::span<const std::uint8_t> key) {
    return key.last(key.size() / 2);
  };
  Search cipher(second_half(secret->bytes().first(s.key != 0 ? s.key : s.auth_key)));
  Search integrity(second_half(secret->bytes()));
  auto key = backend().expand(suite(), secret->bytes());

  for (const std::size_t batch : {1U, 20U}) {
    std::vector<Packet> packets;
    for (std::uint32_t i = 0; i < batch; ++i) packets.push_back(plain_packet(suite(), 64, i));
    std::vector<bool> good;
    seal(*key, packets, good);
    open(*key, packets, good);
    ASSERT_TRUE(std::all_of(good.begin(), good.end(), [](bool g) { return g; }));
  }

  const int kept = s.key != 0 ? 1 : 0;
  ASSERT_GE(cipher.count(), 1 + kept) << "the secret and the schedule";
  ASSERT_GE(integrity.count(), 1);
  secret.reset();
  EXPECT_GE(cipher.count(), kept) << "the schedule";
  key.reset();
  EXPECT_EQ(cipher.count(), 0);
  EXPECT_EQ(integrity.count(), 0);
}

INSTANTIATE_TEST_SUITE_P(Backends, KeyWipe, ::testing::ValuesIn(representative_cases()), case_name);

}  // namespace
}  // namespace espalier::crypto::testing
