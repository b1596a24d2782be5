#include "tools/config_conn.h"

#include <sys/un.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>

#include "dataplane/replay_window.h"
#include "tools/config_outer.h"
#include "tools/config_values.h"

namespace espalier::tools {
namespace {

using Folder = std::filesystem::path;  // where relative paths start

struct ConnOption {
  std::string_view name;
  std::string_view canonical;  // two spellings of one option are that option twice
  std::string_view help;
  void (*set)(Draft& draft, const std::string& value, const Folder& folder);
};

void set_left(Draft& d, const std::string& v, const Folder&) {
  const End end = parse_end(v);
  d.conn.left = end.address;
  d.conn.left_is_default_route = end.default_route;
}

void set_right(Draft& d, const std::string& v, const Folder&) {
  const End end = parse_end(v);
  d.conn.right = end.address;
  d.conn.right_is_default_route = end.default_route;
}

void set_leftsubnet(Draft& d, const std::string& v, const Folder&) {
  d.conn.leftsubnet = parse_subnets(v);
}

void set_rightsubnet(Draft& d, const std::string& v, const Folder&) {
  d.conn.rightsubnet = parse_subnets(v);
}

void set_mark(Draft& d, const std::string& v, const Folder&) {
  d.conn.mark_in = d.conn.mark_out = parse_mark(v);
}

void set_mark_in(Draft& d, const std::string& v, const Folder&) {
  d.conn.mark_in = parse_mark(v);
}

void set_mark_out(Draft& d, const std::string& v, const Folder&) {
  d.conn.mark_out = parse_mark(v);
}

void set_mark_outer(Draft& d, const std::string& v, const Folder&) {
  if (v == "no") {
    d.conn.mark_outer = 0;
  } else if (v == "auto") {
    d.conn.mark_outer = kAutoOuterMark;
  } else {
    d.conn.mark_outer = parse_number(v, 1, std::numeric_limits<std::uint32_t>::max());
  }
}

void set_esp(Draft& d, const std::string& v, const Folder&) {
  d.conn.esp = parse_esp(v);
}

void set_replay_window(Draft& d, const std::string& v, const Folder&) {
  // Off only by its name: a 0 that slipped in would accept every packet for ever.
  if (v == "no")
    d.conn.replay_window = 0;
  else if (v == "0")
    throw std::invalid_argument(
        "0 would take every packet again and again; write replay-window=no if that is meant");
  else
    d.conn.replay_window = parse_number(v, dataplane::kMinWindowBits, dataplane::kMaxWindowBits);
}

void set_keys(Draft& d, const std::string& v, const Folder& folder) {
  d.conn.keys = (folder / v).lexically_normal();
}

void set_auto(Draft& d, const std::string& v, const Folder&) {
  // Static keys negotiate nothing, so a conn that is loaded is up: start and add are the same.
  constexpr std::array<std::string_view, 5> kWords = {"start", "add", "route", "ondemand",
                                                      "ignore"};
  d.ignore = parse_word(v, kWords) == "ignore";
}

void set_type(Draft& d, const std::string& v, const Folder&) {
  constexpr std::array<std::string_view, 4> kWords = {"tunnel", "passthrough", "drop", "reject"};
  if (v == "transport")
    throw std::invalid_argument(
        "'transport' means ESP between two hosts without a tunnel, which is not here; write "
        "tunnel");
  const std::string word = parse_word(v, kWords);
  d.conn.action = word == "tunnel"        ? dataplane::PolicyAction::protect
                  : word == "passthrough" ? dataplane::PolicyAction::bypass
                                          : dataplane::PolicyAction::discard;
}

// What libreswan can switch on and is not here.
void only_no(Draft&, const std::string& v, const Folder&) {
  if (parse_yes_no(v)) throw std::invalid_argument("'yes' is not possible here; write no");
}

void set_priority(Draft& d, const std::string& v, const Folder&) {
  d.conn.priority = parse_number(v, 0, 0xffffffff);
}

constexpr std::array<ConnOption, 49> kConnOptions = {{
    {"left", "left", "address of one gateway, %any or %defaultroute", set_left},
    {"right", "right", "address of the other gateway, %any or %defaultroute", set_right},
    {"leftsubnet", "leftsubnet", "prefixes behind left", set_leftsubnet},
    {"leftsubnets", "leftsubnet", "the same", set_leftsubnet},
    {"rightsubnet", "rightsubnet", "prefixes behind right", set_rightsubnet},
    {"rightsubnets", "rightsubnet", "the same", set_rightsubnet},
    {"leftaddresspool", "leftaddresspool", "inner addresses of clients, when left is %any",
     [](Draft& d, const std::string& v, const Folder&) { d.conn.pool = parse_subnet(v); }},
    {"rightaddresspool", "rightaddresspool", "inner addresses of clients, when right is %any",
     [](Draft& d, const std::string& v, const Folder&) { d.conn.pool = parse_subnet(v); }},
    {"leftprotoport", "leftprotoport", "PROTOCOL[/PORT[-PORT]] at left",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.leftprotoport = parse_protoport(v);
     }},
    {"rightprotoport", "rightprotoport", "PROTOCOL[/PORT[-PORT]] at right",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.rightprotoport = parse_protoport(v);
     }},
    {"priority", "priority", "of the policies: the lowest number wins", set_priority},
    {"mark", "mark", "VALUE[/MASK] of the device, both directions", set_mark},
    {"mark-in", "mark-in", "VALUE[/MASK], inbound", set_mark_in},
    {"markin", "mark-in", "the same", set_mark_in},
    {"mark-out", "mark-out", "VALUE[/MASK], outbound", set_mark_out},
    {"markout", "mark-out", "the same", set_mark_out},
    {"vti-interface", "vti-interface", "name of the TUN device",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.vti_interface = parse_device_name(v);
     }},
    {"vti-routing", "vti-routing", "yes: make routes to the peer's subnets",
     [](Draft& d, const std::string& v, const Folder&) { d.conn.vti_routing = parse_yes_no(v); }},
    {"vti-shared", "vti-shared", "yes: other conns have the same device",
     [](Draft& d, const std::string& v, const Folder&) { d.conn.vti_shared = parse_yes_no(v); }},
    {"vti-carrier", "vti-carrier", "sa: the device has a carrier while there is an SA; always",
     [](Draft& d, const std::string& v, const Folder&) {
       constexpr std::array<std::string_view, 2> kWords = {"sa", "always"};
       d.conn.vti_carrier_follows = parse_word(v, kWords) == "sa";
     }},
    {"leftvti", "leftvti", "ADDRESS/LEN of the device at left",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.leftvti = parse_interface_addresses(v);
     }},
    {"rightvti", "rightvti", "ADDRESS/LEN of the device at right",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.rightvti = parse_interface_addresses(v);
     }},
    {"encapsulation", "encapsulation", "yes: UDP, no: raw ESP, auto: UDP",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.encapsulation = parse_encapsulation(v);
     }},
    {"left-port", "left-port", "UDP port of left",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.left_port = static_cast<std::uint16_t>(parse_number(v, 1, 65535));
     }},
    {"right-port", "right-port", "UDP port of right",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.right_port = static_cast<std::uint16_t>(parse_number(v, 1, 65535));
     }},
    {"nat-follow", "nat-follow", "yes: the peer may change its address, no: pinned",
     [](Draft& d, const std::string& v, const Folder&) { d.conn.nat_follow = parse_yes_no(v); }},
    {"mark-outer", "mark-outer", "NUMBER, auto or no: fwmark of the tunnel's own packets",
     set_mark_outer},
    {"esp", "esp", "suite", set_esp},
    {"phase2alg", "esp", "the same", set_esp},
    {"esn", "esn", "yes: 64-bit sequence numbers",
     [](Draft& d, const std::string& v, const Folder&) { d.conn.esn = parse_yes_no(v); }},
    {"replay-window", "replay-window", "packets", set_replay_window},
    {"mtu", "mtu", "of the device",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.mtu = parse_number(v, 576, 65535);
     }},
    {"dscp", "dscp", "of the outer header: copy, no or 0-63",
     [](Draft& d, const std::string& v, const Folder&) { set_dscp(d.conn, v); }},
    {"encap-dscp", "dscp", "yes: copied outwards",
     [](Draft& d, const std::string& v, const Folder&) { set_encap_dscp(d.conn, v); }},
    {"decap-dscp", "decap-dscp", "yes: the outer DSCP replaces the inner one",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.outer.dscp_inwards = parse_yes_no(v);
     }},
    {"ecn", "ecn", "no: Not-ECT outside",
     [](Draft& d, const std::string& v, const Folder&) { d.conn.outer.ecn = parse_yes_no(v); }},
    {"df", "df", "of the outer header: copy, set or clear",
     [](Draft& d, const std::string& v, const Folder&) { set_df(d.conn, v); }},
    {"nopmtudisc", "df", "yes: df=clear",
     [](Draft& d, const std::string& v, const Folder&) { set_nopmtudisc(d.conn, v); }},
    {"hop-limit", "hop-limit", "TTL of the outer header, 0: the system's",
     [](Draft& d, const std::string& v, const Folder&) {
       d.conn.outer.hop_limit = static_cast<std::uint8_t>(parse_number(v, 0, 255));
     }},
    {"flow-label", "flow-label", "of IPv6 in IPv6: copy or auto",
     [](Draft& d, const std::string& v, const Folder&) { set_flow_label(d.conn, v); }},
    {"tfc", "tfc", "inner packets are padded to: no, yes (the MTU) or bytes",
     [](Draft& d, const std::string& v, const Folder&) { set_tfc(d.conn, v); }},
    {"mss-clamp", "mss-clamp", "TCP MSS at most: no, yes (by the path) or bytes",
     [](Draft& d, const std::string& v, const Folder&) { set_mss_clamp(d.conn, v); }},
    {"keys", "keys", "key file", set_keys},
    {"auto", "auto", "start, add or ignore", set_auto},
    {"phase2", "phase2", "esp",
     [](Draft&, const std::string& v, const Folder&) {
       constexpr std::array<std::string_view, 1> kWords = {"esp"};
       static_cast<void>(parse_word(v, kWords));
     }},
    {"compress", "compress", "no", only_no},
    {"sha2-truncbug", "sha2-truncbug", "no: RFC 4868", only_no},
    {"nic-offload", "nic-offload", "no", only_no},
    {"type", "type", "tunnel, passthrough, drop or reject", set_type},
}};

