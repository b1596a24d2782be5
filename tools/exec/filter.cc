#include "tools/exec/filter.h"

#include <linux/capability.h>
#include <linux/if_tunnel.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <seccomp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <initializer_list>
#include <memory>
#include <system_error>
#include <vector>

#include "tools/exec/process.h"

namespace espalier::tools {
namespace {

constexpr scmp_datum_t kIntMask = 0xffffffff;  // an int argument: the upper half means nothing

scmp_arg_cmp is(unsigned argument, std::uint64_t value) {
  return {argument, SCMP_CMP_MASKED_EQ, kIntMask, value};
}

void check(int result, const char* what) {
  if (result < 0) throw std::system_error(-result, std::generic_category(), what);
}

struct Release {
  void operator()(void* context) const noexcept { seccomp_release(context); }
};

void trap(void* context, int call, std::vector<scmp_arg_cmp> when) {
  check(seccomp_rule_add_array(context, SCMP_ACT_NOTIFY, call, static_cast<unsigned>(when.size()),
                               when.data()),
        "seccomp rule");
}

}  // namespace

ifaces::UniqueFd install_filter() {
  const std::unique_ptr<void, Release> context(seccomp_init(SCMP_ACT_ALLOW));
  if (!context) throw std::system_error(ENOMEM, std::generic_category(), "seccomp");
  // A program of another architecture goes on without us.
  check(seccomp_attr_set(context.get(), SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_ALLOW), "seccomp");
  // Without no_new_privs setuid programs go on working; who may do so is seccomp(2)'s.
  check(seccomp_attr_set(context.get(), SCMP_FLTATR_CTL_NNP, has_capability(CAP_SYS_ADMIN) ? 0 : 1),
        "seccomp");

  for (const int family : {NETLINK_XFRM, NETLINK_ROUTE})
    trap(context.get(), SCMP_SYS(socket),
         {is(0, AF_NETLINK), is(2, static_cast<unsigned>(family))});
  trap(context.get(), SCMP_SYS(bind), {});
  trap(context.get(), SCMP_SYS(getsockname), {});
  trap(context.get(), SCMP_SYS(setsockopt), {is(1, SOL_NETLINK)});
  for (const int option : {UDP_ENCAP, UDP_GRO})
    trap(context.get(), SCMP_SYS(setsockopt),
         {is(1, IPPROTO_UDP), is(2, static_cast<unsigned>(option))});
  trap(context.get(), SCMP_SYS(setsockopt), {is(1, IPPROTO_IP), is(2, IP_XFRM_POLICY)});
  trap(context.get(), SCMP_SYS(setsockopt), {is(1, IPPROTO_IPV6), is(2, IPV6_XFRM_POLICY)});
  for (const int call : {SCMP_SYS(sendmsg), SCMP_SYS(sendto), SCMP_SYS(write)})
    trap(context.get(), call,
         {{0, SCMP_CMP_MASKED_EQ, kIntMask & ~scmp_datum_t{kRouteCount - 1}, kRouteFirst}});
  for (const int request : {SIOCGETTUNNEL, SIOCADDTUNNEL, SIOCDELTUNNEL, SIOCCHGTUNNEL})
    trap(context.get(), SCMP_SYS(ioctl), {is(1, static_cast<unsigned>(request))});

  check(seccomp_load(context.get()), "seccomp filter");
  const int fd = seccomp_notify_fd(context.get());
  check(fd, "seccomp notification");
  const int copy = ::dup(fd);  // the context closes its own
  check(copy < 0 ? -errno : copy, "seccomp notification");
  return ifaces::UniqueFd(copy);
}

}  // namespace espalier::tools
