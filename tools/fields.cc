#include "tools/fields.h"

#include <algorithm>
#include <charconv>

#include "tools/config_text.h"

namespace espalier::tools {

using nlohmann::json;

std::optional<std::uint64_t> to_number64(std::string_view text) {
  int base = 10;
  if (text.starts_with("0x") || text.starts_with("0X")) {
    base = 16;
    text.remove_prefix(2);
  }
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

Fields::Fields(const json& object, std::string within)
    : object_(object), within_(std::move(within)) {
  if (!object_.is_object())
    throw std::invalid_argument((within_.empty() ? "an operation" : within_) +
                                R"( is an object: write {"op":…})");
  if (within_.empty()) known_ = {"version", "op"};
}

const json* Fields::find(std::string_view name) {
  const auto [known, unused] = known_.emplace(name);
  const auto member = object_.find(*known);
  return member == object_.end() || member->is_null() ? nullptr : &*member;
}

void Fields::refuse(std::string_view name, const std::string& why) const {
  throw std::invalid_argument((within_.empty() ? "" : within_ + ".") + std::string(name) + ": " +
                              why);
}

std::optional<std::uint64_t> Fields::number(std::string_view name, std::uint64_t least,
                                            std::uint64_t most) {
  const json* const member = find(name);
  if (member == nullptr) return std::nullopt;
  std::optional<std::uint64_t> value;
  if (member->is_number_unsigned()) value = member->get<std::uint64_t>();
  if (member->is_string()) value = to_number64(member->get_ref<const std::string&>());
  if (value && *value >= least && *value <= most) return value;
  // A key that went astray is not quoted: it could be one.
  refuse(name, "write a number from " + std::to_string(least) + " to " + std::to_string(most));
}

std::optional<std::string> Fields::text(std::string_view name) {
  const json* const member = find(name);
  if (member == nullptr) return std::nullopt;
  if (member->is_number_unsigned()) return std::to_string(member->get<std::uint64_t>());
  if (!member->is_string()) refuse(name, "write a text");
  return member->get<std::string>();
}

std::optional<bool> Fields::flag(std::string_view name) {
  const json* const member = find(name);
  if (member == nullptr) return std::nullopt;
  if (member->is_boolean()) return member->get<bool>();
  refuse(name, "write true or false");
}

std::optional<ifaces::IpAddress> Fields::address(std::string_view name) {
  return parsed(name, [](const std::string& value) {
    const auto address = ifaces::IpAddress::parse(value);
    if (!address)
      throw std::invalid_argument(in_quotes(value) +
                                  " is no IP address; write one, as in 192.0.2.1");
    return *address;
  });
}

std::vector<std::string> Fields::texts(std::string_view name) {
  const json* const member = find(name);
  if (member == nullptr) return {};
  const auto is_text = [](const json& entry) { return entry.is_string(); };
  if (!member->is_array() || !std::all_of(member->begin(), member->end(), is_text))
    refuse(name, "write a list of texts");
  return member->get<std::vector<std::string>>();
}

const json* Fields::object(std::string_view name) {
  const json* const member = find(name);
  if (member != nullptr && !member->is_object()) refuse(name, "write an object");
  return member;
}

std::optional<std::size_t> Fields::one_of(std::string_view name,
                                          std::span<const std::string_view> words) {
  const std::optional<std::string> value = text(name);
  if (!value) return std::nullopt;
  const auto found = std::find(words.begin(), words.end(), *value);
  if (found != words.end()) return static_cast<std::size_t>(found - words.begin());
  std::string known;
  for (const std::string_view w : words) known.append(known.empty() ? "" : ", ").append(w);
  refuse(name, in_quotes(*value) + " is not possible; write one of " + known);
}

void Fields::done() const {
  const std::vector<std::string_view> known(known_.begin(), known_.end());
  for (const auto& [name, unused] : object_.items()) {
    if (known_.contains(name)) continue;
    const std::string_view near = nearest(name, known);
    refuse(in_quotes(name),
           near.empty() ? "no such member here" : "no such member; write " + std::string(near));
  }
}

}  // namespace espalier::tools
