#include "tools/control_json.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <limits>

#include "dataplane/esp.h"
#include "tools/config_text.h"
#include "tools/config_values.h"
#include "tools/request_keys.h"
#include "tools/status.h"

namespace espalier::tools {
namespace {

using dataplane::Direction;
using dataplane::Encapsulation;
using dataplane::OuterHeader;
using ifaces::Family;
using ifaces::IpAddress;
using nlohmann::json;

constexpr std::uint64_t kMost32 = std::numeric_limits<std::uint32_t>::max();
// Above are those of the conns of the configuration and of NETLINK_XFRM.
constexpr std::uint64_t kMostReqid = (std::uint64_t{1} << 30) - 1;
constexpr std::uint64_t kMost64 = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint16_t kNatTPort = 4500;  // RFC 3948 §2
constexpr std::size_t kLongestName = 64;
constexpr std::uint32_t kLeastWindow = 32, kMostWindow = 65536;

constexpr std::array<std::string_view, 2> kDirections = {"in", "out"};
constexpr std::array<std::string_view, 2> kEncapsulations = {"esp", "udp"};
constexpr std::array<std::string_view, 3> kActions = {"protect", "bypass", "discard"};
constexpr std::array<std::string_view, 3> kDf = {"copy", "set", "clear"};

struct Protocol {
  std::string_view name;
  std::uint8_t number;
};
constexpr std::array kProtocols = {
    Protocol{"any", 0},  Protocol{"icmp", 1},    Protocol{"tcp", 6},   Protocol{"udp", 17},
    Protocol{"gre", 47}, Protocol{"icmpv6", 58}, Protocol{"ospf", 89}, Protocol{"sctp", 132}};

template <typename T>
void assign(T& to, const std::optional<std::uint64_t>& value) {
  if (value) to = static_cast<T>(*value);
}

dataplane::Mark parse_any_mark(const std::string& text) {
  if (text == "0" || text == "0/0" || text == "0/0x0") return {};
  const std::size_t slash = text.find('/');
  const auto mask = slash == std::string::npos ? kMost32 : to_number64(text.substr(slash + 1));
  // Key 0 is a device's without keys: a mark of it is as good as any other.
  if (to_number64(text.substr(0, slash)) == 0 && mask && *mask <= kMost32)
    return {0, static_cast<std::uint32_t>(*mask)};
  return parse_mark(text);
}

std::string parse_name(const std::string& text) {
  const auto plain = [](unsigned char c) { return c > ' ' && c < 0x7f; };
  if (text.size() > kLongestName || !std::all_of(text.begin(), text.end(), plain))
    throw std::invalid_argument("write at most " + std::to_string(kLongestName) +
                                " letters and digits, without spaces");
  return text;
}

// ------------------------------------------------------------------------------------------ SAs

dataplane::Limit parse_limit(Fields& lifetime, const char* name) {
  dataplane::Limit limit;
  const json* const member = lifetime.object(name);
  if (member == nullptr) return limit;
  Fields fields(*member, std::string("lifetime.") + name);
  limit.soft = fields.number("soft", 0, kMost64).value_or(0);
  limit.hard = fields.number("hard", 0, kMost64).value_or(0);
  fields.done();
  if (limit.hard != 0 && limit.soft > limit.hard)
    fields.refuse("soft",
                  "comes before the hard limit; write at most " + std::to_string(limit.hard));
  return limit;
}

std::optional<dataplane::Lifetime> parse_lifetime(Fields& fields) {
  const json* const member = fields.object("lifetime");
  if (member == nullptr) return std::nullopt;
  Fields inner(*member, "lifetime");
  dataplane::Lifetime out{parse_limit(inner, "bytes"), parse_limit(inner, "packets"),
                          parse_limit(inner, "seconds")};
  inner.done();
  return out;
}

OuterHeader parse_outer(Fields& fields) {
  OuterHeader out;
  const json* const member = fields.object("outer");
  if (member == nullptr) return out;
  Fields inner(*member, "outer");
  const std::optional<std::string> dscp = inner.text("dscp");
  if (dscp == "no") {
    out.dscp = OuterHeader::Dscp::no;
  } else if (dscp && *dscp != "copy") {
    const auto value = to_number64(*dscp);
    if (!value || *value > 63)
      inner.refuse("dscp", in_quotes(*dscp) + " is none; write copy, no or a number up to 63");
    out.dscp = OuterHeader::Dscp::set;
    out.dscp_value = static_cast<std::uint8_t>(*value);
  }
  out.dscp_inwards = inner.flag("dscp_inwards").value_or(out.dscp_inwards);
  out.ecn = inner.flag("ecn").value_or(out.ecn);
  if (const auto df = inner.word("df", kDf)) out.df = static_cast<OuterHeader::Df>(*df);
  assign(out.hop_limit, inner.number("hop_limit", 0, 255));
  out.copy_flow_label = inner.flag("copy_flow_label").value_or(out.copy_flow_label);
  inner.done();
  return out;
}

// Without anti-replay only by name: a 0 may be a mistake.
std::optional<std::uint32_t> parse_window(Fields& fields, bool esn) {
  if (fields.text("window") == "no") {
    // RFC 4303 §3.4.3, A2.1: the high half is inferred from the window.
    if (esn)
      fields.refuse("window",
                    "ESN needs one; write 32 to 65536, or \"esn\":false to have no anti-replay");
    return 0;
  }
  const auto window = fields.number("window", 0, kMost32);
  if (window && (*window < kLeastWindow || *window > kMostWindow))
    fields.refuse("window", "write " + std::to_string(kLeastWindow) + " to " +
                                std::to_string(kMostWindow) +
                                " packets; \"no\", without ESN, has every packet taken twice");
  return window ? std::optional(static_cast<std::uint32_t>(*window)) : std::nullopt;
}

// Where the packets come from and go to, and so the direction.
void parse_ends(Fields& fields, dataplane::SaSpec& spec, const IsLocal& is_local) {
  const IpAddress source = fields.address("source").value_or(IpAddress{});
  const IpAddress destination = fields.address("destination").value_or(IpAddress{});
  const auto direction = fields.word("direction", kDirections);
  if (direction) {
    spec.direction = *direction == 0 ? Direction::in : Direction::out;
  } else {
    const bool from_here = !source.is_any() && is_local(source);
    const bool to_here = !destination.is_any() && is_local(destination);
    if (from_here == to_here)
      fields.refuse("direction", from_here ? "both ends are of this host; write in or out"
                                           : "neither end is of this host; write in or out");
    spec.direction = to_here ? Direction::in : Direction::out;
  }
  const bool in = spec.direction == Direction::in;
  spec.local.address = in ? destination : source;
  spec.peer.address = in ? source : destination;
  const char* const own = in ? "destination" : "source";
  if (spec.local.address.is_any())
    fields.refuse(own, "write the address of this host that the packets have");
  if (spec.peer.address.family == Family::none)
    spec.peer.address = IpAddress::any(spec.local.address.family);
  if (spec.peer.address.family != spec.local.address.family)
    fields.refuse(in ? "source" : "destination", "is of another family than " + std::string(own));
  if (spec.peer.address == spec.local.address)
    fields.refuse(in ? "source" : "destination", "is the same address as " + std::string(own));
  const auto encapsulation = fields.word("encapsulation", kEncapsulations);
  spec.encapsulation = encapsulation == 0 ? Encapsulation::esp : Encapsulation::udp;
  const auto source_port = fields.number("source_port", 0, 65535);
  const auto destination_port = fields.number("destination_port", 0, 65535);
  if (spec.encapsulation == Encapsulation::esp) {
    if (source_port.value_or(0) != 0 || destination_port.value_or(0) != 0)
      fields.refuse("source_port", "raw ESP has no ports; write \"encapsulation\":\"udp\"");
    return;
  }
  assign(spec.local.port, in ? destination_port : source_port);
  assign(spec.peer.port, in ? source_port : destination_port);
  if (spec.local.port == 0) spec.local.port = kNatTPort;
  if (spec.peer.port == 0) spec.peer.port = kNatTPort;
}

crypto::SecretBytes parse_key(Fields& fields, std::span<const crypto::SecretBytes> keys,
                              const crypto::SuiteInfo& suite) {
  const json* const member = fields.find("key");
  if (member == nullptr)
    fields.refuse("key", "is missing; write " + std::to_string(suite.keymat()) +
                             " bytes of key and salt as hex digits or in base64");
  // The text itself never comes this far, see take_keys().
  if (!member->is_number_unsigned() || member->get<std::uint64_t>() >= keys.size())
    fields.refuse("key", "write " + std::to_string(suite.keymat()) +
                             " bytes of key and salt as a text of hex digits or base64");
  return decode_key(keys[member->get<std::size_t>()].bytes(), suite);
}

json limit_json(const dataplane::Limit& limit) {
  return {{"soft", limit.soft}, {"hard", limit.hard}};
}

json outer_json(const OuterHeader& outer) {
  json out = {{"dscp", "copy"},
              {"dscp_inwards", outer.dscp_inwards},
              {"ecn", outer.ecn},
              {"df", kDf[static_cast<std::size_t>(outer.df)]},
              {"hop_limit", outer.hop_limit},
              {"copy_flow_label", outer.copy_flow_label}};
  if (outer.dscp == OuterHeader::Dscp::no) out["dscp"] = "no";
  if (outer.dscp == OuterHeader::Dscp::set) out["dscp"] = outer.dscp_value;
  return out;
}

// ------------------------------------------------------------------------------------- policies

struct Side {
  ifaces::Prefix prefix;
  std::optional<dataplane::AddressRange> range;
};

// The shortest prefix that has both.
ifaces::Prefix covering(const IpAddress& a, const IpAddress& b) {
  unsigned length = 0;
  while (length < a.bits() &&
         (((a.bytes[length / 8] ^ b.bytes[length / 8]) >> (7 - length % 8)) & 1) == 0)
    ++length;
  return ifaces::Prefix{a, static_cast<std::uint8_t>(length)}.network();
}

Side parse_side(const std::string& text) {
  const std::size_t dash = text.find('-');
  if (dash != std::string::npos) {
    const auto first = IpAddress::parse(text.substr(0, dash));
    const auto last = IpAddress::parse(text.substr(dash + 1));
    if (!first || !last || first->family != last->family || *last < *first)
      throw std::invalid_argument(in_quotes(text) +
                                  " is no range; write FIRST-LAST, as in 10.0.0.10-10.0.0.20");
    return {covering(*first, *last), dataplane::AddressRange{*first, *last}};
  }
  const auto prefix = ifaces::Prefix::parse(text);
  if (!prefix)
    throw std::invalid_argument(in_quotes(text) + " is no prefix; write one, as in 10.1.0.0/16");
  if (prefix->network() != *prefix)
    throw std::invalid_argument(in_quotes(text) + " has host bits; write " +
                                prefix->network().str());
  return {*prefix, std::nullopt};
}

struct Ports {
  std::uint16_t first = 0, last = 65535;
};
constexpr Ports kAllPorts;

Ports parse_ports(const std::string& text) {
  const std::size_t dash = text.find('-');
  const auto first = to_number64(text.substr(0, dash));
  const auto last = dash == std::string::npos ? first : to_number64(text.substr(dash + 1));
  if (!first || !last || *first > *last || *last > 65535)
    throw std::invalid_argument(in_quotes(text) + " is none; write N or FIRST-LAST up to 65535");
  return {static_cast<std::uint16_t>(*first), static_cast<std::uint16_t>(*last)};
}

std::string protocol_text(std::uint8_t number) {
  const auto known = std::find_if(kProtocols.begin(), kProtocols.end(),
                                  [&](const Protocol& p) { return p.number == number; });
  return known != kProtocols.end() ? std::string(known->name) : std::to_string(number);
}

std::string side_text(const ifaces::Prefix& prefix,
                      const std::optional<dataplane::AddressRange>& range) {
  return range ? range->first.str() + "-" + range->last.str() : prefix.str();
}

json ports_json(std::uint16_t first, std::uint16_t last) {
  if (first == last) return std::to_string(first);
  return std::to_string(first) + "-" + std::to_string(last);
}

bool is_icmp(std::uint8_t protocol) {
  return protocol == 1 || protocol == 58;
}

void parse_selector(Fields& fields, dataplane::Selector& selector) {
  const auto source = fields.parsed("source", parse_side);
  const auto destination = fields.parsed("destination", parse_side);
  if (!source && !destination)
    fields.refuse("source", "is missing; write a prefix, as in 0.0.0.0/0");
  const Family family = (source ? source : destination)->prefix.address.family;
  const Side all{ifaces::Prefix{IpAddress::any(family), 0}, std::nullopt};
  const Side from = source.value_or(all), to = destination.value_or(all);
  if (from.prefix.address.family != to.prefix.address.family)
    fields.refuse("destination", "is of another family than source");
  selector.source = from.prefix;
  selector.source_range = from.range;
  selector.destination = to.prefix;
  selector.destination_range = to.range;
  selector.protocol = fields.parsed("protocol", parse_protocol).value_or(0);
  const bool icmp = is_icmp(selector.protocol);
  const char* const first = icmp ? "icmp_type" : "source_port";
  const char* const second = icmp ? "icmp_code" : "destination_port";
  const auto source_ports = fields.parsed(first, parse_ports);
  const auto destination_ports = fields.parsed(second, parse_ports);
  if ((source_ports || destination_ports) && !icmp && !has_ports(selector.protocol))
    fields.refuse(source_ports ? first : second, "write a \"protocol\" that has ports, too");
  const Ports s = source_ports.value_or(kAllPorts), d = destination_ports.value_or(kAllPorts);
  selector.source_port_first = s.first;
  selector.source_port_last = s.last;
  selector.destination_port_first = d.first;
  selector.destination_port_last = d.last;
}

void add_selector(const dataplane::Selector& selector, json& out) {
  out["source"] = side_text(selector.source, selector.source_range);
  out["destination"] = side_text(selector.destination, selector.destination_range);
  out["protocol"] = protocol_text(selector.protocol);
  const bool icmp = is_icmp(selector.protocol);
  if (selector.source_port_first != 0 || selector.source_port_last != 65535)
    out[icmp ? "icmp_type" : "source_port"] =
        ports_json(selector.source_port_first, selector.source_port_last);
  if (selector.destination_port_first != 0 || selector.destination_port_last != 65535)
    out[icmp ? "icmp_code" : "destination_port"] =
        ports_json(selector.destination_port_first, selector.destination_port_last);
}

std::string end_text(const ifaces::Endpoint& end) {
  return end.port == 0 ? end.address.str() : end.str();
}

}  // namespace

std::uint8_t parse_protocol(const std::string& text) {
  const auto known = std::find_if(kProtocols.begin(), kProtocols.end(),
                                  [&](const Protocol& p) { return p.name == text; });
  if (known != kProtocols.end()) return known->number;
  const auto number = to_number64(text);
  if (number && *number <= 255) return static_cast<std::uint8_t>(*number);
  throw std::invalid_argument(in_quotes(text) +
                              " is none; write tcp, udp, icmp, icmpv6 or a number up to 255");
}

bool has_ports(std::uint8_t protocol) {
  return protocol == 6 || protocol == 17 || protocol == 132 || protocol == 33 || protocol == 136;
}

std::string_view name(Direction direction) {
  return direction == Direction::in ? "in" : "out";
}

std::string_view name(Encapsulation encapsulation) {
  return encapsulation == Encapsulation::udp ? "udp" : "esp";
}

std::string hex(dataplane::Spi spi) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "0x%08x", static_cast<std::uint32_t>(spi));
  return text.data();
}

