#include "tools/unix_listener.h"

#include <fcntl.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <cstring>
#include <vector>

#include "tests/unit/tools/temp_folder.h"
#include "tools/descriptors.h"

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;

constexpr gid_t kGroup = 61234;
constexpr uid_t kUser = 61235;

UniqueFd call(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path, path.c_str(), path.native().size());
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return {};
  return fd;
}

enum class May { nothing, ask, see_keys };

May said(const UnixListener::Caller& caller) {
  return caller.trusted ? May::see_keys : caller.allowed ? May::ask : May::nothing;
}

// A caller of another user, with `groups`; what the listener says of it. Empty: not even connected.
std::optional<May> other_user_may(UnixListener& listener, const std::filesystem::path& path,
                                  std::vector<gid_t> groups, gid_t first) {
  const pid_t child = ::fork();
  if (child == 0) {
    const bool changed = ::setgroups(groups.size(), groups.data()) == 0 &&
                         ::setresgid(first, first, first) == 0 &&
                         ::setresuid(kUser, kUser, kUser) == 0;
    ::_exit(changed && call(path) ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  if (status != 0) return std::nullopt;
  const auto caller = listener.accept();
  return caller ? std::optional(said(*caller)) : std::nullopt;
}

TEST(UnixListener, TheGroupAndNobodyElse) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  const TempFolder folder;
  ASSERT_EQ(::chmod(folder.path().c_str(), 0755), 0);
  const auto path = folder.path() / "s";
  UnixListener listener(path, SOCK_SEQPACKET, 4, "test", kGroup);
  struct stat st {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777U, 0660U);
  EXPECT_EQ(st.st_gid, kGroup);
  EXPECT_EQ(other_user_may(listener, path, {}, kGroup), May::ask);
  EXPECT_EQ(other_user_may(listener, path, {1, 2, kGroup}, kUser), May::ask);
  EXPECT_EQ(other_user_may(listener, path, {1, 2}, kUser), std::nullopt);
  // Whatever the file's mode says.
  ASSERT_EQ(::chmod(path.c_str(), 0666), 0);
  EXPECT_EQ(other_user_may(listener, path, {1, 2}, kUser), May::nothing);
}

TEST(UnixListener, NobodyElseCanLockTheFolderThatItMakes) {
  const TempFolder folder;
  const auto path = folder.path() / "made" / "s";
  const UnixListener listener(path, SOCK_SEQPACKET, 4, "test", {});
  struct stat st {};
  ASSERT_EQ(::stat(path.parent_path().c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777U, 0711U);
}

TEST(UnixListener, WithoutAGroupItIsRoots) {
  const TempFolder folder;
  const auto path = folder.path() / "s";
  UnixListener listener(path, SOCK_SEQPACKET, 4, "test", std::nullopt);
  struct stat st {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777U, 0600U);
  const UniqueFd caller = call(path);
  ASSERT_TRUE(caller);
  const auto accepted = listener.accept();
  ASSERT_TRUE(accepted);
  EXPECT_EQ(said(*accepted), May::see_keys);
}

// F18: who calls is turned away, not left to be reported for ever.
TEST(UnixListener, OutOfDescriptorsTheCallerIsTurnedAway) {
  const TempFolder folder;
  const auto path = folder.path() / "s";
  UnixListener listener(path, SOCK_SEQPACKET, 4, "test", std::nullopt);
  const UniqueFd caller = call(path);
  ASSERT_TRUE(caller);
  std::vector<UniqueFd> all;
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  const rlimit few{64, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  for (;;) {
    UniqueFd fd(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    if (!fd) break;
    all.push_back(std::move(fd));
  }
  EXPECT_FALSE(listener.accept());
  all.clear();
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  std::array<char, 1> byte{};
  EXPECT_EQ(::recv(caller.get(), byte.data(), byte.size(), 0), 0);
  EXPECT_FALSE(listener.accept());
}

TEST(Descriptors, GoAlongAndAreNotLost) {
  std::array<int, 2> pair{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair.data()), 0);
  const UniqueFd here(pair[0]), there(pair[1]);
  const std::array<char, 3> sent{'a', 'b', 'c'};
  ASSERT_EQ(send_with(here.get(), sent, here.get()), 3);
  ASSERT_EQ(send_with(here.get(), sent, -1), 3);
  std::array<char, 8> got{};
  std::vector<UniqueFd> descriptors;
  EXPECT_EQ(receive_with(there.get(), got, descriptors), 3);
  ASSERT_EQ(descriptors.size(), 1U);
  EXPECT_EQ(::fcntl(descriptors[0].get(), F_GETFD), FD_CLOEXEC);
  struct stat one {};
  struct stat other {};
  ASSERT_EQ(::fstat(descriptors[0].get(), &one), 0);
  ASSERT_EQ(::fstat(here.get(), &other), 0);
  EXPECT_EQ(one.st_ino, other.st_ino);
  descriptors.clear();
  EXPECT_EQ(receive_with(there.get(), got, descriptors), 3);
  EXPECT_TRUE(descriptors.empty());
}

}  // namespace
}  // namespace espalier::tools
