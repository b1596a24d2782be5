// What the load generators of bench/compare share: a clock, a UDP socket, and their command lines.
#pragma once

#include <sys/socket.h>

#include <boost/program_options.hpp>
#include <cstdint>
#include <string>

#include "ifaces/address.h"
#include "ifaces/unique_fd.h"

namespace espalier::bench {

inline constexpr std::size_t kMaxDatagram = 65507;  // UDP over IPv4

[[nodiscard]] std::uint64_t now_ns() noexcept;

// Sleeps until `at_ns` on the clock of now_ns(); returns at once if that is past.
void sleep_until(std::uint64_t at_ns) noexcept;

// "ADDRESS PORT" as given on a command line. Throws std::invalid_argument that names the word.
[[nodiscard]] ifaces::Endpoint parse_endpoint(const std::string& address, const std::string& port);

// Plain blocking UDP sockets, without GSO and GRO, so that every datagram is a packet of its own.
// Throw std::system_error.
[[nodiscard]] ifaces::UniqueFd bound_udp(const ifaces::Endpoint& local);
[[nodiscard]] ifaces::UniqueFd connected_udp(const ifaces::Endpoint& peer);
void set_receive_timeout(int fd, std::uint64_t timeout_ns);

// One command of a generator: "PROGRAM VERB ADDRESS PORT [options]". run_verb() fills these.
struct VerbArgs {
  std::string verb;
  ifaces::Endpoint endpoint;
  boost::program_options::variables_map options;
};

// Parses, calls `run`, and turns exceptions into one line and an exit status: 1 failed, 2 usage.
int run_verb(int argc, char** argv, const char* usage,
             const boost::program_options::options_description& options,
             int (*run)(const VerbArgs&));

}  // namespace espalier::bench