dataplane::SaSpec parse_sa(Fields& fields, std::span<const crypto::SecretBytes> keys,
                           const IsLocal& is_local) {
  dataplane::SaSpec spec;
  parse_ends(fields, spec, is_local);
  const bool in = spec.direction == Direction::in;
  const auto spi = fields.number("spi", 0, kMost32);
  if (!spi) fields.refuse("spi", "is missing; write a number from 0x100 up");
  if (*spi < dataplane::kFirstSpi)
    fields.refuse("spi", "0 to 255 are reserved (RFC 4303 §2.1); write a number from 0x100 up");
  spec.spi = dataplane::Spi{static_cast<std::uint32_t>(*spi)};
  assign(spec.reqid, fields.number("reqid", 0, kMostReqid));
  const auto suite = fields.parsed("suite", [](const std::string& t) { return parse_esp(t); });
  spec.suite = suite.value_or(spec.suite);
  spec.keymat = parse_key(fields, keys, crypto::info(spec.suite));
  spec.esn = fields.flag("esn").value_or(spec.esn);
  if (in)
    spec.window_bits = parse_window(fields, spec.esn).value_or(spec.window_bits);
  else
    static_cast<void>(fields.find("window"));
  spec.follow_peer = fields.flag("follow_peer").value_or(spec.follow_peer);
  const std::uint64_t last = spec.esn ? kMost64 - 1 : kMost32;
  spec.next_seq = fields.number("seq", 1, last).value_or(spec.next_seq);
  if (!in) assign(spec.seq_limit, fields.number("seq_limit", spec.next_seq, last));
  assign(spec.outer_mark, fields.number("outer_mark", 0, kMost32));
  spec.mark = fields.parsed("mark", parse_any_mark).value_or(spec.mark);
  assign(spec.if_id, fields.number("if_id", 0, kMost32));
  spec.lifetime = parse_lifetime(fields).value_or(spec.lifetime);
  spec.outer = parse_outer(fields);
  if (fields.text("tfc") == "mtu")
    spec.tfc_padding = dataplane::kTfcToMtu;
  else
    assign(spec.tfc_padding, fields.number("tfc", 0, 65535));
  if (fields.text("mss_clamp") == "path")
    spec.mss_clamp = dataplane::kMssToPath;
  else
    assign(spec.mss_clamp, fields.number("mss_clamp", 0, 65534));
  spec.name = fields.parsed("name", parse_name).value_or("");
  return spec;
}

