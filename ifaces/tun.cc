#include "ifaces/tun.h"

#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <sys/ioctl.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace espalier::ifaces {
namespace {

// Linux 6.2; not in the headers of 6.1.
constexpr unsigned kTunUso4 = 0x20;
constexpr unsigned kTunUso6 = 0x40;

constexpr const char* kDevice = "/dev/net/tun";

[[noreturn]] void fail(const char* call, std::string_view name, int error) {
  std::string what = call;
  if (!name.empty()) what += " " + std::string(name);
  const bool on_device = std::strcmp(call, "open") == 0;
  switch (error) {
    case ENOENT:
    case ENODEV:
    case ENXIO:
      if (on_device)
        what +=
            " (no TUN driver here: mkdir -p /dev/net && mknod /dev/net/tun c 10 200, or in a "
            "container --device /dev/net/tun)";
      break;
    case EPERM:
    case EACCES:
      what += on_device ? " (not readable and writable for this user)"
                        : " (needs CAP_NET_ADMIN in this network namespace, or a user namespace "
                          "of one's own)";
      break;
    case EBUSY:
      what += " (the device is in use by another program, or was made without multi-queue)";
      break;
    case EINVAL:
      what += " (a device of this name exists and is no TUN of the same kind, or the name is bad)";
      break;
    default:
      break;
  }
  throw std::system_error(error, std::generic_category(), what);
}

UniqueFd open_device() {
  UniqueFd fd(::open(kDevice, O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd) fail("open", kDevice, errno);
  return fd;
}

unsigned flags_of(const TunOffloads& o) {
  return TUN_F_CSUM | (o.tso4 ? unsigned{TUN_F_TSO4} : 0U) | (o.tso6 ? unsigned{TUN_F_TSO6} : 0U) |
         (o.uso ? kTunUso4 | kTunUso6 : 0U);
}

bool takes(int fd, const TunOffloads& o) {
  return ::ioctl(fd, TUNSETOFFLOAD, static_cast<unsigned long>(flags_of(o))) == 0;
}

void attach_queue(int fd, const char* name, bool multi_queue) {
  ifreq request{};
  std::strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  request.ifr_flags =
      static_cast<short>(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | (multi_queue ? IFF_MULTI_QUEUE : 0));
  if (::ioctl(fd, TUNSETIFF, &request) != 0) fail("ioctl TUNSETIFF", name, errno);
}

}  // namespace

std::string TunOffloads::str() const {
  std::string s;
  if (tso4) s += "TSO4 ";
  if (tso6) s += "TSO6 ";
  if (uso) s += "USO ";
  if (s.empty()) return "none";
  s.pop_back();
  return s;
}

TunOffloads probe_tun_offloads(TunOffloads wanted) {
  const TunOffloads none{false, false, false};
  UniqueFd fd;
  try {
    fd = open_device();
    attach_queue(fd.get(), "espprobe%d", false);
  } catch (const std::system_error&) {
    return none;  // open_tun says why, with the name of the device that was wanted
  }
  TunOffloads best = none;
  // Each is tried on top of those that were taken: the kernel refuses a set as a whole, and USO
  // without TSO (tun.c, set_offload).
  for (bool TunOffloads::*bit : {&TunOffloads::tso4, &TunOffloads::tso6, &TunOffloads::uso}) {
    TunOffloads with = best;
    with.*bit = wanted.*bit;
    if (takes(fd.get(), with)) best = with;
  }
  return best;
}

UniqueFd open_tun(std::string_view name, bool multi_queue, TunOffloads offloads) {
  // '%' would be a pattern from which the kernel makes a name of its own.
  if (name.empty() || name.size() >= IFNAMSIZ || name.find('%') != std::string_view::npos)
    throw std::system_error(EINVAL, std::generic_category(),
                            "TUN device '" + std::string(name) + "' (1 to 15 characters, no %)");
  const std::string text(name);
  UniqueFd fd = open_device();
  attach_queue(fd.get(), text.c_str(), multi_queue);
  if (!takes(fd.get(), offloads)) fail("ioctl TUNSETOFFLOAD", name, errno);
  return fd;
}

UniqueFd hold_tun(std::string_view name) {
  const std::string text(name);
  UniqueFd fd = open_device();
  attach_queue(fd.get(), text.c_str(), true);
  ifreq request{};
  request.ifr_flags = IFF_DETACH_QUEUE;
  if (::ioctl(fd.get(), TUNSETQUEUE, &request) != 0) fail("ioctl TUNSETQUEUE", name, errno);
  return fd;
}

void set_carrier(int tun_fd, bool up, std::string_view name) {
  int value = up ? 1 : 0;
  if (::ioctl(tun_fd, TUNSETCARRIER, &value) != 0) fail("ioctl TUNSETCARRIER", name, errno);
}

}  // namespace espalier::ifaces
