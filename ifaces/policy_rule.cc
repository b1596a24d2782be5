#include "ifaces/policy_rule.h"

#include <linux/fib_rules.h>
#include <linux/rtnetlink.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/socket.h>

#include <cerrno>
#include <new>
#include <string>
#include <system_error>

// libnl's rtnl_rule does not know suppress_prefixlength, so the messages are made here.
namespace espalier::ifaces {

struct PolicyRules::Socket {
  struct Free {
    void operator()(nl_sock* s) const noexcept { nl_socket_free(s); }
  };
  std::unique_ptr<nl_sock, Free> handle{nl_socket_alloc()};
  int kernel_errno = 0;

  static int keep_errno(sockaddr_nl*, nlmsgerr* error, void* kept) {
    *static_cast<int*>(kept) = -error->error;
    return -nl_syserr2nlerr(error->error);
  }
};

namespace {

// The kernel removes the first rule that has what is asked for, whatever else it has: which things
// a rule names is part of it, here as the number of who made it. Those with a destination alone are
// as an administrator's own; routing daemons leave all of them alone.
constexpr std::uint8_t kFirstProtocol = 192;

std::uint8_t protocol_of(const PolicyRule& rule) {
  if (rule.to.length != 0 && rule.from.length == 0 && rule.protocol == 0 &&
      rule.source_ports.last == 0 && rule.destination_ports.last == 0 && !rule.own)
    return RTPROT_STATIC;
  unsigned named = 0;
  for (const bool has : {rule.to.length != 0, rule.from.length != 0, rule.protocol != 0,
                         rule.source_ports.last != 0, rule.destination_ports.last != 0, rule.own})
    named = 2 * named + (has ? 1 : 0);
  return static_cast<std::uint8_t>(kFirstProtocol + named);
}

std::string text(const PolicyRule& rule) {
  return "rtnetlink rule " + std::to_string(rule.priority) + " to " + rule.to.str();
}

}  // namespace

PolicyRules::PolicyRules() : socket_(std::make_unique<Socket>()) {
  if (!socket_->handle) throw std::bad_alloc();
  if (nl_connect(socket_->handle.get(), NETLINK_ROUTE) < 0)
    throw std::system_error(errno, std::generic_category(), "rtnetlink connect");
  nl_socket_modify_err_cb(socket_->handle.get(), NL_CB_CUSTOM, &Socket::keep_errno,
                          &socket_->kernel_errno);
}

PolicyRules::PolicyRules(PolicyRules&&) noexcept = default;
PolicyRules& PolicyRules::operator=(PolicyRules&&) noexcept = default;
PolicyRules::~PolicyRules() = default;

void PolicyRules::add(const PolicyRule& rule) {
  try {
    ask(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule, protocol_of(rule));
  } catch (const std::system_error& e) {
    if (e.code().value() != EEXIST) throw;
  }
}

void PolicyRules::remove(const PolicyRule& rule) {
  ask(RTM_DELRULE, 0, rule, protocol_of(rule));
}

void PolicyRules::remove_to_any(PolicyRule rule) {
  const std::uint8_t protocol = protocol_of(rule);
  rule.to.length = 0;
  ask(RTM_DELRULE, 0, rule, protocol);
}

void PolicyRules::remove_jump(std::uint32_t priority, std::uint32_t skip_to, Family family) {
  PolicyRule any;
  any.priority = priority;
  any.to.address = IpAddress::any(family);
  any.skip_to = skip_to;
  ask(RTM_DELRULE, 0, any, RTPROT_UNSPEC);
}

void PolicyRules::ask(int type, int flags, const PolicyRule& rule, std::uint8_t protocol) {
  struct Free {
    void operator()(nl_msg* m) const noexcept { nlmsg_free(m); }
  };
  const std::unique_ptr<nl_msg, Free> message(nlmsg_alloc_simple(type, flags));
  if (!message) throw std::bad_alloc();
  fib_rule_hdr header{};
  const Prefix to = rule.to.network();
  header.family = to.address.family == Family::v6 ? AF_INET6 : AF_INET;
  header.dst_len = to.length;
  header.src_len = rule.from.length;
  header.action = rule.table != 0 ? FR_ACT_TO_TBL : rule.skip_to != 0 ? FR_ACT_GOTO : FR_ACT_NOP;
  header.table = RT_TABLE_UNSPEC;  // FRA_TABLE has it: it may be above 255
  bool fits = nlmsg_append(message.get(), &header, sizeof header, NLMSG_ALIGNTO) == 0;
  const auto put = [&](int attribute, const void* data, std::size_t size) {
    fits = fits && nla_put(message.get(), attribute, static_cast<int>(size), data) == 0;
  };
  const auto put32 = [&](int attribute, std::uint32_t v) { put(attribute, &v, sizeof v); };
  put32(FRA_PRIORITY, rule.priority);
  if (rule.table != 0) put32(FRA_TABLE, rule.table);
  if (rule.skip_to != 0) put32(FRA_GOTO, rule.skip_to);
  put(FRA_PROTOCOL, &protocol, sizeof protocol);
  if (to.length != 0) put(FRA_DST, to.address.bytes.data(), to.address.size());
  if (rule.from.length != 0) put(FRA_SRC, rule.from.address.bytes.data(), to.address.size());
  if (rule.protocol != 0) put(FRA_IP_PROTO, &rule.protocol, sizeof rule.protocol);
  const auto put_ports = [&](int attribute, const PolicyRule::Ports& ports) {
    const fib_rule_port_range range{ports.first, ports.last};
    if (ports.last != 0) put(attribute, &range, sizeof range);
  };
  if (rule.own) put(FRA_IIFNAME, "lo", sizeof "lo");
  put_ports(FRA_SPORT_RANGE, rule.source_ports);
  put_ports(FRA_DPORT_RANGE, rule.destination_ports);
  if (rule.mark != 0) {
    put32(FRA_FWMARK, rule.mark);
    put32(FRA_FWMASK, 0xffffffff);
  }
  if (rule.suppress_length) put32(FRA_SUPPRESS_PREFIXLEN, *rule.suppress_length);
  if (!fits) throw std::bad_alloc();

  socket_->kernel_errno = 0;
  int error = nl_send_auto(socket_->handle.get(), message.get());
  if (error >= 0) error = nl_wait_for_ack(socket_->handle.get());
  if (error >= 0) return;
  throw std::system_error(socket_->kernel_errno != 0 ? socket_->kernel_errno : EIO,
                          std::generic_category(), text(rule));
}

}  // namespace espalier::ifaces
