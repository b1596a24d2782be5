// espalier_rr: request/response latency over UDP. One datagram is under way at a time, both ends
// block in the kernel, so the figure holds what an application sees: two system calls and a wake-up
// on each side, and the tunnel between them.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <system_error>
#include <vector>

#include "bench/load.h"

namespace espalier::bench {
namespace {

constexpr std::uint64_t kReplyTimeoutNs = 200'000'000;
constexpr const char* kUsage =
    "espalier_rr serve ADDRESS PORT           answer every datagram with itself\n"
    "espalier_rr ping ADDRESS PORT [options]  round trips to such a server, as JSON\n"
    "Example: espalier_rr ping 10.0.0.2 7000 --seconds 2\n";

int serve(const ifaces::Endpoint& local) {
  const auto fd = bound_udp(local);
  std::cout << "ready" << std::endl;
  std::array<std::uint8_t, kMaxDatagram> buffer;
  for (;;) {
    sockaddr_storage peer{};
    iovec iov{buffer.data(), buffer.size()};
    msghdr message{};
    message.msg_name = &peer;
    message.msg_namelen = sizeof peer;
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    const auto n = ::recvmsg(fd.get(), &message, 0);
    if (n < 0) {
      if (errno == EINTR) continue;
      throw std::system_error(errno, std::generic_category(), "recvmsg");
    }
    iov.iov_len = static_cast<std::size_t>(n);
    // A reply that cannot be sent is a lost round trip, which the other side counts.
    (void)::sendmsg(fd.get(), &message, 0);
  }
}

// Waits for the reply that carries `seq`, passing over late ones. False: it did not come in time.
bool await_reply(int fd, std::uint64_t seq, std::span<std::uint8_t> buffer) {
  const std::uint64_t deadline = now_ns() + kReplyTimeoutNs;
  for (;;) {
    const auto n = ::recv(fd, buffer.data(), buffer.size(), 0);
    std::uint64_t got = 0;
    if (n >= static_cast<ssize_t>(sizeof got)) {
      std::memcpy(&got, buffer.data(), sizeof got);
      if (got == seq) return true;
    }
    if (now_ns() >= deadline) return false;
  }
}

std::uint64_t percentile(std::span<const std::uint64_t> sorted, unsigned percent) {
  return sorted[(sorted.size() - 1) * percent / 100];
}

int ping(const VerbArgs& args) {
  const auto size = args.options["size"].as<unsigned>();
  if (size < sizeof(std::uint64_t) || size > kMaxDatagram)
    throw std::invalid_argument("--size must be 8 to 65507");
  const double seconds = args.options["seconds"].as<double>();
  if (!(seconds > 0 && seconds <= 3600))
    throw std::invalid_argument("--seconds must be above 0 and at most 3600");
  const auto gap_ns = args.options["gap-us"].as<std::uint64_t>() * 1000;
  const auto fd = connected_udp(args.endpoint);
  set_receive_timeout(fd.get(), kReplyTimeoutNs);

  std::vector<std::uint8_t> request(size, 0x5a), reply(kMaxDatagram);
  std::vector<std::uint64_t> rtt_ns;
  rtt_ns.reserve(1 << 20);
  std::uint64_t lost = 0, seq = 0;
  const std::uint64_t end = now_ns() + static_cast<std::uint64_t>(seconds * 1e9);
  for (std::uint64_t at = now_ns(); at < end; at = now_ns()) {
    ++seq;
    std::memcpy(request.data(), &seq, sizeof seq);
    const bool sent = ::send(fd.get(), request.data(), request.size(), 0) >= 0;
    if (sent && await_reply(fd.get(), seq, reply)) {
      rtt_ns.push_back(now_ns() - at);
    } else {
      ++lost;
      if (!sent) sleep_until(at + kReplyTimeoutNs / 10);  // refused: not a loop that burns the CPU
    }
    if (gap_ns != 0) sleep_until(now_ns() + gap_ns);
  }

  nlohmann::json out{{"count", rtt_ns.size()}, {"lost", lost}};
  if (!rtt_ns.empty()) {
    std::ranges::sort(rtt_ns);
    const auto us = [](std::uint64_t ns) { return static_cast<double>(ns) / 1000; };
    out["min_us"] = us(rtt_ns.front());
    out["p50_us"] = us(percentile(rtt_ns, 50));
    out["p99_us"] = us(percentile(rtt_ns, 99));
    out["max_us"] = us(rtt_ns.back());
  }
  std::cout << out << std::endl;
  return rtt_ns.empty() ? 1 : 0;
}

int run(const VerbArgs& args) {
  if (args.verb == "serve") return serve(args.endpoint);
  if (args.verb == "ping") return ping(args);
  throw std::invalid_argument("no such command: " + args.verb);
}

}  // namespace
}  // namespace espalier::bench

int main(int argc, char** argv) {
  boost::program_options::options_description options("ping options");
  options.add_options()("seconds", boost::program_options::value<double>()->default_value(1),
                        "how long")(
      "gap-us", boost::program_options::value<std::uint64_t>()->default_value(0),
      "pause between two round trips")(
      "size", boost::program_options::value<unsigned>()->default_value(64), "payload bytes");
  return espalier::bench::run_verb(argc, argv, espalier::bench::kUsage, options,
                                   espalier::bench::run);
}