struct GlobalOption {
  std::string_view name;
  std::string_view help;
  void (*set)(Globals& globals, const std::string& value);
};

void set_io(Globals& g, const std::string& v) {
  constexpr std::array<std::string_view, 3> kWords = {"auto", "io_uring", "epoll"};
  g.io = parse_word(v, kWords);
}

void set_crypto(Globals& g, const std::string& v) {
  constexpr std::array<std::string_view, 4> kWords = {"auto", "ipsec-mb", "openssl", "sodium"};
  g.crypto = parse_word(v, kWords);
}

void set_workers(Globals& g, const std::string& v) {
  constexpr std::uint32_t kMost = 64;
  g.workers = v == "auto" ? 0 : parse_number(v, 1, kMost);
}

void set_pin(Globals& g, const std::string& v) {
  g.pin = parse_yes_no(v);
}

void set_offloads(Globals& g, const std::string& v) {
  g.offloads = parse_offloads(v);
}

void set_log(Globals& g, const std::string& v) {
  constexpr std::array<std::string_view, 4> kWords = {"error", "warning", "info", "debug"};
  g.log = parse_word(v, kWords);
}

void set_control(Globals& g, const std::string& v) {
  if (!std::filesystem::path(v).is_absolute() || v.size() >= sizeof(sockaddr_un::sun_path))
    throw std::invalid_argument(in_quotes(v) +
                                " is no path for a socket; write an absolute path of "
                                "at most " +
                                std::to_string(sizeof(sockaddr_un::sun_path) - 1) + " bytes");
  g.control = v;
}

