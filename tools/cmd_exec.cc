#include <fcntl.h>
#include <linux/netlink.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <iostream>
#include <system_error>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/descriptors.h"
#include "tools/exec/filter.h"
#include "tools/exec/supervisor.h"

namespace espalier::tools {
namespace {

namespace po = boost::program_options;

constexpr Usage kUsage{
    "espalier exec [--control PATH] -- COMMAND [ARGUMENT…]",
    "Runs COMMAND so that it finds espalierd in the place of the kernel's IPsec: its NETLINK_XFRM\n"
    "sockets, its NAT-T sockets and its vti and xfrm devices are espalierd's. What COMMAND starts\n"
    "is served as well. The process stays the same, and so do its signals and its exit status.",
    "espalier exec -- /usr/sbin/charon-systemd\n"
    "  espalier exec -- ip xfrm state"};

constexpr int kChannel = 3;

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

ifaces::UniqueFd receive_fd(int channel) {
  std::array<char, 1> byte{};
  std::vector<ifaces::UniqueFd> descriptors;
  if (receive_with(channel, byte, descriptors) <= 0 || descriptors.empty()) return {};
  return std::move(descriptors.front());
}

// In a process of its own, which nobody waits for: it outlives COMMAND if something that COMMAND
// started does.
[[noreturn]] void supervise(int channel, const std::filesystem::path& control) {
  ::setsid();
  if (::chdir("/") != 0) ::_exit(kFailed);
  // Nothing of the caller's is kept open: a pipe of its would never end.
  if (channel != kChannel) ::dup2(channel, kChannel);
  channel = kChannel;
  ::close_range(kChannel + 1, ~0U, 0);
  const ifaces::UniqueFd null(::open("/dev/null", O_RDWR));
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(null.get(), fd);
  for (const int signal : {SIGINT, SIGHUP, SIGPIPE, SIGTERM}) ::signal(signal, SIG_IGN);
  ifaces::UniqueFd listener = receive_fd(channel);
  ::close(channel);
  if (!listener) ::_exit(kFailed);
  ::prctl(PR_SET_NAME, "espalier-exec");
  // Keys pass through.
  ::prctl(PR_SET_DUMPABLE, 0);
  const rlimit none{};
  ::setrlimit(RLIMIT_CORE, &none);
  // One for each socket of the command and each device that is held.
  rlimit files{};
  if (::getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
  }
  Supervisor(std::move(listener), control).run();
  ::_exit(kDone);
}

// Twice forked, so that COMMAND gets no child that it did not make.
void start_supervisor(const std::array<int, 2>& channel, const std::filesystem::path& control) {
  const pid_t child = ::fork();
  if (child < 0) fail("fork");
  if (child > 0) {
    while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
    }
    return;
  }
  if (::fork() != 0) ::_exit(kDone);
  ::close(channel[0]);
  supervise(channel[1], control);
}

// Under another `espalier exec`, whose supervisor goes on: there is one at most.
bool is_served() {
  const ifaces::UniqueFd socket(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM));
  int domain = 0;
  socklen_t length = sizeof domain;
  return socket && ::getsockopt(socket.get(), SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 &&
         domain == AF_UNIX;
}

void start_service(const std::filesystem::path& control) {
  std::array<int, 2> channel{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel.data()) != 0) fail("socketpair");
  start_supervisor(channel, control);
  ::close(channel[1]);
  {
    const ifaces::UniqueFd listener = install_filter();
    const std::array<char, 1> byte{};
    if (send_with(channel[0], byte, listener.get()) < 0) fail("sendmsg");
  }
  ::close(channel[0]);
}

}  // namespace

int run_exec(const std::vector<std::string>& words) {
  const auto dashes = std::find(words.begin(), words.end(), "--");
  po::options_description options("options");
  options.add_options()("control",
                        po::value<std::string>()->default_value(kDefaultControl.string()),
                        "the daemon's control socket");
  const auto values = parse_words({words.begin(), dashes}, kUsage, options);
  if (!values) return kDone;
  if (dashes == words.end() || dashes + 1 == words.end())
    throw UsageError("no command; write it behind --, as in: espalier exec -- ip xfrm state");
  const std::filesystem::path control =
      std::filesystem::absolute((*values)["control"].as<std::string>());
  static_cast<void>(ask(control, {{"op", "status"}}));  // one clear line if nobody is there
  if (!is_served()) start_service(control);

  std::vector<char*> arguments;
  for (auto word = dashes + 1; word != words.end(); ++word)
    arguments.push_back(const_cast<char*>(word->c_str()));
  arguments.push_back(nullptr);
  ::execvp(arguments.front(), arguments.data());
  throw std::system_error(errno, std::generic_category(), arguments.front());
}

}  // namespace espalier::tools
