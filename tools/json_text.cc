#include "tools/json_text.h"

#include "dataplane/drop.h"
#include "tools/log.h"
#include "tools/status.h"

namespace espalier::tools {

using nlohmann::json;

std::string text_of(const json& object, const char* key) {
  const auto member = object.find(key);
  if (member == object.end()) return {};
  if (member->is_string()) return printable(member->get_ref<const std::string&>());
  return member->is_number_unsigned() ? std::to_string(member->get<std::uint64_t>()) : "";
}

std::uint64_t count_of(const json& object, const char* key) {
  const auto member = object.find(key);
  return member != object.end() && member->is_number_unsigned() ? member->get<std::uint64_t>() : 0;
}

double seconds_of(const json& object, const char* key) {
  const auto member = object.find(key);
  return member != object.end() && member->is_number() ? member->get<double>() : -1;
}

std::string drops_text(const json& object) {
  std::string out;
  const auto drops = object.find("drops");
  if (drops == object.end() || !drops->is_object()) return out;
  for (const dataplane::DropInfo& drop : dataplane::kDropInfo) {
    const std::uint64_t count = count_of(*drops, std::string(drop.name).c_str());
    if (count != 0)
      out.append(out.empty() ? "" : ", ").append(drop.name).append(" " + human_count(count));
  }
  return out;
}

}  // namespace espalier::tools