dataplane::SaUpdate parse_sa_update(Fields& fields, const dataplane::SaStatus& status) {
  dataplane::SaUpdate update;
  const auto peer = fields.address("peer");
  const auto port = fields.number("peer_port", 0, 65535);
  if (peer || port) {
    update.peer = ifaces::Endpoint{peer.value_or(status.peer.address), status.peer.port};
    assign(update.peer->port, port);
    if (update.peer->address.family != status.local.address.family)
      fields.refuse("peer", "is of another family than the SA's own address");
  }
  update.window_bits = parse_window(fields, status.esn);
  if (update.window_bits && status.direction == Direction::out)
    fields.refuse("window", "is of an inbound SA");
  update.lifetime = parse_lifetime(fields);
  if (const auto limit = fields.number("seq_limit", 1, kMost64)) {
    if (status.direction == Direction::in) fields.refuse("seq_limit", "is of an outbound SA");
    update.seq_limit = *limit;
  }
  return update;
}

dataplane::PolicySpec parse_policy(Fields& fields) {
  dataplane::PolicySpec spec;
  const auto direction = fields.word("direction", kDirections);
  if (!direction) fields.refuse("direction", "is missing; write in or out");
  spec.direction = *direction == 0 ? Direction::in : Direction::out;
  parse_selector(fields, spec.selector);
  spec.mark = fields.parsed("mark", parse_any_mark).value_or(spec.mark);
  assign(spec.priority, fields.number("priority", 0, kMost32));
  if (const auto action = fields.word("action", kActions))
    spec.action = static_cast<dataplane::PolicyAction>(*action);
  assign(spec.reqid, fields.number("reqid", 0, kMostReqid));
  assign(spec.if_id, fields.number("if_id", 0, kMost32));
  spec.trap = fields.flag("trap").value_or(spec.trap);
  spec.name = fields.parsed("name", parse_name).value_or("");
  if (spec.trap && spec.direction == Direction::in)
    fields.refuse("trap", "is of an outbound policy");
  return spec;
}

