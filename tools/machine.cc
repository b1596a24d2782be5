#include "tools/machine.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <fstream>
#include <system_error>

#include "crypto/registry.h"
#include "crypto/secret.h"
#include "ifaces/engine.h"
#include "ifaces/esp_socket.h"
#include "ifaces/tun.h"
#include "ifaces/unique_fd.h"

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;
using Verdict = Finding::Verdict;

std::string reason() {
  return std::generic_category().message(errno);
}

Finding kernel() {
  utsname name{};
  ::uname(&name);
  return {"kernel", Verdict::good,
          std::string(name.sysname) + " " + name.release + ", " + name.machine};
}

Finding tun_device() {
  const UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  if (fd) return {"/dev/net/tun", Verdict::good, "opens"};
  return {"/dev/net/tun", Verdict::missing,
          reason() + (errno == ENOENT ? "; load the tun module (modprobe tun), or give the "
                                        "container the device (--device /dev/net/tun)"
                                      : "; run as root, or with CAP_NET_ADMIN")};
}

std::uint64_t effective_capabilities() {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    if (word != "CapEff:") continue;
    std::uint64_t set = 0;
    file >> std::hex >> set;
    return set;
  }
  return 0;
}

Finding capability(const char* name, unsigned bit, Verdict without, const char* what_for) {
  const bool held = (effective_capabilities() >> bit & 1) != 0;
  return {name, held ? Verdict::good : without,
          held ? what_for : std::string("not held: ") + what_for};
}

Finding io_uring() {
  std::string why;
  try {
    const auto engine = ifaces::make_engine("io_uring", why);
    return {"io_uring", Verdict::good, engine->features()};
  } catch (const std::exception& e) {
    return {"io_uring", Verdict::without, std::string(e.what()) + "; epoll takes its place"};
  }
}

Finding tun_offloads() {
  try {
    const ifaces::TunOffloads offloads = ifaces::probe_tun_offloads();
    if (offloads.tso4 || offloads.tso6 || offloads.uso)
      return {"TUN offloads", Verdict::good, offloads.str()};
    return {"TUN offloads", Verdict::without, "none: every packet is read and written alone"};
  } catch (const std::exception& e) {
    return {"TUN offloads", Verdict::without, e.what()};
  }
}

Finding udp_gso() {
  try {
    const unsigned segments = ifaces::probe_udp_gso(*ifaces::IpAddress::parse("127.0.0.1"));
    if (segments != 0)
      return {"UDP GSO", Verdict::good, std::to_string(segments) + " segments a send"};
    return {"UDP GSO", Verdict::without, "not there: a system call's work for every packet"};
  } catch (const std::exception& e) {
    return {"UDP GSO", Verdict::without, e.what()};
  }
}

Finding raw_esp() {
  const UniqueFd fd(::socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_ESP));
  if (fd) return {"raw ESP", Verdict::good, "sockets of IP protocol 50 open"};
  return {"raw ESP", Verdict::without,
          reason() + "; use encapsulation=yes (ESP in UDP), or give CAP_NET_RAW"};
}

Finding kernel_esp() {
  const UniqueFd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_XFRM));
  return {"kernel XFRM", Verdict::good,
          fd ? "its netlink opens; espalierd uses none of it" : "not there, and not needed"};
}

void add_crypto(std::vector<Finding>& out) {
  crypto::initialise();
  try {
    const crypto::Registry registry("auto");
    for (const crypto::BackendReport& report : registry.reports())
      out.push_back({"crypto " + report.name, report.usable ? Verdict::good : Verdict::without,
                     report.detail});
  } catch (const std::exception& e) {
    out.push_back({"crypto", Verdict::missing, e.what()});
  }
}

