#include "tools/running_conn.h"

#include <net/if.h>

#include <algorithm>
#include <fstream>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "dataplane/esp.h"
#include "ifaces/esp_socket.h"
#include "tools/config_values.h"

namespace espalier::tools {
namespace {

using dataplane::Encapsulation;
using ifaces::Family;

constexpr unsigned kEthernetMtu = 1500;
constexpr unsigned kMinMtu4 = 68;    // RFC 791 §3.2: what every IPv4 module forwards whole
constexpr unsigned kMinMtu6 = 1280;  // RFC 8200 §5: below it a device carries no IPv6

ifaces::IpAddress default_route_address(const Conn& conn, Side own, ifaces::Netlink& netlink) {
  const Family family = remote_address(conn, own).family;
  const auto source = netlink.default_source(family == Family::none ? Family::v4 : family);
  if (!source)
    throw ConfigError(conn.where +
                      ": %defaultroute, but there is no default route; write the "
                      "address of this host");
  return *source;
}

std::vector<std::string> written(const Conn& conn, Side side, const std::vector<Subnet>& subnets) {
  std::vector<std::string> out;
  out.reserve(subnets.size());
  for (const Subnet& subnet : subnets) out.push_back(str(conn, side, subnet));
  return out;
}

// What a conn says of one of its ends.
std::string written(const Conn& conn, Side side) {
  const bool left = side == Side::left;
  if (left ? conn.left_is_default_route : conn.right_is_default_route) return "%defaultroute";
  const ifaces::IpAddress& address = left ? conn.left : conn.right;
  return address.is_any() ? "%any" : address.str();
}

Ipv6Use ipv6_use(const Compiled& compiled) {
  const ifaces::IpAddress reports = *ifaces::IpAddress::parse("ff02::16");
  Ipv6Use out = Ipv6Use::none;
  for (const dataplane::PolicySpec& policy : compiled.policies) {
    if (policy.selector.source.address.family != Family::v6) continue;
    if (policy.selector.destination.contains(reports)) return Ipv6Use::multicast;
    out = Ipv6Use::unicast;
  }
  return out;
}

// The kernel asks without a mark whether a source address fits the device that its packet came
// through (fib_validate_source), and hears that the peer is behind the tunnel.
bool strict_reverse_path(const std::string& device) {
  const auto value = [](const std::string& name) {
    std::ifstream file("/proc/sys/net/ipv4/conf/" + name + "/rp_filter");
    int number = 0;
    file >> number;
    return number;
  };
  return std::max(value("all"), value(device)) == 1;  // 2 is the loose check
}

}  // namespace

bool ConnIdentity::operator==(const ConnIdentity& other) const noexcept {
  return conn == other.conn && local == other.local && fingerprint == other.fingerprint &&
         spi_in == other.spi_in && state_file == other.state_file &&
         keymat_in.equals(other.keymat_in);
}

ConnStatus describe(const Conn& conn) {
  ConnStatus out;
  out.name = conn.name;
  out.action = conn.action;
  out.device = conn.vti_interface.empty() ? std::string(kDefaultDevice) : conn.vti_interface;
  out.left = written(conn, Side::left);
  out.right = written(conn, Side::right);
  out.leftsubnet = written(conn, Side::left, conn.leftsubnet);
  out.rightsubnet = written(conn, Side::right, conn.rightsubnet);
  out.mark_in = str(conn.mark_in);
  out.mark_out = str(conn.mark_out);
  out.encapsulation = conn.encapsulation;
  out.esp = conn.esp;
  return out;
}

PreparedConn prepare(const Conn& conn, const Globals& globals, ifaces::Netlink& netlink,
                     std::uint32_t reqid) {
  PreparedConn out;
  out.own = orient(conn, [&netlink](const ifaces::IpAddress& a) { return netlink.is_local(a); });
  if (local_is_default_route(conn, out.own))
    out.identity.local = default_route_address(conn, out.own, netlink);
  out.identity.conn = conn;
  out.identity.conn.where.clear();
  if (conn.action != dataplane::PolicyAction::protect) {
    out.compiled = compile(conn, out.own, {}, {}, reqid);
    return out;
  }
  StaticKeys keys = load_keys(conn.keys);
  out.identity.fingerprint = keys.fingerprint;
  out.identity.spi_in = keys.spi_in;
  out.identity.keymat_in = crypto::SecretBytes(std::as_const(keys.keymat_in).bytes());
  out.identity.state_file = state_file(conn, globals);
  out.compiled = compile(conn, out.own, out.identity.local, std::move(keys), reqid);
  return out;
}

std::unique_ptr<SequenceKeeper> open_keeper(const ConnIdentity& identity, const Log& log) {
  return std::make_unique<SequenceKeeper>(
      SequenceState(identity.state_file, kWitnessDir, identity.fingerprint), identity.conn.esn,
      identity.conn.name, log);
}

RunningConn::RunningConn(const Site& site, PreparedConn prepared)
    : site_(site),
      identity_(std::move(prepared.identity)),
      reqid_(prepared.compiled.sa_out.reqid),
      device_spec_(prepared.compiled.device),
      local_(prepared.compiled.sa_out.local),
      peer_(prepared.compiled.sa_out.peer) {
  if (prepared.keeper)
    keeper_ = std::move(prepared.keeper);
  else if (prepared.compiled.has_sas)
    keeper_ = open_keeper(identity_, site.log);
  try {
    bring_up(std::move(prepared.compiled));
  } catch (...) {
    take_down();
    throw;
  }
  since_ = std::chrono::steady_clock::now();
}

RunningConn::~RunningConn() {
  take_down();
}

void RunningConn::bring_up(Compiled compiled) {
  if (compiled.uses_device)
    device_ = site_.devices.lease(compiled.device, derive_mtu(compiled), compiled.addresses,
                                  ipv6_use(compiled));
  for (const dataplane::PolicySpec& policy : compiled.policies)
    policies_.push_back(site_.dataplane.add_policy(policy));
  if (compiled.has_sas) {
    compiled.sa_in.next_seq = keeper_->received() + 1;
    in_ = site_.dataplane.add_sa(std::move(compiled.sa_in));
    compiled.sa_out.next_seq = keeper_->first();
    compiled.sa_out.seq_limit = keeper_->limit();
    out_ = site_.dataplane.add_sa(std::move(compiled.sa_out));
  }
  if (compiled.uses_device) device_.add_routes(compiled.routes);
  if (!compiled.unmarked_routes.empty()) {
    warn_of_strict_reverse_path();
    device_.add_unmarked_routes(compiled.unmarked_routes, compiled.sa_out.outer_mark);
  }
}

void RunningConn::warn_of_strict_reverse_path() const {
  if (peer_.address.is_any() || peer_.address.family != Family::v4) return;
  std::string towards;
  try {
    towards = site_.netlink.route_device(peer_.address);
  } catch (const std::system_error&) {
    return;  // no route yet, so no device to speak of
  }
  if (strict_reverse_path(towards))
    site_.log.warning("conn " + identity_.conn.name +
                      ": rp_filter is 1, and would drop what comes from the peer; write "
                      "sysctl -w net.ipv4.conf." +
                      towards + ".rp_filter=2");
}

void RunningConn::take_down() noexcept {
  const std::function<void()> close = stop();
  if (close) close();
}

std::function<void()> RunningConn::stop() noexcept {
  try {
    // Without its policies no packet finds the SA any more: its number is the last word.
    for (const dataplane::PolicyId policy : policies_) site_.dataplane.remove_policy(policy);
    policies_.clear();
    const auto out = out_ ? site_.dataplane.sa(*out_) : std::nullopt;
    const auto in = in_ ? site_.dataplane.sa(*in_) : std::nullopt;
    // An SA that somebody else removed took its number along: what was reserved stays used, as
    // after a crash.
    const bool known = out.has_value() == out_.has_value() && in.has_value() == in_.has_value();
    if (out_) site_.dataplane.remove_sa(*out_);
    if (in_) site_.dataplane.remove_sa(*in_);
    out_.reset();
    in_.reset();
    device_.release();
    if (!keeper_ || stopped_) return {};
    stopped_ = true;
    if (!known) return {};
    return [this, next = out ? out->seq : keeper_->first(),
            received = in ? in->seq : keeper_->received()] { keeper_->close(next, received); };
  } catch (const std::exception& e) {
    // Numbers that were not given back stay used: wasted, never repeated.
    site_.log.error("conn " + identity_.conn.name + ": " + e.what());
    stopped_ = true;
    return {};
  }
}

unsigned RunningConn::derive_mtu(const Compiled& compiled) const {
  const auto& sa = compiled.sa_out;
  const std::string& name = identity_.conn.name;
  if (!compiled.has_sas) return kEthernetMtu;  // no word of it: the other conns decide
  unsigned mtu = 0;
  if (compiled.mtu) {
    mtu = *compiled.mtu;
  } else {
    unsigned outer = kEthernetMtu;
    if (!sa.peer.address.is_any()) {
      try {
        outer = ifaces::outer_mtu(sa.local.address, sa.peer.address);
      } catch (const std::system_error& e) {
        site_.log.warning("conn " + name + ": " + e.what() + "; the MTU is that of a path of " +
                          std::to_string(outer) + " bytes");
      }
    }
    mtu = static_cast<unsigned>(dataplane::inner_mtu(crypto::info(sa.suite), outer,
                                                     sa.local.address.family == Family::v6,
                                                     sa.encapsulation == Encapsulation::udp));
    if (mtu < kMinMtu4)
      throw std::runtime_error("conn " + name + ": a path of " + std::to_string(outer) +
                               " bytes leaves no room for a tunnel; raise the MTU of the device "
                               "towards the peer");
  }
  if (mtu < kMinMtu6 && ipv6_use(compiled) != Ipv6Use::none)
    site_.log.warning("conn " + name + ": an MTU of " + std::to_string(mtu) +
                      " is less than the 1280 that IPv6 needs");
  return mtu;
}

void RunningConn::look(std::chrono::steady_clock::time_point now) {
  if (!keeper_) return;
  const auto out = site_.dataplane.sa(*out_);
  const auto in = site_.dataplane.sa(*in_);
  if (!out || !in) return;
  if (keeper_->look(out->seq, in->seq, now)) site_.dataplane.extend_limit(*out_, keeper_->limit());
}

bool RunningConn::device_is_gone() const {
  return device_.held() && ::if_nametoindex(device_spec_.name.c_str()) == 0;
}

ConnStatus RunningConn::status() const {
  ConnStatus out = describe(identity_.conn);
  out.up = true;
  out.mtu = device_.mtu();
  out.reqid = reqid_;
  out.since = since_;
  return out;
}

std::string RunningConn::summary() const {
  if (!keeper_)
    return std::to_string(policies_.size()) +
           (identity_.conn.action == dataplane::PolicyAction::bypass ? " bypass" : " discard") +
           (policies_.size() == 1 ? " policy" : " policies");
  const bool udp = identity_.conn.encapsulation == Encapsulation::udp;
  const auto end = [udp](const ifaces::Endpoint& e) {
    if (e.address.is_any()) return std::string("%any");
    return udp ? e.str() : e.address.str();
  };
  return end(local_) + " <=> " + end(peer_) + (udp ? ", ESP in UDP, " : ", ESP, ") +
         std::string(crypto::info(identity_.conn.esp).name) + ", device " + device_spec_.name +
         ", MTU " + std::to_string(device_.mtu());
}

}  // namespace espalier::tools