VtiSpec parse_vti(Fields& fields) {
  VtiSpec out;
  const auto name =
      fields.parsed("name", [](const std::string& t) { return parse_device_name(t); });
  if (!name) fields.refuse("name", "is missing; write one, as in vti01");
  out.device.name = *name;
  out.device.local = fields.address("local").value_or(IpAddress{});
  out.device.remote = fields.address("remote").value_or(IpAddress{});
  const Family family =
      out.device.local.is_any() ? out.device.remote.family : out.device.local.family;
  if (!out.device.local.is_any() && !out.device.remote.is_any() &&
      out.device.local.family != out.device.remote.family)
    fields.refuse("remote", "is of another family than local");
  if (const auto key = fields.number("key", 0, kMost32))
    out.device.ikey = out.device.okey = static_cast<std::uint32_t>(*key);
  assign(out.device.ikey, fields.number("ikey", 0, kMost32));
  assign(out.device.okey, fields.number("okey", 0, kMost32));
  assign(out.device.if_id, fields.number("if_id", 0, kMost32));
  out.device.carrier_follows_sa = fields.flag("carrier_follows_sa").value_or(true);
  // What the usual path and the suite that takes most of it leave; the SAs come later.
  const std::size_t usual = dataplane::inner_mtu(crypto::info(crypto::Suite::aes_gcm256), 1500,
                                                 family == Family::v6, true);
  out.mtu = static_cast<unsigned>(fields.number("mtu", 68, 65535).value_or(usual));
  for (const std::string& text : fields.texts("addresses")) {
    try {
      const auto more = parse_interface_addresses(text);
      out.addresses.insert(out.addresses.end(), more.begin(), more.end());
    } catch (const std::invalid_argument& e) {
      fields.refuse("addresses", e.what());
    }
  }
  return out;
}

