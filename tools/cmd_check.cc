#include <algorithm>
#include <iostream>

#include "crypto/secret.h"
#include "ifaces/netlink.h"
#include "tools/command.h"
#include "tools/compile.h"
#include "tools/config.h"
#include "tools/config_values.h"
#include "tools/log.h"

namespace espalier::tools {

namespace po = boost::program_options;

namespace {

std::string join(const std::vector<ifaces::Prefix>& prefixes) {
  std::string out;
  for (const ifaces::Prefix& prefix : prefixes) out += (out.empty() ? "" : ", ") + prefix.str();
  return out.empty() ? "none" : out;
}

// Which end this host is, as far as it can be told here; a file may well be checked elsewhere.
std::optional<Side> own_side(const Conn& conn) {
  try {
    ifaces::Netlink netlink;
    return orient(conn, [&](const ifaces::IpAddress& a) { return netlink.is_local(a); });
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

void print_policies(const Conn& conn, Side own, const Compiled& made) {
  std::cout << "  routes     " << join(made.routes) << "\n";
  const std::vector<Subnet> peers = peer_subnets(conn, own);
  for (const Subnet& mine : peer_subnets(conn, own == Side::left ? Side::right : Side::left))
    for (const Subnet& theirs : peers)
      if (mine.family() == theirs.family())
        std::cout << "  policy     " << str(conn, own, mine)
                  << " === " << str(conn, own == Side::left ? Side::right : Side::left, theirs)
                  << "\n";
}

void print_policy_conn(const Conn& conn, Side own) {
  const bool bypass = conn.action == dataplane::PolicyAction::bypass;
  std::cout << "conn " << conn.name << "\n  "
            << (bypass ? "passes by   the tunnels: no route of ours leads there; what another "
                         "conn's route leads into a\n             device all the same is "
                         "dropped, for nothing leaves a tunnel in the clear"
                       : "drops       what is routed into a device and matches")
            << "\n  mark       " << (conn.mark_out.mask == 0 ? "any" : str(conn.mark_out)) << "\n";
  print_policies(conn, own, compile(conn, own, {}, {}, 1));
}

void print(const Conn& conn) {
  const std::optional<Side> found = own_side(conn);
  const Side own = found.value_or(Side::left);
  if (conn.action != dataplane::PolicyAction::protect) return print_policy_conn(conn, own);
  // Any address does: it is not printed, and the daemon asks the routing table.
  const bool ipv6 = remote_address(conn, own).family == ifaces::Family::v6;
  const ifaces::IpAddress local =
      ifaces::IpAddress::any(ipv6 ? ifaces::Family::v6 : ifaces::Family::v4);
  const Compiled made = compile(conn, own, local, load_keys(conn.keys), 1);
  const dataplane::SaSpec& sa = made.sa_out;
  const auto end = [](const ifaces::Endpoint& e) {
    if (e.address.is_any()) return std::string("%any");
    return e.port == 0 ? e.address.str() : e.str();
  };
  const bool default_route = local_is_default_route(conn, own);
  std::cout << "conn " << conn.name << "\n  this host  "
            << (found ? (*found == Side::left ? "left" : "right")
                      : "neither end has an address of it; shown for left")
            << "\n  tunnel     " << (default_route ? "%defaultroute" : end(sa.local)) << " <=> "
            << end(sa.peer)
            << (sa.encapsulation == dataplane::Encapsulation::udp ? ", ESP in UDP, " : ", ESP, ")
            << crypto::info(sa.suite).name << (sa.esn ? ", ESN" : "") << "\n  device     "
            << made.device.name << ", mark " << str(conn.mark_out)
            << (conn.mark_in == conn.mark_out ? "" : " out, " + str(conn.mark_in) + " in")
            << ", addresses " << join(made.addresses) << "\n";
  print_policies(conn, own, made);
}

// The clients of a conn differ in their keys and addresses only: the first stands for all.
void print_clients(const std::vector<Conn>& conns) {
  for (auto first = conns.begin(); first != conns.end();) {
    const auto same = [&first](const Conn& c) { return c.is_client && c.where == first->where; };
    const auto end = std::find_if_not(first, conns.end(), same);
    if (end == first) {
      ++first;
      continue;
    }
    print(*first);
    std::cout << "  clients    " << end - first << " like this, each with its own address\n";
    first = end;
  }
}

}  // namespace

int run_check(const std::vector<std::string>& words) {
  constexpr Usage kUsage{
      "espalier check FILE",
      "Validates a configuration with its key files, and says what the daemon would make of it.\n"
      "Touches nothing.",
      "espalier check /etc/espalier/espalier.conf"};
  const auto values = parse_words(words, kUsage, po::options_description("options"), "file");
  if (!values) return kDone;
  if (values->count("file") == 0) throw UsageError("which FILE? see espalier check --help");
  crypto::initialise();
  const std::string file = (*values)["file"].as<std::string>();
  const Config config = load_config(file);
  for (const std::string& remark : config.remarks) std::cout << "note: " << remark << "\n";
  for (const Conn& conn : config.conns)
    if (!conn.is_client) print(conn);
  print_clients(config.conns);
  std::cout << "OK: " << file << ", " << config.conns.size()
            << (config.conns.size() == 1 ? " conn\n" : " conns\n");
  return kDone;
}

}  // namespace espalier::tools
