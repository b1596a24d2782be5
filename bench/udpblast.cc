// espalier_udpblast: UDP datagrams of one size, at full blast or at a given rate, and a sink that
// counts them. Batched system calls (sendmmsg, recvmmsg), no GSO and no GRO: what limits is the
// path, and every datagram is a packet of its own.
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "bench/load.h"

namespace espalier::bench {
namespace {

constexpr std::size_t kBatch = 64;
constexpr std::uint64_t kTickNs = 250'000;  // a paced sender wakes up 4000 times a second
constexpr std::uint64_t kSinkWakeNs = 100'000'000;
constexpr const char* kUsage =
    "espalier_udpblast sink ADDRESS PORT            count; a reading (JSON) per line on stdin\n"
    "espalier_udpblast send ADDRESS PORT [options]  send, then say how many (JSON)\n"
    "Example: espalier_udpblast send 10.0.0.2 7001 --size 64 --seconds 2 --rate 50000\n";

// The receiving thread writes, the main thread reads.
struct Counts {
  std::atomic<std::uint64_t> packets{0}, bytes{0};
};

void receive(const std::stop_token& stop, int fd, Counts& counts) {
  std::vector<std::uint8_t> memory(kBatch * 2048);  // longer datagrams are cut, and counted whole
  std::array<iovec, kBatch> iov;
  std::array<mmsghdr, kBatch> messages{};
  for (std::size_t i = 0; i < kBatch; ++i) {
    iov[i] = {memory.data() + i * 2048, 2048};
    messages[i].msg_hdr.msg_iov = &iov[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }
  while (!stop.stop_requested()) {
    const int n = ::recvmmsg(fd, messages.data(), kBatch, MSG_WAITFORONE | MSG_TRUNC, nullptr);
    if (n <= 0) continue;  // the receive timeout: look at `stop`
    std::uint64_t bytes = 0;
    for (int i = 0; i < n; ++i) bytes += messages[static_cast<std::size_t>(i)].msg_len;
    counts.packets.fetch_add(static_cast<std::uint64_t>(n), std::memory_order_relaxed);
    counts.bytes.fetch_add(bytes, std::memory_order_relaxed);
  }
}

int sink(const ifaces::Endpoint& local) {
  const auto fd = bound_udp(local);
  set_receive_timeout(fd.get(), kSinkWakeNs);
  Counts counts;
  const std::jthread receiver(
      [&](const std::stop_token& stop) { receive(stop, fd.get(), counts); });
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    const nlohmann::json reading{{"ns", now_ns()},
                                 {"packets", counts.packets.load(std::memory_order_relaxed)},
                                 {"bytes", counts.bytes.load(std::memory_order_relaxed)}};
    std::cout << reading << std::endl;
  }
  return 0;
}

struct Sent {
  std::uint64_t packets = 0, refused = 0;
};

// Up to `wanted` datagrams in one call. A full queue or a pending ICMP error refuses one of them.
void send_some(int fd, std::span<mmsghdr> messages, std::uint64_t wanted, Sent& sent) {
  const auto count = static_cast<unsigned>(std::min<std::uint64_t>(wanted, messages.size()));
  const int n = ::sendmmsg(fd, messages.data(), count, 0);
  if (n > 0) {
    sent.packets += static_cast<std::uint64_t>(n);
  } else if (errno == ENOBUFS || errno == ECONNREFUSED || errno == EAGAIN) {
    ++sent.refused;
  } else if (errno != EINTR) {
    throw std::system_error(errno, std::generic_category(), "sendmmsg");
  }
}

int send(const VerbArgs& args) {
  const auto size = args.options["size"].as<unsigned>();
  if (size == 0 || size > kMaxDatagram) throw std::invalid_argument("--size must be 1 to 65507");
  const double seconds = args.options["seconds"].as<double>();
  if (!(seconds > 0 && seconds <= 3600))
    throw std::invalid_argument("--seconds must be above 0 and at most 3600");
  const double rate = args.options["rate"].as<double>();
  if (!(rate >= 0 && rate <= 1e9)) throw std::invalid_argument("--rate must be 0 to 1e9");

  const auto fd = connected_udp(args.endpoint);
  std::vector<std::uint8_t> payload(size, 0x5a);
  std::array<iovec, kBatch> iov;
  std::array<mmsghdr, kBatch> messages{};
  for (std::size_t i = 0; i < kBatch; ++i) {
    iov[i] = {payload.data(), payload.size()};
    messages[i].msg_hdr.msg_iov = &iov[i];
    messages[i].msg_hdr.msg_iovlen = 1;
  }

  Sent sent;
  const std::uint64_t start = now_ns();
  const auto length_ns = static_cast<std::uint64_t>(seconds * 1e9);
  for (std::uint64_t passed = 0; passed < length_ns; passed = now_ns() - start) {
    std::uint64_t due = std::numeric_limits<std::uint64_t>::max();
    if (rate > 0) {
      // What was refused counts as done: a paced sender does not repeat it.
      due = static_cast<std::uint64_t>(rate * static_cast<double>(passed) / 1e9);
      if (due <= sent.packets + sent.refused) {
        sleep_until(start + passed + kTickNs);
        continue;
      }
    }
    send_some(fd.get(), messages, due - sent.packets - sent.refused, sent);
  }
  const double took = static_cast<double>(now_ns() - start) / 1e9;
  std::cout << nlohmann::json{{"sent", sent.packets}, {"refused", sent.refused}, {"seconds", took}}
            << std::endl;
  return 0;
}

int run(const VerbArgs& args) {
  if (args.verb == "sink") return sink(args.endpoint);
  if (args.verb == "send") return send(args);
  throw std::invalid_argument("no such command: " + args.verb);
}

}  // namespace
}  // namespace espalier::bench

int main(int argc, char** argv) {
  boost::program_options::options_description options("send options");
  options.add_options()("size", boost::program_options::value<unsigned>()->default_value(64),
                        "payload bytes")(
      "seconds", boost::program_options::value<double>()->default_value(1), "how long")(
      "rate", boost::program_options::value<double>()->default_value(0),
      "datagrams a second; 0: as many as the socket takes");
  return espalier::bench::run_verb(argc, argv, espalier::bench::kUsage, options,
                                   espalier::bench::run);
}
