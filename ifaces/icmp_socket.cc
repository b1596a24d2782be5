#include "ifaces/icmp_socket.h"

#include <linux/icmp.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <string>
#include <system_error>

namespace espalier::ifaces {
namespace {

template <typename T>
void set(int fd, int level, int option, const T& value, const char* name) {
  if (::setsockopt(fd, level, option, &value, sizeof value) != 0)
    throw std::system_error(errno, std::generic_category(), std::string("setsockopt ") + name);
}

}  // namespace

UniqueFd open_icmp(Family family, bool reports) {
  const bool v6 = family == Family::v6;
  UniqueFd fd(::socket(v6 ? AF_INET6 : AF_INET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC,
                       v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP));
  if (!fd)
    throw std::system_error(errno, std::generic_category(),
                            v6 ? "socket raw ICMPv6" : "socket raw ICMP");
  if (v6) {
    icmp6_filter filter;
    ICMP6_FILTER_SETBLOCKALL(&filter);
    if (reports) ICMP6_FILTER_SETPASS(ICMP6_PACKET_TOO_BIG, &filter);
    set(fd.get(), IPPROTO_ICMPV6, ICMP6_FILTER, filter, "ICMP6_FILTER");
  } else {
    icmp_filter filter{~(reports ? 1U << ICMP_DEST_UNREACH : 0U)};
    set(fd.get(), SOL_RAW, ICMP_FILTER, filter, "ICMP_FILTER");
  }
  return fd;
}

}  // namespace espalier::ifaces