json sa_json(const dataplane::SaStatus& status, const dataplane::SaSpec* spec,
             std::chrono::steady_clock::time_point now) {
  json out = sa_json(status, now);
  const bool in = status.direction == Direction::in;
  const ifaces::Endpoint& from = in ? status.peer : status.local;
  const ifaces::Endpoint& to = in ? status.local : status.peer;
  out["source"] = from.address.str();
  out["destination"] = to.address.str();
  if (status.encapsulation == Encapsulation::udp) {
    out["source_port"] = from.port;
    out["destination_port"] = to.port;
  }
  out["id"] = static_cast<std::uint32_t>(status.id);
  out["lifetime"] = {{"bytes", limit_json(status.lifetime.bytes)},
                     {"packets", limit_json(status.lifetime.packets)},
                     {"seconds", limit_json(status.lifetime.seconds)}};
  out["expired"] = status.expired;
  out["age_s"] = std::chrono::duration<double>(now - status.added).count();
  if (spec == nullptr) return out;
  out["mark"] = str(spec->mark);
  out["if_id"] = spec->if_id;
  out["outer"] = outer_json(spec->outer);
  out["outer_mark"] = spec->outer_mark;
  out["follow_peer"] = spec->follow_peer;
  out["tfc"] = spec->tfc_padding == dataplane::kTfcToMtu ? json("mtu") : json(spec->tfc_padding);
  out["mss_clamp"] =
      spec->mss_clamp == dataplane::kMssToPath ? json("path") : json(spec->mss_clamp);
  return out;
}

