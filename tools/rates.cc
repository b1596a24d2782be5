#include "tools/rates.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>
#include <vector>

#include "tools/json_text.h"
#include "tools/status.h"

namespace espalier::tools {
namespace {

using nlohmann::json;

// The objects of a list by what names them.
using Named = std::map<std::string, const json*>;
using NameOf = std::string (*)(const json&);

const json& list_of(const json& reply, const char* member) {
  static const json kNone = json::array();
  const auto found = reply.find(member);
  return found != reply.end() && found->is_array() ? *found : kNone;
}

Named by_name(const json& list, NameOf name_of) {
  Named out;
  for (const json& entry : list)
    if (entry.is_object()) out.emplace(name_of(entry), &entry);
  return out;
}

std::string device_name(const json& device) {
  return text_of(device, "name");
}
// An SPI is of the receiver, so the same one may be twice.
std::string sa_name(const json& sa) {
  return text_of(sa, "direction") + text_of(sa, "spi") + text_of(sa, "local") + text_of(sa, "conn");
}

// What was counted since. A counter that is less than before is another's, of the same name.
double rate(const json* before, const json& after, const char* member, double seconds) {
  const std::uint64_t now = count_of(after, member);
  const std::uint64_t was = before == nullptr ? now : count_of(*before, member);
  return static_cast<double>(now < was ? now : now - was) / seconds;
}

const json* find(const Named& named, const std::string& name) {
  const auto found = named.find(name);
  return found == named.end() ? nullptr : found->second;
}

bool is_true(const json& object, const char* member) {
  const auto found = object.find(member);
  return found != object.end() && found->is_boolean() && found->get<bool>();
}

double number_of(const json& object, const char* member) {
  return std::max(0.0, seconds_of(object, member));
}

json device_rates(const json& before, const json& after, double seconds) {
  const Named known = by_name(list_of(before, "devices"), device_name);
  json out = json::array();
  for (const auto& [name, device] : by_name(list_of(after, "devices"), device_name)) {
    const json* const was = find(known, name);
    out.push_back({{"name", name},
                   {"carrier", is_true(*device, "carrier")},
                   {"rx_packets", rate(was, *device, "rx_packets", seconds)},
                   {"rx_bits", 8 * rate(was, *device, "rx_bytes", seconds)},
                   {"tx_packets", rate(was, *device, "tx_packets", seconds)},
                   {"tx_bits", 8 * rate(was, *device, "tx_bytes", seconds)}});
  }
  return out;
}

json sa_rates(const json& before, const json& after, double seconds) {
  const Named known = by_name(list_of(before, "sas"), sa_name);
  std::vector<json> out;
  for (const auto& [name, sa] : by_name(list_of(after, "sas"), sa_name)) {
    const json* const was = find(known, name);
    json line = {{"packets", rate(was, *sa, "packets", seconds)},
                 {"bits", 8 * rate(was, *sa, "bytes", seconds)}};
    for (const char* member : {"conn", "direction", "spi", "local", "peer"})
      line[member] = text_of(*sa, member);
    out.push_back(std::move(line));
  }
  std::stable_sort(out.begin(), out.end(), [](const json& a, const json& b) {
    return number_of(a, "bits") > number_of(b, "bits");
  });
  return out;
}

json drop_rates(const json& before, const json& after, double seconds) {
  json out = json::object();
  const auto now = after.find("drops");
  const auto was = before.find("drops");
  if (now == after.end() || !now->is_object()) return out;
  for (const auto& [name, unused] : now->items()) {
    const double n = rate(was == before.end() ? nullptr : &*was, *now, name.c_str(), seconds);
    if (n > 0) out[name] = n;
  }
  return out;
}

std::string bits_text(double bits) {
  constexpr std::array kUnits = {"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"};
  std::size_t unit = 0;
  for (; bits >= 1000 && unit + 1 < kUnits.size(); ++unit) bits /= 1000;
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", bits, kUnits[unit]);
  return text.data();
}

std::string packets_text(double packets) {
  return human_count(static_cast<std::uint64_t>(std::llround(std::min(packets, 1e15)))) +
         " packets/s";
}

std::string padded(const std::string& text, std::size_t width) {
  return text.size() < width ? text + std::string(width - text.size(), ' ') : text;
}

std::string flow_text(const json& object, const char* packets, const char* bits) {
  return padded(bits_text(number_of(object, bits)), 14) +
         padded(packets_text(number_of(object, packets)), 22);
}

}  // namespace

json rates(const json& before, const json& after, double seconds) {
  return {{"devices", device_rates(before, after, seconds)},
          {"sas", sa_rates(before, after, seconds)},
          {"sa_count", count_of(after, "sa_count")},
          {"drops", drop_rates(before, after, seconds)}};
}

std::string rates_text(const json& rates, std::size_t lines) {
  std::vector<std::string> out;
  for (const json& device : list_of(rates, "devices"))
    out.push_back(padded(text_of(device, "name"), 16) + "in  " +
                  flow_text(device, "rx_packets", "rx_bits") + "out  " +
                  flow_text(device, "tx_packets", "tx_bits") +
                  (is_true(device, "carrier") ? "" : "no carrier"));
  if (const auto drops = rates.find("drops"); drops != rates.end() && drops->is_object())
    for (const auto& [name, unused] : drops->items())
      out.push_back(padded("dropped", 16) + padded(name, 18) +
                    packets_text(number_of(*drops, name.c_str())));
  out.emplace_back(std::to_string(count_of(rates, "sa_count")) + " SAs, the busiest first:");
  for (const json& sa : list_of(rates, "sas"))
    out.push_back(padded(text_of(sa, "conn"), 16) + padded(text_of(sa, "direction"), 4) +
                  flow_text(sa, "packets", "bits") + text_of(sa, "spi") + "  " +
                  text_of(sa, "local") + (text_of(sa, "direction") == "in" ? " <- " : " -> ") +
                  text_of(sa, "peer"));
  std::string text;
  for (std::size_t i = 0; i < std::min(lines, out.size()); ++i) {
    const std::size_t last = out[i].find_last_not_of(' ');
    text.append(out[i], 0, last + 1).append("\n");
  }
  return text;
}

}  // namespace espalier::tools
