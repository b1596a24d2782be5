#include "tools/status.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <string_view>

#include "tools/json_text.h"
#include "tools/log.h"

namespace espalier::tools {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

std::string hex(std::uint32_t value) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "0x%08x", value);
  return text.data();
}

std::string_view name(dataplane::Encapsulation e) {
  return e == dataplane::Encapsulation::udp ? "udp" : "esp";
}

std::string_view type_name(dataplane::PolicyAction action) {
  switch (action) {
    case dataplane::PolicyAction::protect:
      return "tunnel";
    case dataplane::PolicyAction::bypass:
      return "passthrough";
    case dataplane::PolicyAction::discard:
      return "drop";
  }
  return "";
}

// `all`: also those at zero, so that a script need not ask whether one is there.
json drops_json(const std::array<std::uint64_t, dataplane::kDropCount>& drops, bool all) {
  json out = json::object();
  for (std::size_t i = 0; i < drops.size(); ++i)
    if (all || drops[i] != 0) out[std::string(dataplane::kDropInfo[i].name)] = drops[i];
  return out;
}

json conn_json(const ConnStatus& c, Clock::time_point now) {
  json out = {{"name", c.name},
              {"state", c.up ? "up" : "failed"},
              {"type", type_name(c.action)},
              {"since_s", seconds_between(c.since, now)},
              {"device", c.device},
              {"left", c.left},
              {"right", c.right},
              {"leftsubnet", c.leftsubnet},
              {"rightsubnet", c.rightsubnet},
              {"mark_in", c.mark_in},
              {"mark_out", c.mark_out},
              {"encapsulation", name(c.encapsulation)},
              {"esp", crypto::info(c.esp).name},
              {"mtu", c.mtu},
              {"reqid", c.reqid}};
  if (!c.up) out["error"] = c.error;
  return out;
}

// The objects of an array; nothing if it is none.
std::vector<json> objects_of(const json& object, const char* key) {
  std::vector<json> out;
  const auto member = object.find(key);
  if (member == object.end() || !member->is_array()) return out;
  std::copy_if(member->begin(), member->end(), std::back_inserter(out),
               [](const json& entry) { return entry.is_object(); });
  return out;
}

std::string list_of(const json& object, const char* key) {
  std::string out;
  const auto member = object.find(key);
  if (member == object.end() || !member->is_array()) return out;
  for (const json& entry : *member)
    if (entry.is_string())
      out.append(out.empty() ? "" : ",").append(printable(entry.get_ref<const std::string&>()));
  return out;
}

std::string traffic_text(std::uint64_t bytes, std::uint64_t packets) {
  return human_bytes(bytes) + " in " + human_count(packets) +
         (packets == 1 ? " packet" : " packets");
}

std::string sa_text(const json& sa) {
  std::string direction = text_of(sa, "direction");
  direction.resize(3, ' ');
  std::string out = "  " + direction + " SPI " + text_of(sa, "spi") + ": " +
                    traffic_text(count_of(sa, "bytes"), count_of(sa, "packets"));
  const double age = seconds_of(sa, "last_packet_s");
  if (age >= 1) out += ", the last one " + human_duration(age) + " ago";
  if (age >= 0 && age < 1) out += ", the last one just now";
  const std::string drops = drops_text(sa);
  if (!drops.empty()) out += "\n      dropped: " + drops;
  return out + "\n";
}