void set_group(Globals& g, const std::string& v) {
  g.group = v;
}

void set_state_dir(Globals& g, const std::string& v) {
  if (!std::filesystem::path(v).is_absolute())
    throw std::invalid_argument(in_quotes(v) +
                                " is no absolute path; write one that starts with /");
  g.state_dir = std::filesystem::path(v).lexically_normal();
}

void set_keepalive(Globals& g, const std::string& v) {
  g.keepalive_s = parse_number(v, 0, 3600);
}

constexpr std::array<GlobalOption, 10> kGlobalOptions = {{
    {"io", "auto, io_uring or epoll", set_io},
    {"crypto", "auto, ipsec-mb, openssl or sodium", set_crypto},
    {"workers", "threads, or auto", set_workers},
    {"pin", "yes: each worker to a processor of its own", set_pin},
    {"offloads", "auto, none, or some of tso4, tso6, uso, gso", set_offloads},
    {"log", "error, warning, info or debug", set_log},
    {"control", "path of the control socket", set_control},
    {"group", "who is in it may use the control socket and `espalier exec`, beside root",
     set_group},
    {"state-dir", "folder of the state files", set_state_dir},
    {"keepalive", "seconds between NAT keepalives, 0: none", set_keepalive},
}};

template <std::size_t N, typename Option>
std::array<OptionName, N> names_of(const std::array<Option, N>& options) {
  std::array<OptionName, N> names;
  std::transform(options.begin(), options.end(), names.begin(), [](const Option& o) {
    return OptionName{o.name, o.help};
  });
  return names;
}

