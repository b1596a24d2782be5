// What the single values do not show: contradictions within a conn, and between conns.

#include <algorithm>
#include <array>
#include <map>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "tools/compile.h"
#include "tools/config_conn.h"
#include "tools/config_values.h"
#include "tools/keys.h"

namespace espalier::tools {
namespace {

using dataplane::Mark;
using dataplane::PolicyAction;
using ifaces::Family;
using ifaces::IpAddress;
using ifaces::Prefix;
using Subnets = std::vector<Subnet>;

constexpr unsigned kMinMtu6 = 1280;  // RFC 8200 §5: below it the kernel turns IPv6 off

bool is_v6(const Subnet& s) {
  return s.family() == Family::v6;
}

// The subnets of one end; the end itself if there are none in the file. Empty where it is not
// known.
Subnets subnets_of(const Subnets& written, const IpAddress& end) {
  if (!written.empty() || end.family == Family::none) return written;
  return {Subnet(Prefix{end, static_cast<std::uint8_t>(end.bits())})};
}

// Both ways to read a conn are possible until somebody says which end is this host.
std::vector<Side> possible_sides(const Conn& c) {
  if (c.left_is_default_route) return {Side::left};
  if (c.right_is_default_route) return {Side::right};
  if (c.left.family == Family::none) return {Side::right};
  if (c.right.family == Family::none) return {Side::left};
  return {Side::left, Side::right};
}

bool overlap(const Subnets& a, const Subnets& b) {
  return std::any_of(a.begin(), a.end(), [&b](const Subnet& x) {
    return std::any_of(b.begin(), b.end(), [&x](const Subnet& y) { return overlap(x, y); });
  });
}

template <typename Value>
bool share(const std::vector<Value>& a, const std::vector<Value>& b) {
  return std::any_of(a.begin(), a.end(),
                     [&b](const Value& x) { return std::find(b.begin(), b.end(), x) != b.end(); });
}

// A device has the value of its conn's mark as its key.
bool overlap(const Mark& a, const Mark& b) {
  return a.matches(b.value) || b.matches(a.value);
}

constexpr std::string_view type_of(const Conn& c) {
  return c.action == PolicyAction::bypass ? "passthrough" : "drop";
}

// A conn that makes policies and no SAs.
void check_policy_conn(const Draft& d, const std::filesystem::path& file) {
  for (const char* option : {"vti-interface", "vti-shared", "vti-carrier", "leftvti", "rightvti",
                             "keys", "encapsulation", "left-port", "right-port", "mtu"})
    if (d.has(option))
      refuse(
          file, d.line_of(option),
          std::string("type=") + std::string(type_of(d.conn)) + " makes no tunnel, so " + option +
              " means nothing; remove the line" +
              (std::string_view(option) == "vti-interface" ? " (mark= says which devices)" : ""));
  for (const auto& [end, address, subnets] : {std::tuple("left", &d.conn.left, &d.conn.leftsubnet),
                                              {"right", &d.conn.right, &d.conn.rightsubnet}})
    if (address->family == Family::none && subnets->empty())
      refuse(file, d.line,
             "conn " + d.conn.name + " does not say which packets; write " + end + "subnet=PREFIX");
}

void check_ports(const Draft& d, const std::filesystem::path& file) {
  const ProtoPort &l = d.conn.leftprotoport, &r = d.conn.rightprotoport;
  if (l.protocol != 0 && r.protocol != 0 && l.protocol != r.protocol)
    refuse(file, d.line_of("rightprotoport"),
           "leftprotoport and rightprotoport have two protocols, and a packet has one; write one");
  if (l.is_icmp() && !l.any_port() && !r.any_port() && l != r)
    refuse(file, d.line_of("rightprotoport"),
           "an ICMP packet has one type, whoever sends it; write it in leftprotoport only");
}

void check_ends(const Draft& d, const std::filesystem::path& file) {
  const Conn& c = d.conn;
  for (const char* end : {"left", "right"})
    if (!d.has(end))
      refuse(file, d.line, "conn " + c.name + " has no " + end + "; write " + end + "=ADDRESS");
  const bool left_known = c.left.family != Family::none;
  const bool right_known = c.right.family != Family::none;
  if (!left_known && !right_known && c.left_is_default_route == c.right_is_default_route)
    refuse(file, d.line_of("right"),
           "neither left nor right is an address; write that of this host, or %defaultroute, and "
           "that of the peer");
  if (left_known && right_known && c.left.family != c.right.family)
    refuse(file, d.line_of("right"),
           "left and right are of different families; write two IPv4 or two IPv6 addresses");
  if (left_known && c.left == c.right)
    refuse(file, d.line_of("right"), "left and right are the same address; write the peer's");
  const bool any =
      (!left_known && !c.left_is_default_route) || (!right_known && !c.right_is_default_route);
  if (any && c.encapsulation == dataplane::Encapsulation::esp)
    refuse(file, d.line_of("encapsulation"),
           "raw ESP cannot find a peer at %any; write encapsulation=yes, or the peer's address");
  if (c.encapsulation == dataplane::Encapsulation::esp)
    for (const char* port : {"left-port", "right-port"})
      if (d.has(port))
        refuse(file, d.line_of(port),
               std::string(port) +
                   " means nothing without UDP; remove the line, or write "
                   "encapsulation=yes");
}

// Every subnet of `a` needs one of its family in `b`, or it would never match a packet.
void check_families(const Draft& d, const std::filesystem::path& file, const std::string& name,
                    const Subnets& a, const std::string& other, const Subnets& b) {
  for (const Subnet& p : a) {
    if (std::any_of(b.begin(), b.end(), [&p](const Subnet& q) { return is_v6(p) == is_v6(q); }))
      continue;
    std::string text = name + " " + p.str();
    text.append(" has no ")
        .append(other)
        .append(" of its family, so no packet can match it; write ");
    text.append(is_v6(p) ? "an IPv6 " : "an IPv4 ").append(other).append(" too");
    refuse(file, d.line_of(name), text);
  }
}

void check_subnets(const Draft& d, const std::filesystem::path& file) {
  const Conn& c = d.conn;
  const auto unknown = [&](const std::string& end, bool is_any) {
    if (is_any && !d.has(end + "subnet") && !d.has(end + "addresspool"))
      refuse(file, d.line_of(end),
             end + " is %any, so " + end + "subnet cannot be taken from it; write " + end +
                 "subnet=PREFIX");
  };
  unknown("left", c.left.family == Family::none && !c.left_is_default_route);
  unknown("right", c.right.family == Family::none && !c.right_is_default_route);
  const Subnets left = subnets_of(c.leftsubnet, c.left);
  const Subnets right = subnets_of(c.rightsubnet, c.right);
  if (left.empty() || right.empty()) return;  // %defaultroute: compile() looks again
  check_families(d, file, "leftsubnet", left, "rightsubnet", right);
  check_families(d, file, "rightsubnet", right, "leftsubnet", left);
}

void check_device(const Draft& d, const std::filesystem::path& file) {
  const Conn& c = d.conn;
  const bool has_in = d.has("mark") || d.has("mark-in");
  const bool has_out = d.has("mark") || d.has("mark-out");
  if (c.vti_interface.empty()) {
    for (const char* option :
         {"mark", "mark-in", "mark-out", "leftvti", "rightvti", "vti-shared", "vti-carrier"})
      if (d.has(option))
        refuse(file, d.line_of(option),
               std::string(option) +
                   " needs a device; write vti-interface=vti01, or remove the "
                   "line");
  } else if (!has_in && !has_out) {
    refuse(file, d.line_of("vti-interface"),
           "vti-interface needs a mark, which is the device's key; write mark=5/0xffffffff, a "
           "number that no other device has");
  } else if (!has_in || !has_out) {
    refuse(file, d.line_of(has_in ? "mark-in" : "mark-out"),
           std::string("only one direction has a mark; write ") +
               (has_in ? "mark-out" : "mark-in") + " too, or mark for both");
  }
  const auto v6 = [](const auto& list) { return std::any_of(list.begin(), list.end(), is_v6); };
  if (c.mtu && *c.mtu < kMinMtu6 &&
      (v6(subnets_of(c.leftsubnet, c.left)) || v6(c.leftvti) || v6(c.rightvti)))
    refuse(file, d.line_of("mtu"),
           "an mtu of " + std::to_string(*c.mtu) + " is too small for IPv6; write 1280 or more");
}

// A route to the peer through the tunnel would lead the tunnel's own packets into it again.
void check_loop(const Draft& d, const std::filesystem::path& file) {
  const std::vector<Side> sides = possible_sides(d.conn);
  for (const Side own : sides)
    if (!looping_route(d.conn, own)) return;
  const Side own = sides.front();
  refuse(file, d.line_of(own == Side::left ? "rightsubnet" : "leftsubnet"),
         loop_text(d.conn, own, *looping_route(d.conn, own)));
}

void check_shared(const Draft& a, const Draft& b, const std::filesystem::path& file) {
  const Conn &x = a.conn, &y = b.conn;
  if (!x.vti_shared || !y.vti_shared)
    refuse(file, b.line_of("vti-interface"),
           "conn " + x.name + " has the device " + y.vti_interface +
               " too; write another name, or "
               "vti-shared=yes in both");
  if (x.mark_in != y.mark_in || x.mark_out != y.mark_out)
    refuse(file, b.line_of(b.has("mark") ? "mark" : "mark-in"),
           "conn " + x.name + " shares the device " + y.vti_interface +
               " and has other marks; write mark-in=" + str(x.mark_in) +
               " and mark-out=" + str(x.mark_out) + " (or the one mark)");
  if (x.vti_carrier_follows != y.vti_carrier_follows)
    refuse(file, b.line_of("vti-carrier"),
           "conn " + x.name + " shares the device " + y.vti_interface +
               " and has another vti-carrier; write the same in both");
  if (x.mtu != y.mtu)
    refuse(file, b.line_of("mtu"),
           "conn " + x.name + " shares the device " + y.vti_interface +
               " and has another mtu; write the same in both");
  for (const auto& [mine, theirs, name] :
       {std::tuple(&y.leftvti, &x.leftvti, "leftvti"), {&y.rightvti, &x.rightvti, "rightvti"}})
    if (share(*mine, *theirs))
      refuse(file, b.line_of(name),
             std::string(name) + " is what conn " + x.name +
                 " has on the "
                 "same device; write it in one of them");
}

struct Ends {
  const IpAddress* address;
  Subnets subnets;
};

std::array<Ends, 2> ends_of(const Conn& c) {
  return {Ends{&c.left, subnets_of(c.leftsubnet, c.left)},
          Ends{&c.right, subnets_of(c.rightsubnet, c.right)}};
}

// `related(a, b)` for both ends, as written and with the ends of one conn exchanged.
template <typename Related>
bool both_ends(const Conn& x, const Conn& y, const Related& related) {
  const std::array<Ends, 2> a = ends_of(x), b = ends_of(y);
  return (related(a[0], b[0]) && related(a[1], b[1])) ||
         (related(a[0], b[1]) && related(a[1], b[0]));
}

bool same_selectors(const Conn& x, const Conn& y) {
  return x.leftprotoport == y.leftprotoport && x.rightprotoport == y.rightprotoport &&
         x.priority == y.priority &&
         both_ends(x, y, [](const Ends& m, const Ends& n) { return share(m.subnets, n.subnets); });
}

void check_pair(const Draft& a, const Draft& b, const std::filesystem::path& file) {
  const Conn &x = a.conn, &y = b.conn;
  if (x.action != PolicyAction::protect || y.action != PolicyAction::protect) {
    if (x.action != y.action && same_selectors(x, y) && overlap(x.mark_out, y.mark_out))
      refuse(file, b.line_of("type"),
             "conn " + x.name +
                 " says something else about the same packets; write priority=NUMBER in one of "
                 "them (the lowest number wins)");
    return;
  }
  if (x.vti_interface == y.vti_interface) {
    if (!x.vti_interface.empty()) check_shared(a, b, file);
    if (same_selectors(x, y))
      refuse(file, b.line_of(b.has("rightsubnet") ? "rightsubnet" : "leftsubnet"),
             "conn " + x.name +
                 " protects the same subnets on the same device; write others, or a "
                 "vti-interface and mark of its own");
    return;
  }
  // The default device has the key 0, which is no conn's mark.
  if (x.vti_interface.empty() || y.vti_interface.empty()) return;
  if (!overlap(x.mark_in, y.mark_in) && !overlap(x.mark_out, y.mark_out)) return;
  const bool same_subnets =
      both_ends(x, y, [](const Ends& m, const Ends& n) { return overlap(m.subnets, n.subnets); });
  const bool same_ends =
      both_ends(x, y, [](const Ends& m, const Ends& n) { return *m.address == *n.address; });
  if (same_subnets || same_ends)
    refuse(file, b.line_of(b.has("mark") ? "mark" : "mark-in"),
           "the mark " + str(y.mark_out) + " also matches the device " + x.vti_interface +
               " of conn " + x.name +
               ", which has overlapping subnets or the same ends; write "
               "another mark");
}

// Throws if `key` is in `seen`; the text is made of the other conn's name.
template <typename Key, typename Text>
void claim(std::map<Key, const Draft*>& seen, const Key& key, const Draft& d, const char* option,
           const std::filesystem::path& file, const Text& text) {
  const auto [before, inserted] = seen.emplace(key, &d);
  if (!inserted) refuse(file, d.line_of(option), text("conn " + before->second->conn.name));
}

}  // namespace

void check_conn(const Draft& draft, const std::filesystem::path& file) {
  check_ports(draft, file);
  if (draft.conn.action != PolicyAction::protect) return check_policy_conn(draft, file);
  check_ends(draft, file);
  check_subnets(draft, file);
  check_device(draft, file);
  check_loop(draft, file);
  if (draft.conn.replay_window == 0 && draft.conn.esn)
    refuse(file, draft.line_of("replay-window"),
           "extended sequence numbers need a replay window (RFC 4303 §3.4.3); write esn=no as "
           "well, or replay-window=32 to 65536");
  if (!draft.has("keys"))
    refuse(
        file, draft.line,
        "conn " + draft.conn.name + " has no keys; write keys=FILE (`espalier keygen` makes it)");
  if (draft.conn.keys.extension() == ".state" || !draft.conn.keys.has_filename())
    refuse(file, draft.line_of("keys"),
           "keys names no key file, or has the name of a state file; write one like " +
               draft.conn.name + ".keys");
}

void check_together(const std::vector<Draft>& drafts, const Globals& globals,
                    const std::filesystem::path& file) {
  std::map<std::filesystem::path, const Draft*> keys, states;
  for (const Draft& d : drafts) {
    if (d.conn.action != PolicyAction::protect) continue;
    claim(keys, d.conn.keys, d, "keys", file, [](const std::string& other) {
      return other +
             " has the same key file, and one key must not protect two conns; write "
             "another (`espalier keygen` makes it)";
    });
    claim(states, state_file(d.conn, globals), d, "keys", file, [](const std::string& other) {
      return other + " has a key file whose state file would be the same; write another file name";
    });
  }
  for (auto b = drafts.begin(); b != drafts.end(); ++b)
    for (auto a = drafts.begin(); a != b; ++a) check_pair(*a, *b, file);
}

void check_keys(const std::vector<Draft>& drafts, const std::filesystem::path& file) {
  std::map<std::pair<std::uint32_t, IpAddress>, const Draft*> spis;
  std::map<std::string, const Draft*> keys;
  for (const Draft& d : drafts) {
    if (d.conn.action != PolicyAction::protect) continue;
    StaticKeys k;
    try {
      k = load_keys(d.conn.keys);
    } catch (const ConfigError& e) {
      refuse(file, d.line_of("keys"), e.what());
    }
    if (k.suite != d.conn.esp)
      refuse(file, d.line_of(d.has("esp") ? "esp" : "keys"),
             "the keys are for " + std::string(crypto::info(k.suite).name) + ", the conn says " +
                 std::string(crypto::info(d.conn.esp).name) +
                 "; write esp=" + std::string(crypto::info(k.suite).name));
    // Which end is this host is not known here: no end may have the SPI twice.
    for (const IpAddress* end : {&d.conn.left, &d.conn.right})
      claim(spis, {static_cast<std::uint32_t>(k.spi_in), *end}, d, "keys", file,
            [](const std::string& other) {
              return other +
                     " has the same spi-in at the same address; write another there, and "
                     "as spi-out at its peer";
            });
    for (const std::string& digest : {key_digest(k.keymat_in), key_digest(k.keymat_out)})
      claim(keys, digest, d, "keys", file, [](const std::string& other) {
        return other +
               " has one of these keys, with the same salt; make fresh ones with "
               "`espalier keygen`";
      });
  }
}

}  // namespace espalier::tools