std::string conn_text(const json& conn, const std::vector<json>& sas) {
  std::string out = "\nconn " + text_of(conn, "name") + ": " + text_of(conn, "state");
  const double since = seconds_of(conn, "since_s");
  if (since >= 0) out += " for " + human_duration(since);
  out += "\n";
  const std::string error = text_of(conn, "error");
  if (!error.empty()) out += "  " + error + "\n";
  const std::string type = text_of(conn, "type");
  if (type == "passthrough" || type == "drop")
    return out + "  " + type + ": " + list_of(conn, "leftsubnet") +
           " === " + list_of(conn, "rightsubnet") + ", mark " + text_of(conn, "mark_out") + "\n";
  std::string_view words = text_of(conn, "encapsulation") == "udp" ? "ESP in UDP" : "ESP";
  std::string local = text_of(conn, "left"), peer = text_of(conn, "right"), backend;
  const std::string name = text_of(conn, "name");
  for (const json& sa : sas) {
    if (text_of(sa, "conn") != name || text_of(sa, "direction") != "out") continue;
    local = text_of(sa, "local");
    peer = text_of(sa, "peer");
    backend = " by " + text_of(sa, "backend");
  }
  out += "  " + local + " <=> " + peer + ", ";
  out.append(words).append(", " + text_of(conn, "esp") + backend + "\n");
  out += "  " + list_of(conn, "leftsubnet") + " === " + list_of(conn, "rightsubnet") + " on " +
         text_of(conn, "device") + ", mark " + text_of(conn, "mark_out");
  if (text_of(conn, "mark_in") != text_of(conn, "mark_out"))
    out += " out, " + text_of(conn, "mark_in") + " in";
  out += ", MTU " + text_of(conn, "mtu") + "\n";
  for (const json& sa : sas)
    if (text_of(sa, "conn") == name) out += sa_text(sa);
  return out;
}

// As `ip tunnel show` has it, and `ip -s tunnel show` counts: errors are carrier errors (no policy
// or SA) and collisions (outer packets routed into their own tunnel).
std::string device_text(const json& device) {
  const auto counter = [&device](const char* key) { return human_count(count_of(device, key)); };
  std::string out = "\ndevice " + text_of(device, "name");
  const std::string ikey = text_of(device, "ikey"), okey = text_of(device, "okey");
  const std::string local = text_of(device, "local"), remote = text_of(device, "remote");
  if (!local.empty()) out += ": remote " + remote + " local " + local;
  out += ikey == okey ? " key " + okey : " ikey " + ikey + " okey " + okey;
  const auto carrier = device.find("carrier");
  if (carrier != device.end() && carrier->is_boolean() && !carrier->get<bool>())
    out += ", no carrier (no SA)";
  out +=
      "\n  received " + traffic_text(count_of(device, "rx_bytes"), count_of(device, "rx_packets"));
  if (count_of(device, "rx_errors") != 0) out += ", errors " + counter("rx_errors");
  out += "\n  sent " + traffic_text(count_of(device, "tx_bytes"), count_of(device, "tx_packets"));
  if (count_of(device, "tx_no_sa") != 0)
    out += "\n  without policy or SA, dropped: " + counter("tx_no_sa");
  if (count_of(device, "tx_loops") != 0)
    out += "\n  outer packets routed into their own tunnel, dropped: " + counter("tx_loops");
  return out + "\n";
}

std::string daemon_text(const json& daemon) {
  std::string out =
      "espalierd " + text_of(daemon, "version") + ", process " + text_of(daemon, "pid");
  const double uptime = seconds_of(daemon, "uptime_s");
  if (uptime >= 0) out += ", up for " + human_duration(uptime);
  out += "\n  engine: " + text_of(daemon, "engine");
  const std::uint64_t workers = count_of(daemon, "workers");
  out += ", " + human_count(workers) + (workers == 1 ? " worker" : " workers") + "\n";
  std::string crypto;
  for (const json& backend : objects_of(daemon, "crypto")) {
    const auto usable = backend.find("usable");
    if (usable == backend.end() || !usable->is_boolean() || !usable->get<bool>()) continue;
    crypto += (crypto.empty() ? "" : ", ") + text_of(backend, "name") + " (" +
              text_of(backend, "detail") + ")";
  }
  out += "  crypto: " + crypto + "\n";
  return out;
}

}  // namespace

json device_json(const dataplane::DeviceStatus& d) {
  const auto end = [](const ifaces::IpAddress& a) { return a.is_any() ? "any" : a.str(); };
  return {{"name", d.name},
          {"ikey", d.ikey},
          {"okey", d.okey},
          {"local", end(d.local)},
          {"remote", end(d.remote)},
          {"carrier", d.carrier},
          {"rx_packets", d.rx.packets},
          {"rx_bytes", d.rx.bytes},
          {"rx_errors", d.rx_errors},
          {"tx_packets", d.tx.packets},
          {"tx_bytes", d.tx.bytes},
          {"tx_no_sa", d.tx_no_sa},
          {"tx_loops", d.tx_loops}};
}