// Calls `set`, and puts the place and the option's name in front of what it refuses.
template <typename Set>
void set_or_refuse(const Setting& s, const std::filesystem::path& file, const Set& set) {
  try {
    set();
  } catch (const std::invalid_argument& e) {
    refuse(file, s.line, s.name + ": " + e.what());
  }
}

template <typename Lines>
void note_line(Lines& lines, std::string_view canonical, const Setting& s,
               const std::filesystem::path& file) {
  const auto [before, inserted] = lines.emplace(canonical, s.line);
  if (!inserted)
    refuse(file, s.line,
           s.name + " is set a second time (first in line " + std::to_string(before->second) +
               "); write it once");
}

// The pool is what is behind the end that is %any.
void take_pool(Draft& draft, const std::filesystem::path& file) {
  Conn& c = draft.conn;
  if (!c.pool) return;
  const bool left = draft.has("leftaddresspool");
  const std::string end = left ? "left" : "right", option = end + "addresspool";
  const unsigned line = draft.line_of(option);
  if (left && draft.has("rightaddresspool"))
    refuse(file, line, "leftaddresspool and rightaddresspool in one conn; write one of them");
  if ((left ? c.left : c.right).family != ifaces::Family::none ||
      (left ? c.left_is_default_route : c.right_is_default_route))
    refuse(file, line,
           option + " is for clients, and " + end + " is one host; write " + end + "=%any, or " +
               end + "subnet=PREFIX for the one");
  if (draft.has(end + "subnet"))
    refuse(file, draft.line_of(end + "subnet"),
           end + "subnet and " + option + " in one conn; write " + option + " only");
  auto& subnets = left ? c.leftsubnet : c.rightsubnet;
  subnets.assign(1, *c.pool);
}

}  // namespace

std::span<const OptionName> global_options() {
  static const auto names = names_of(kGlobalOptions);
  return names;
}

std::span<const OptionName> conn_options() {
  static const auto names = names_of(kConnOptions);
  return names;
}

unsigned Draft::line_of(std::string_view option) const {
  const auto found = lines.find(option);
  return found == lines.end() ? line : found->second;
}

Globals read_globals(const Section& section, const std::filesystem::path& file) {
  Globals globals;
  std::map<std::string, unsigned, std::less<>> lines;
  for (const Setting& s : section.settings) {
    const auto* option = std::find_if(kGlobalOptions.begin(), kGlobalOptions.end(),
                                      [&s](const GlobalOption& o) { return o.name == s.name; });
    note_line(lines, option->name, s, file);
    set_or_refuse(s, file, [&] { option->set(globals, s.value); });
  }
  return globals;
}

Draft read_conn(const Section& section, const std::filesystem::path& file, const Folder& folder) {
  Draft draft;
  draft.line = section.line;
  draft.conn.name = section.name;
  draft.conn.where = file.string() + ":" + std::to_string(section.line);
  for (const Setting& s : section.settings) {
    const auto* option = std::find_if(kConnOptions.begin(), kConnOptions.end(),
                                      [&s](const ConnOption& o) { return o.name == s.name; });
    note_line(draft.lines, option->canonical, s, file);
    if (option->canonical == "mark-in" || option->canonical == "mark-out") {
      if (draft.has("mark"))
        refuse(file, s.line, s.name + " and mark in one conn; write mark-in and mark-out, or mark");
    } else if (option->canonical == "mark" && (draft.has("mark-in") || draft.has("mark-out"))) {
      refuse(file, s.line, "mark and mark-in or mark-out in one conn; write mark, or both of them");
    }
    set_or_refuse(s, file, [&] { option->set(draft, s.value, folder); });
  }
  take_pool(draft, file);
  check_conn(draft, file);
  return draft;
}

}  // namespace espalier::tools