json policy_json(const dataplane::PolicyStatus& status) {
  const dataplane::PolicySpec& spec = status.spec;
  json out = {{"id", static_cast<std::uint32_t>(status.id)},
              {"direction", name(spec.direction)},
              {"mark", str(spec.mark)},
              {"priority", spec.priority},
              {"action", kActions[static_cast<std::size_t>(spec.action)]},
              {"reqid", spec.reqid},
              {"if_id", spec.if_id},
              {"trap", spec.trap},
              {"name", spec.name}};
  add_selector(spec.selector, out);
  return out;
}

json event_json(const dataplane::Event& event, std::chrono::system_clock::time_point when) {
  using dataplane::EventKind;
  json out = {{"event", dataplane::kEventNames[static_cast<std::size_t>(event.kind)]},
              {"time", std::chrono::duration<double>(when.time_since_epoch()).count()},
              {"count", event.count}};
  const bool of_sa = event.sa != dataplane::SaId{};
  if (of_sa || event.kind == EventKind::no_spi) out["spi"] = hex(event.spi);
  if (of_sa) {
    out["sa"] = static_cast<std::uint32_t>(event.sa);
    out["direction"] = name(event.direction);
  }
  if (of_sa || event.kind == EventKind::acquire) out["reqid"] = event.reqid;
  if (event.policy != dataplane::PolicyId{})
    out["policy"] = static_cast<std::uint32_t>(event.policy);
  if (event.seq != 0) out["seq"] = event.seq;
  if (event.path_mtu != 0) out["path_mtu"] = event.path_mtu;
  for (const auto& [member, end] :
       {std::pair{"local", event.local}, {"peer", event.peer}, {"old_peer", event.old_peer}})
    if (end.address.family != Family::none) out[member] = end_text(end);
  if (event.flow.source.family != Family::none)
    out["flow"] = {{"source", event.flow.source.str()},
                   {"destination", event.flow.destination.str()},
                   {"protocol", protocol_text(event.flow.protocol)},
                   {"source_port", event.flow.source_port},
                   {"destination_port", event.flow.destination_port}};
  return out;
}

}  // namespace espalier::tools
