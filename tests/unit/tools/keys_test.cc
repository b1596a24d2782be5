#include "tools/keys.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#include "ifaces/unique_fd.h"
#include "tests/unit/tools/temp_folder.h"
#include "tools/config.h"
#include "tools/keygen.h"

namespace espalier::tools {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

// Recognisable digits: no message may have four of them in a row.
const std::string kKeyIn = "00112233445566778899aabbccddeeff0123456789abcdef0123456789abcdef";
const std::string kKeyOut = "ffeeddccbbaa99887766554433221100fedcba9876543210fedcba9876543210";

// Lines 1 to 7.
std::vector<std::string> good_lines() {
  return {"suite = aes_gcm256",   "spi-in = 0x1a2b3c4d", "key-in = " + kKeyIn,
          "salt-in = 89abcdef",   "spi-out = 300",       "key-out = " + kKeyOut,
          "salt-out = 0x01234567"};
}

std::string join(const std::vector<std::string>& lines) {
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

std::string refusal(const std::string& text) {
  try {
    static_cast<void>(parse_keys(text, "t.keys"));
  } catch (const ConfigError& e) {
    const std::string what = e.what();
    EXPECT_EQ(what.find('\n'), std::string::npos) << what;
    EXPECT_NE(what.find("; "), std::string::npos) << what;
    for (const std::string& secret : {kKeyIn, kKeyOut})
      for (std::size_t i = 0; i + 4 <= secret.size(); ++i)
        EXPECT_EQ(what.find(secret.substr(i, 4)), std::string::npos) << what;
    return what;
  }
  return "";
}

std::string refusal_with(std::size_t line, const std::string& text) {
  std::vector<std::string> lines = good_lines();
  lines.at(line - 1) = text;
  return refusal(join(lines));
}

std::vector<std::uint8_t> copy(const crypto::SecretBytes& s) {
  return {s.bytes().begin(), s.bytes().end()};
}

TEST(Keys, ReadsEveryField) {
  const StaticKeys keys = parse_keys("# a comment\n\n  " + join(good_lines()), "t.keys");
  EXPECT_EQ(keys.suite, crypto::Suite::aes_gcm256);
  EXPECT_EQ(static_cast<std::uint32_t>(keys.spi_in), 0x1a2b3c4dU);
  EXPECT_EQ(static_cast<std::uint32_t>(keys.spi_out), 300U);
  ASSERT_EQ(keys.keymat_in.size(), 36U);
  const std::vector<std::uint8_t> in = copy(keys.keymat_in);
  EXPECT_EQ(in[1], 0x11);
  EXPECT_EQ(in[31], 0xef);
  EXPECT_EQ(in[32], 0x89);  // the salt follows the key (RFC 4106 §8.1)
  EXPECT_EQ(in[35], 0xef);
  EXPECT_EQ(copy(keys.keymat_out)[32], 0x01);
  EXPECT_EQ(keys.fingerprint.size(), 64U);
}

TEST(Keys, RenderedKeysReadBackTheSame) {
  for (const crypto::SuiteInfo& suite : crypto::suites()) {
    StaticKeys keys;
    keys.suite = suite.suite;
    keys.spi_in = dataplane::Spi{0xffffffff};
    keys.spi_out = dataplane::Spi{256};
    keys.keymat_in = crypto::SecretBytes::random(suite.keymat());
    keys.keymat_out = crypto::SecretBytes::random(suite.keymat());
    const crypto::SecretBytes text = render_keys(keys, "# for a test\n");
    const StaticKeys back =
        parse_keys({reinterpret_cast<const char*>(text.bytes().data()), text.size()}, "t.keys");
    EXPECT_EQ(back.suite, keys.suite);
    EXPECT_EQ(back.spi_in, keys.spi_in);
    EXPECT_EQ(back.spi_out, keys.spi_out);
    EXPECT_TRUE(back.keymat_in.equals(keys.keymat_in));
    EXPECT_TRUE(back.keymat_out.equals(keys.keymat_out));
    EXPECT_EQ(back.fingerprint, fingerprint_of(keys));
  }
}

// The state file must notice a change of anything that a nonce hangs on, and nothing else.
TEST(Keys, FingerprintCoversTheOutboundSide) {
  const auto fingerprint = [](std::size_t line, const std::string& text) {
    std::vector<std::string> lines = good_lines();
    if (line != 0) lines.at(line - 1) = text;
    return parse_keys(join(lines), "t.keys").fingerprint;
  };
  const std::string before = fingerprint(0, "");
  EXPECT_EQ(fingerprint(2, "spi-in = 999"), before);
  EXPECT_EQ(fingerprint(4, "salt-in = 00000000"), before);
  EXPECT_NE(fingerprint(5, "spi-out = 301"), before);
  EXPECT_NE(fingerprint(6, "key-out = " + kKeyIn), before);
  EXPECT_NE(fingerprint(7, "salt-out = 01234568"), before);
}

TEST(Keys, RefusesWithLineAndReason) {
  EXPECT_THAT(refusal_with(1, "suite = aes256"),
              AllOf(HasSubstr("t.keys:1: suite"), HasSubstr("write aes256-sha256")));
  EXPECT_THAT(refusal_with(1, "suite = aes256-sha1"), HasSubstr("auth-in is missing"));
  EXPECT_THAT(refusal_with(2, "spi-in = 255"), AllOf(HasSubstr("t.keys:2:"), HasSubstr("256")));
  EXPECT_THAT(refusal_with(2, "spi-in = 0x100000000"), HasSubstr("no 32-bit number"));
  EXPECT_THAT(refusal_with(2, "spi-in = -1"), HasSubstr("no 32-bit number"));
  EXPECT_THAT(refusal_with(3, "key-in = " + kKeyIn.substr(2)),
              AllOf(HasSubstr("t.keys:3: key-in has 62 hex digits"),
                    HasSubstr("64 hex digits (32 bytes)")));
  EXPECT_THAT(refusal_with(3, "key-in = " + kKeyIn + "00"), HasSubstr("66 hex digits"));
  EXPECT_THAT(refusal_with(3, "key-in = " + kKeyIn.substr(1) + "g"), HasSubstr("no hex digits"));
  EXPECT_THAT(refusal_with(3, "key-in = " + std::string(64, '0')), HasSubstr("one byte repeated"));
  EXPECT_THAT(refusal_with(3, "key-in = " + std::string(64, 'a')), HasSubstr("one byte repeated"));
  EXPECT_THAT(refusal_with(3, "key-in ="), HasSubstr("t.keys:3: key-in has no value"));
  EXPECT_THAT(refusal_with(4, "salt-in = 12345"), HasSubstr("8 hex digits (4 bytes)"));
  EXPECT_THAT(refusal_with(4, "# nothing"), HasSubstr("salt-in is missing"));
  EXPECT_THAT(refusal_with(4, "spi-in = 300"), HasSubstr("t.keys:4: spi-in is set a second time"));
  EXPECT_THAT(refusal_with(1, "suite = aes_gcm128"),
              AllOf(HasSubstr("t.keys:3: key-in has 64"), HasSubstr("32 hex digits (16 bytes)")));
  EXPECT_THAT(refusal(""), HasSubstr("suite is missing"));
  EXPECT_THAT(refusal(std::string(4097, '#')), HasSubstr("longer than"));
}

// What is in the wrong place may be a key.
TEST(Keys, NeverRepeatsWhatIsInTheFile) {
  EXPECT_THAT(refusal_with(3, kKeyIn), HasSubstr("t.keys:3: a line that is no setting"));
  EXPECT_THAT(refusal_with(3, kKeyIn + " = key-in"), HasSubstr("t.keys:3: an unknown name"));
  EXPECT_THAT(refusal_with(3, kKeyIn.substr(0, 6) + " = 5"),
              HasSubstr("t.keys:3: an unknown name"));
  EXPECT_THAT(refusal_with(1, "suite = " + kKeyIn), HasSubstr("t.keys:1: suite is no suite"));
  EXPECT_THAT(refusal_with(2, "spi-in = " + kKeyIn), HasSubstr("t.keys:2: spi-in"));
  EXPECT_THAT(refusal_with(3, "key_in = " + kKeyIn), HasSubstr("t.keys:3: an unknown name"));
}

// RFC 7296 §2.17: the cipher's key comes before that of the integrity algorithm.
TEST(Keys, OfEverySuite) {
  crypto::initialise();
  for (const crypto::SuiteInfo& s : crypto::suites()) {
    SCOPED_TRACE(s.name);
    StaticKeys keys;
    keys.suite = s.suite;
    keys.spi_in = dataplane::Spi{256};
    keys.spi_out = dataplane::Spi{257};
    keys.keymat_in = crypto::SecretBytes::random(s.keymat());
    keys.keymat_out = crypto::SecretBytes::random(s.keymat());
    const crypto::SecretBytes file = render_keys(keys, "");
    const std::string text(file.bytes().begin(), file.bytes().end());
    EXPECT_EQ(text.find("key-in") != std::string::npos, s.key != 0);
    EXPECT_EQ(text.find("auth-in") != std::string::npos, s.auth_key != 0);
    EXPECT_EQ(text.find("salt-in") != std::string::npos, s.salt != 0);
    if (s.key != 0 && s.auth_key != 0) {
      EXPECT_LT(text.find("key-in"), text.find("auth-in"));
    }
    const StaticKeys read = parse_keys(text, "t.keys");
    EXPECT_EQ(read.suite, s.suite);
    EXPECT_TRUE(read.keymat_in.equals(keys.keymat_in));
    EXPECT_TRUE(read.keymat_out.equals(keys.keymat_out));
  }
}

TEST(Keys, PartsThatTheSuiteHasNot) {
  std::vector<std::string> lines = good_lines();
  lines.push_back("auth-in = " + kKeyIn);
  EXPECT_THAT(refusal(join(lines)), HasSubstr("t.keys:8: auth-in is nothing that aes_gcm256 has"));
  lines[0] = "suite = aes256-sha256";
  lines.push_back("auth-out = " + kKeyIn);
  EXPECT_THAT(refusal(join(lines)), HasSubstr("t.keys:4: salt-in is nothing that aes256-sha256"));
  lines[3] = lines[6] = "";
  EXPECT_EQ(refusal(join(lines)), "");
  lines[7] = "auth-in = " + std::string(64, '0');
  EXPECT_THAT(refusal(join(lines)), HasSubstr("t.keys:8: auth-in is one byte repeated"));
}

// RFC 4106 §3.1: both directions count from 1, so the same key and salt would repeat every nonce.
TEST(Keys, TheSameKeyAndSaltInBothDirections) {
  std::vector<std::string> lines = good_lines();
  lines[5] = "key-out = " + kKeyIn;
  EXPECT_EQ(refusal(join(lines)), "");  // the salts differ, so the nonces do
  lines[6] = "salt-out = 89abcdef";
  EXPECT_THAT(refusal(join(lines)), HasSubstr("t.keys:6: both directions have the same key and"));
}

TEST(Keys, CutAndFlippedTextNeverDoesMoreThanThrow) {
  const std::string text = join(good_lines());
  for (std::size_t i = 0; i < text.size(); ++i) {
    static_cast<void>(refusal(text.substr(0, i)));
    std::string flipped = text;
    for (const int bit : {0x01, 0x10, 0x80}) {
      flipped[i] = static_cast<char>(text[i] ^ bit);
      static_cast<void>(refusal(flipped));
    }
  }
}

class KeyFile : public ::testing::Test {
 protected:
  std::string load(const std::string& name) const {
    try {
      static_cast<void>(load_keys(folder_.path() / name));
    } catch (const ConfigError& e) {
      return e.what();
    }
    return "";
  }
  TempFolder folder_;
};

TEST_F(KeyFile, OnlyForItsOwner) {
  for (const unsigned mode : {0600U, 0400U, 0700U}) {
    folder_.write("a.keys", join(good_lines()), mode);
    EXPECT_EQ(load("a.keys"), "") << std::oct << mode;
  }
  for (const unsigned mode : {0640U, 0620U, 0604U, 0610U, 0601U, 0666U}) {
    folder_.write("a.keys", join(good_lines()), mode);
    EXPECT_THAT(load("a.keys"), AllOf(HasSubstr("others may read"), HasSubstr("chmod 600")))
        << std::oct << mode;
  }
}

TEST_F(KeyFile, OfAnotherUser) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
  folder_.write("a.keys", join(good_lines()), 0600);
  ASSERT_EQ(::chown((folder_.path() / "a.keys").c_str(), 65534, 65534), 0);
  EXPECT_THAT(load("a.keys"), AllOf(HasSubstr("belongs to another user"), HasSubstr("chown 0")));
}

TEST_F(KeyFile, NoFileAtAll) {
  EXPECT_THAT(load("absent.keys"), HasSubstr("No such file"));
  EXPECT_THAT(load("."), HasSubstr("not a regular file"));
  ASSERT_EQ(::mkfifo((folder_.path() / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(load("fifo"), HasSubstr("not a regular file"));
  folder_.write("long.keys", std::string(5000, '#'), 0600);
  EXPECT_THAT(load("long.keys"), HasSubstr("longer than"));
}

// How often `masked`, with the mask taken off, occurs in the writable memory of this process. The
// mask keeps the search from finding itself.
constexpr std::uint8_t kMask = 0xa7;

int occurrences(const std::vector<std::uint8_t>& masked) {
  const ifaces::UniqueFd memory(::open("/proc/self/mem", O_RDONLY | O_CLOEXEC));
  constexpr std::size_t kLargest = std::size_t{1} << 30;  // beyond: what a sanitizer reserves
  std::vector<std::uint8_t> window(std::size_t{1} << 20);
  const std::size_t step = window.size() - masked.size() + 1;
  int found = 0;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    std::istringstream fields(line);
    std::uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::string access;
    fields >> std::hex >> begin >> dash >> end >> access;
    if (!access.starts_with("rw") || end - begin > kLargest) continue;
    for (std::uintptr_t at = begin; at < end; at += step) {
      const ssize_t n =
          ::pread(memory.get(), window.data(), std::min<std::size_t>(window.size(), end - at),
                  static_cast<off_t>(at));
      const auto last = window.begin() + std::max<ssize_t>(n, 0);
      const auto same = [](std::uint8_t a, std::uint8_t m) { return a == (m ^ kMask); };
      for (auto it = window.begin();
           (it = std::search(it, last, masked.begin(), masked.end(), same)) != last; ++it)
        ++found;
      std::fill(window.begin(), window.end(), std::uint8_t{0});  // which is searched, too
    }
  }
  return found;
}

TEST_F(KeyFile, NothingOfAKeyStaysInMemory) {
  // In a child, so that making the keys leaves no trace here.
  const std::filesystem::path file = folder_.path() / "k" / "left" / "tunnel.keys";
  const pid_t child = ::fork();
  if (child == 0) {
    KeygenRequest request;
    request.conn = "tunnel";
    request.left = "192.0.2.1";
    request.right = "192.0.2.2";
    request.leftsubnet = request.rightsubnet = "10.0.0.0/8";
    request.out = folder_.path() / "k";
    keygen(request);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);

  // The second half of key-in, as text and as bytes.
  std::vector<std::uint8_t> text, bytes;
  {
    std::array<char, 1024> all{};
    const ifaces::UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_GT(::read(fd.get(), all.data(), all.size() - 1), 0);
    const char* key = std::strstr(all.data(), "key-in = ");
    ASSERT_NE(key, nullptr);
    key += std::strlen("key-in = ") + 32;
    const auto digit = [](char c) { return c <= '9' ? c - '0' : c - 'a' + 10; };
    for (int i = 0; i < 32; ++i) text.push_back(static_cast<std::uint8_t>(key[i] ^ kMask));
    for (int i = 0; i < 32; i += 2)
      bytes.push_back(static_cast<std::uint8_t>((digit(key[i]) * 16 + digit(key[i + 1])) ^ kMask));
    ::explicit_bzero(all.data(), all.size());
  }
  ASSERT_EQ(occurrences(text), 0);
  {
    const StaticKeys keys = load_keys(file);
    EXPECT_GE(occurrences(bytes), 1);  // or the search finds nothing at all
    EXPECT_EQ(occurrences(text), 0);   // the text was needed for reading only
  }
  EXPECT_EQ(occurrences(bytes), 0);
}

}  // namespace
}  // namespace espalier::tools