Finding locked_memory() {
  rlimit limit{};
  ::getrlimit(RLIMIT_MEMLOCK, &limit);
  constexpr rlim_t kEnough = rlim_t{8} << 20;
  const bool unlimited =
      limit.rlim_max == RLIM_INFINITY || (effective_capabilities() >> CAP_IPC_LOCK & 1) != 0;
  if (unlimited) return {"locked memory", Verdict::good, "as much as is asked for"};
  return {"locked memory", limit.rlim_max >= kEnough ? Verdict::good : Verdict::without,
          std::to_string(limit.rlim_max >> 10) + " KiB (ulimit -l), for keys and rings"};
}

// A value of a sysctl, or nothing where it cannot be read.
std::string sysctl(const char* path) {
  std::ifstream file(path);
  std::string value;
  file >> value;
  return value;
}

Finding forwarding() {
  const bool v4 = sysctl("/proc/sys/net/ipv4/ip_forward") == "1";
  const bool v6 = sysctl("/proc/sys/net/ipv6/conf/all/forwarding") == "1";
  if (v4 && v6) return {"forwarding", Verdict::good, "IPv4 and IPv6"};
  return {"forwarding", v4 || v6 ? Verdict::good : Verdict::without,
          v4   ? "IPv4; for IPv6: sysctl net.ipv6.conf.all.forwarding=1"
          : v6 ? "IPv6; for IPv4: sysctl net.ipv4.ip_forward=1"
               : "off: this host talks, but carries nothing for others; a gateway needs "
                 "sysctl net.ipv4.ip_forward=1"};
}

Finding sysctls() {
  if (::access("/proc/sys/net/ipv4/conf/default/rp_filter", W_OK) == 0)
    return {"/proc/sys", Verdict::good, "can be written: rp_filter of the devices is set"};
  return {"/proc/sys", Verdict::without,
          "read-only: rp_filter (now " + sysctl("/proc/sys/net/ipv4/conf/all/rp_filter") +
              " for all) stays as it is, and 1 drops what comes from remote networks"};
}

std::string_view word(Verdict verdict) {
  switch (verdict) {
    case Verdict::good:
      return "ok";
    case Verdict::without:
      return "without";
    case Verdict::missing:
      return "missing";
  }
  return "";
}

}  // namespace

std::vector<Finding> examine_machine() {
  std::vector<Finding> out = {
      kernel(),
      tun_device(),
      capability("CAP_NET_ADMIN", CAP_NET_ADMIN, Verdict::missing,
                 "makes devices, addresses and routes"),
      capability("CAP_NET_RAW", CAP_NET_RAW, Verdict::without, "raw ESP; UDP works without"),
      io_uring(),
      tun_offloads(),
      udp_gso(),
      raw_esp(),
      kernel_esp(),
  };
  add_crypto(out);
  out.push_back(locked_memory());
  out.push_back(forwarding());
  out.push_back(sysctls());
  return out;
}

bool can_run(const std::vector<Finding>& findings) {
  return std::none_of(findings.begin(), findings.end(),
                      [](const Finding& f) { return f.verdict == Verdict::missing; });
}

nlohmann::json findings_json(const std::vector<Finding>& findings) {
  nlohmann::json list = nlohmann::json::array();
  for (const Finding& f : findings)
    list.push_back({{"subject", f.subject}, {"verdict", word(f.verdict)}, {"detail", f.detail}});
  return {{"version", ESPALIER_VERSION}, {"can_run", can_run(findings)}, {"findings", list}};
}

std::string findings_text(const std::vector<Finding>& findings) {
  std::size_t widest = 0;
  for (const Finding& f : findings) widest = std::max(widest, f.subject.size());
  std::string out;
  for (const Finding& f : findings) {
    std::string verdict(word(f.verdict)), subject = f.subject;
    verdict.resize(9, ' ');
    subject.resize(widest + 2, ' ');
    out += verdict + subject + f.detail + "\n";
  }
  return out + (can_run(findings)
                    ? "\nespalierd runs here.\n"
                    : "\nespalierd cannot run here until what is missing is there.\n");
}

}  // namespace espalier::tools
