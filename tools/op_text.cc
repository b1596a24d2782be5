#include "tools/op_text.h"

#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <string_view>

#include "tools/json_text.h"
#include "tools/status.h"

namespace espalier::tools {
namespace {

using nlohmann::json;

// " word VALUE", or nothing if there is none or it says no more than the default.
std::string pair(const json& object, const char* member, std::string_view word,
                 std::string_view usual = {}) {
  const std::string value = text_of(object, member);
  if (value.empty() || value == usual) return {};
  return " " + std::string(word) + " " + value;
}

bool is_true(const json& object, const char* member) {
  const auto found = object.find(member);
  return found != object.end() && found->is_boolean() && found->get<bool>();
}

std::string limits_text(const json& sa) {
  std::string out;
  const auto lifetime = sa.find("lifetime");
  if (lifetime == sa.end() || !lifetime->is_object()) return out;
  constexpr std::array<std::array<const char*, 2>, 3> kKinds = {
      {{"seconds", "time"}, {"bytes", "byte"}, {"packets", "packet"}}};
  for (const auto& [member, word] : kKinds) {
    const auto limit = lifetime->find(member);
    if (limit == lifetime->end() || !limit->is_object()) continue;
    for (const char* const which : {"soft", "hard"})
      out += pair(*limit, which, std::string("limit ") + word + "-" + which, "0");
  }
  return out;
}

std::string outer_text(const json& sa) {
  const auto outer = sa.find("outer");
  if (outer == sa.end() || !outer->is_object()) return {};
  std::string out = pair(*outer, "dscp", "dscp", "copy") + pair(*outer, "df", "df", "copy") +
                    pair(*outer, "hop_limit", "hop-limit", "0");
  if (is_true(*outer, "dscp_inwards")) out += " dscp-inwards yes";
  if (!is_true(*outer, "ecn")) out += " ecn no";
  if (is_true(*outer, "copy_flow_label")) out += " copy-flow-label yes";
  return out;
}

std::string indented(const std::string& text) {
  return text.empty() ? "" : "\t" + text.substr(1) + "\n";
}

std::string ports_text(const json& policy) {
  return pair(policy, "source_port", "sport") + pair(policy, "destination_port", "dport") +
         pair(policy, "icmp_type", "type") + pair(policy, "icmp_code", "code");
}

std::string clock_text(const json& event) {
  const double time = seconds_of(event, "time");
  if (!(time >= 0) || time > 1e11) return "-";
  const auto seconds = static_cast<std::time_t>(time);
  std::tm local{};
  ::localtime_r(&seconds, &local);
  std::array<char, 32> text{};
  const std::size_t length = std::strftime(text.data(), text.size(), "%F %T", &local);
  std::snprintf(text.data() + length, text.size() - length, ".%03d",
                static_cast<int>((time - std::floor(time)) * 1000));
  return text.data();
}

std::string flow_text(const json& flow) {
  const auto end = [&flow](const char* address, const char* port) {
    const std::string number = text_of(flow, port);
    return text_of(flow, address) + (number.empty() || number == "0" ? "" : " port " + number);
  };
  return text_of(flow, "protocol") + " " + end("source", "source_port") + " -> " +
         end("destination", "destination_port");
}

}  // namespace

std::string sa_lines(const json& sa) {
  std::string out = "src " + text_of(sa, "source") + " dst " + text_of(sa, "destination") + "\n";
  out += "\tproto esp spi " + text_of(sa, "spi") + pair(sa, "reqid", "reqid") +
         " mode tunnel dir " + text_of(sa, "direction") + pair(sa, "id", "id") + "\n";
  std::string encapsulation = " enc " + text_of(sa, "encapsulation");
  if (sa.contains("source_port"))
    encapsulation += " " + text_of(sa, "source_port") + " " + text_of(sa, "destination_port");
  out += "\tsuite " + text_of(sa, "suite") + " by " + text_of(sa, "backend") + encapsulation +
         (is_true(sa, "esn") ? " flag esn" : "") + pair(sa, "window", "window") + "\n";
  out += indented(pair(sa, "mark", "mark", "0/0x0") + pair(sa, "if_id", "if_id", "0") +
                  pair(sa, "outer_mark", "outer-mark", "0") + pair(sa, "tfc", "tfc", "0") +
                  pair(sa, "mss_clamp", "mss", "0") + outer_text(sa));
  out += indented(limits_text(sa));
  out += "\tseq " + text_of(sa, "seq") + ", " + text_of(sa, "packets") + " packets, " +
         text_of(sa, "bytes") + " bytes" + (is_true(sa, "expired") ? ", expired" : "");
  const std::string conn = text_of(sa, "conn");
  if (!conn.empty()) out += ", name " + conn;
  out += "\n";
  const std::string drops = drops_text(sa);
  return drops.empty() ? out : out + "\tdropped: " + drops + "\n";
}

std::string explain_text(const json& reply) {
  const auto member = [&reply](const char* name) -> const json& {
    static const json kNone = json::object();
    const auto found = reply.find(name);
    return found != reply.end() && found->is_object() ? *found : kNone;
  };
  std::string out = "device   " + text_of(reply, "device") + pair(reply, "mark", "mark", "0") +
                    (is_true(reply, "routed") ? ", by the kernel's routes\n" : "\n");
  if (const json& policy = member("policy"); !policy.empty())
    out += "policy   " + text_of(policy, "action") + " src " + text_of(policy, "source") + " dst " +
           text_of(policy, "destination") + pair(policy, "protocol", "proto", "any") +
           pair(policy, "reqid", "reqid", "0") + pair(policy, "name", "name") +
           pair(policy, "id", "id") + "\n";
  if (const json& sa = member("sa"); !sa.empty())
    out += "SA       " + text_of(sa, "spi") + " " + text_of(sa, "suite") + ", " +
           text_of(sa, "encapsulation") + " " + text_of(sa, "local") + " -> " +
           text_of(sa, "peer") + pair(sa, "seq", "number") + "\n";
  if (text_of(reply, "drop").empty()) {
    const std::string pieces = text_of(reply, "pieces");
    return out + "leaves   as " + (pieces == "1" ? "one packet" : pieces + " packets") + " of " +
           (pieces == "1" ? "" : "up to ") + text_of(reply, "outer_length") + " bytes\n";
  }
  return out + "dropped  " + text_of(reply, "drop") + ": " + text_of(reply, "why") + "\n";
}

std::string policy_lines(const json& policy) {
  std::string out = "src " + text_of(policy, "source") + " dst " + text_of(policy, "destination") +
                    pair(policy, "protocol", "proto", "any") + ports_text(policy) + "\n";
  out += "\tdir " + text_of(policy, "direction") + " action " + text_of(policy, "action") +
         pair(policy, "priority", "priority") + pair(policy, "reqid", "reqid", "0") +
         pair(policy, "mark", "mark", "0/0x0") + pair(policy, "if_id", "if_id", "0") +
         (is_true(policy, "trap") ? " trap yes" : "") + pair(policy, "name", "name") +
         pair(policy, "id", "id") + "\n";
  return out;
}

std::string vti_line(const json& vti) {
  std::string out = text_of(vti, "name") + ": ip/ip" + pair(vti, "remote", "remote") +
                    pair(vti, "local", "local");
  const std::string ikey = text_of(vti, "ikey"), okey = text_of(vti, "okey");
  if (ikey == okey)
    out += okey == "0" ? "" : " key " + okey;
  else
    out += pair(vti, "ikey", "ikey", "0") + pair(vti, "okey", "okey", "0");
  return out + pair(vti, "if_id", "if_id", "0") + pair(vti, "mtu", "mtu", "0") + "\n";
}

std::string vti_counters(const json& vti) {
  const auto row = [&](const char* packets, const char* bytes, const std::string& errors,
                       const std::string& loops, const std::string& no_route) {
    std::array<char, 128> text{};
    std::snprintf(text.data(), text.size(), "    %-10s %-12s %-6s %-8s %-8s %s\n",
                  text_of(vti, packets).c_str(), text_of(vti, bytes).c_str(), errors.c_str(),
                  loops.c_str(), no_route.c_str(), "0");
    return std::string(text.data());
  };
  // A packet without policy or SA is what a kernel VTI counts as a carrier error.
  return "RX: Packets    Bytes        Errors CsumErrs OutOfSeq Mcasts\n" +
         row("rx_packets", "rx_bytes", text_of(vti, "rx_errors"), "0", "0") +
         "TX: Packets    Bytes        Errors DeadLoop NoRoute  NoBufs\n" +
         row("tx_packets", "tx_bytes",
             std::to_string(count_of(vti, "tx_no_sa") + count_of(vti, "tx_loops")),
             text_of(vti, "tx_loops"), text_of(vti, "tx_no_sa"));
}

std::string event_line(const json& event) {
  std::string out = clock_text(event) + " " + text_of(event, "event") +
                    pair(event, "conn", "conn") + pair(event, "device", "device") +
                    pair(event, "spi", "spi") + pair(event, "direction", "dir") +
                    pair(event, "reqid", "reqid") + pair(event, "seq", "seq") +
                    pair(event, "local", "local") + pair(event, "old_peer", "from") +
                    pair(event, "peer", event.contains("old_peer") ? "to" : "peer") +
                    pair(event, "path_mtu", "mtu") + pair(event, "count", "count", "1");
  const auto flow = event.find("flow");
  if (flow != event.end() && flow->is_object()) out += ": " + flow_text(*flow);
  return out + "\n";
}

}  // namespace espalier::tools
