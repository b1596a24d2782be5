#include "bench/load.h"

#include <netinet/in.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <time.h>

#include <cerrno>
#include <charconv>
#include <iostream>
#include <stdexcept>
#include <system_error>
#include <vector>

namespace espalier::bench {
namespace {

namespace po = boost::program_options;

constexpr std::uint64_t kNsPerSecond = 1'000'000'000;
constexpr int kReceiveBuffer = 4 << 20;  // the sink is not what is measured

ifaces::UniqueFd open_udp(const ifaces::Endpoint& e) {
  const int family = e.address.family == ifaces::Family::v6 ? AF_INET6 : AF_INET;
  ifaces::UniqueFd fd(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, IPPROTO_UDP));
  if (!fd) throw std::system_error(errno, std::generic_category(), "socket UDP");
  // The forced option needs CAP_NET_ADMIN; the plain one is capped by net.core.rmem_max.
  if (::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof kReceiveBuffer) !=
      0)
    (void)::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &kReceiveBuffer, sizeof kReceiveBuffer);
  return fd;
}

// bind() and connect() want the generic address type: both start with the family (POSIX).
const sockaddr* generic(const sockaddr_storage& sa) noexcept {
  return static_cast<const sockaddr*>(static_cast<const void*>(&sa));
}

}  // namespace

std::uint64_t now_ns() noexcept {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * kNsPerSecond +
         static_cast<std::uint64_t>(ts.tv_nsec);
}

void sleep_until(std::uint64_t at_ns) noexcept {
  const timespec ts{static_cast<time_t>(at_ns / kNsPerSecond),
                    static_cast<long>(at_ns % kNsPerSecond)};
  while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, nullptr) == EINTR) {
  }
}

ifaces::Endpoint parse_endpoint(const std::string& address, const std::string& port) {
  const auto parsed = ifaces::IpAddress::parse(address);
  if (!parsed) throw std::invalid_argument("not an IP address: " + address);
  std::uint16_t number = 0;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  if (error != std::errc{} || end != port.data() + port.size() || number == 0)
    throw std::invalid_argument("not a port: " + port);
  return {*parsed, number};
}

ifaces::UniqueFd bound_udp(const ifaces::Endpoint& local) {
  auto fd = open_udp(local);
  sockaddr_storage sa{};
  const socklen_t length = local.to(sa);
  if (::bind(fd.get(), generic(sa), length) != 0)
    throw std::system_error(errno, std::generic_category(), "bind " + local.str());
  return fd;
}

ifaces::UniqueFd connected_udp(const ifaces::Endpoint& peer) {
  auto fd = open_udp(peer);
  sockaddr_storage sa{};
  const socklen_t length = peer.to(sa);
  if (::connect(fd.get(), generic(sa), length) != 0)
    throw std::system_error(errno, std::generic_category(), "connect " + peer.str());
  return fd;
}

void set_receive_timeout(int fd, std::uint64_t timeout_ns) {
  const timeval tv{static_cast<time_t>(timeout_ns / kNsPerSecond),
                   static_cast<suseconds_t>(timeout_ns % kNsPerSecond / 1000)};
  if (::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &tv, sizeof tv) != 0)
    throw std::system_error(errno, std::generic_category(), "setsockopt SO_RCVTIMEO");
}

int run_verb(int argc, char** argv, const char* usage, const po::options_description& options,
             int (*run)(const VerbArgs&)) {
  try {
    // The default slack of 50 µs is more than the gap between two datagrams.
    ::prctl(PR_SET_TIMERSLACK, 1UL);
    po::options_description all;
    all.add(options).add_options()("help,h", "this text")("words",
                                                          po::value<std::vector<std::string>>());
    po::positional_options_description words;
    words.add("words", -1);
    VerbArgs args;
    po::store(po::command_line_parser(argc, argv).options(all).positional(words).run(),
              args.options);
    po::notify(args.options);
    if (args.options.count("help") != 0) {
      std::cout << usage << options;
      return 0;
    }
    if (args.options.count("words") == 0) throw std::invalid_argument("no command given");
    const auto& given = args.options["words"].as<std::vector<std::string>>();
    if (given.size() != 3) throw std::invalid_argument("expected: VERB ADDRESS PORT");
    args.verb = given[0];
    args.endpoint = parse_endpoint(given[1], given[2]);
    return run(args);
  } catch (const po::error& e) {
    std::cerr << argv[0] << ": " << e.what() << "; see --help\n";
    return 2;
  } catch (const std::invalid_argument& e) {
    std::cerr << argv[0] << ": " << e.what() << "; see --help\n";
    return 2;
  } catch (const std::exception& e) {
    std::cerr << argv[0] << ": " << e.what() << '\n';
    return 1;
  }
}

}  // namespace espalier::bench