json sa_json(const dataplane::SaStatus& s, Clock::time_point now) {
  const bool in = s.direction == dataplane::Direction::in;
  json out = {{"conn", s.name},
              {"direction", in ? "in" : "out"},
              {"spi", hex(static_cast<std::uint32_t>(s.spi))},
              {"reqid", s.reqid},
              {"encapsulation", name(s.encapsulation)},
              {"local", s.local.str()},
              {"peer", s.peer.str()},
              {"suite", crypto::info(s.suite).name},
              {"backend", s.backend},
              {"esn", s.esn},
              {"packets", s.traffic.packets},
              {"bytes", s.traffic.bytes},
              {"seq", s.seq},
              {"last_packet_s", nullptr},
              {"drops", drops_json(s.drops, false)}};
  if (in) out["window"] = s.window_bits;
  if (!in) out["seq_limit"] = s.seq_limit;
  if (!in) out["path_mtu"] = s.path_mtu;
  if (s.last_packet) out["last_packet_s"] = seconds_between(*s.last_packet, now);
  return out;
}

json status_json(const DaemonStatus& status, Clock::time_point now) {
  json crypto = json::array();
  for (const crypto::BackendReport& report : status.crypto)
    crypto.push_back({{"name", report.name}, {"usable", report.usable}, {"detail", report.detail}});
  json out = {{"daemon",
               {{"version", ESPALIER_VERSION},
                {"pid", static_cast<std::uint64_t>(::getpid())},
                {"uptime_s", seconds_between(status.started, now)},
                {"config", status.config},
                {"engine", status.engine},
                {"workers", status.workers},
                {"crypto", std::move(crypto)}}},
              {"conns", json::array()},
              {"devices", json::array()},
              {"sas", json::array()},
              {"sa_count", status.sa_count},
              {"drops", drops_json(status.drops, true)}};
  for (const ConnStatus& conn : status.conns) out["conns"].push_back(conn_json(conn, now));
  for (const auto& device : status.devices) out["devices"].push_back(device_json(device));
  for (const auto& sa : status.sas) out["sas"].push_back(sa_json(sa, now));
  return out;
}

std::string status_text(const json& reply) {
  const auto daemon = reply.find("daemon");
  std::string out =
      daemon_text(daemon != reply.end() && daemon->is_object() ? *daemon : json::object());
  const std::vector<json> sas = objects_of(reply, "sas");
  for (const json& conn : objects_of(reply, "conns")) out += conn_text(conn, sas);
  for (const json& device : objects_of(reply, "devices")) out += device_text(device);
  const std::string drops = drops_text(reply);
  if (drops.empty()) return out + "\nno packet dropped\n";
  out += "\ndropped since the start: " + drops + "\n";
  for (const dataplane::DropInfo& drop : dataplane::kDropInfo)
    if (count_of(reply.at("drops"), std::string(drop.name).c_str()) != 0)
      out.append("  ").append(drop.name).append(": ").append(drop.text).append("\n");
  return out;
}

std::string human_bytes(std::uint64_t bytes) {
  constexpr std::array kUnits = {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  if (bytes < 1024) return std::to_string(bytes) + " B";
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.2f %s", value, kUnits[unit]);
  return text.data();
}

std::string human_duration(double seconds) {
  const auto whole = static_cast<std::uint64_t>(std::clamp(seconds, 0.0, 1e12));
  const auto two = [](std::uint64_t a, const char* a_unit, std::uint64_t b, const char* b_unit) {
    std::string out = std::to_string(a) + a_unit;
    if (b != 0) out += " " + std::to_string(b) + b_unit;
    return out;
  };
  if (whole >= 86400) return two(whole / 86400, " d", whole % 86400 / 3600, " h");
  if (whole >= 3600) return two(whole / 3600, " h", whole % 3600 / 60, " min");
  if (whole >= 60) return two(whole / 60, " min", whole % 60, " s");
  return std::to_string(whole) + " s";
}

std::string human_count(std::uint64_t count) {
  std::string out = std::to_string(count);
  for (std::size_t at = out.size(); at > 3; at -= 3) out.insert(at - 3, 1, ' ');
  return out;
}

}  // namespace espalier::tools
