// The members of a request, each asked for by name and type. Every refusal is one line that names
// the member; what nobody asked for is refused too, so that a misspelt option is none.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "ifaces/address.h"

namespace espalier::tools {

// All throw std::invalid_argument. The object must outlive this.
class Fields {
 public:
  // `within`: the member that holds `object`, for messages; empty for the request itself.
  explicit Fields(const nlohmann::json& object, std::string within = {});

  // Null if it is not there.
  [[nodiscard]] const nlohmann::json* find(std::string_view name);

  // A number, or text that holds one, 0x… too.
  [[nodiscard]] std::optional<std::uint64_t> number(std::string_view name, std::uint64_t least,
                                                    std::uint64_t most);
  [[nodiscard]] std::optional<std::string> text(std::string_view name);
  [[nodiscard]] std::optional<bool> flag(std::string_view name);
  [[nodiscard]] std::optional<ifaces::IpAddress> address(std::string_view name);
  [[nodiscard]] std::vector<std::string> texts(std::string_view name);
  [[nodiscard]] const nlohmann::json* object(std::string_view name);
  // What `parse` makes of its text, or of its number as text; what it throws gets the name in
  // front.
  template <typename Parse>
  [[nodiscard]] auto parsed(std::string_view name, Parse parse)
      -> std::optional<decltype(parse(std::string()))> {
    const std::optional<std::string> value = text(name);
    if (!value) return std::nullopt;
    try {
      return parse(*value);
    } catch (const std::invalid_argument& e) {
      refuse(name, e.what());
    }
  }
  // One of `words`: its place.
  template <std::size_t count>
  [[nodiscard]] std::optional<std::size_t> word(std::string_view name,
                                                const std::array<std::string_view, count>& words) {
    return one_of(name, {words.data(), count});
  }

  void done() const;  // throws if there is a member that was not asked for
  [[noreturn]] void refuse(std::string_view name, const std::string& why) const;

 private:
  [[nodiscard]] std::optional<std::size_t> one_of(std::string_view name,
                                                  std::span<const std::string_view> words);

  const nlohmann::json& object_;
  std::string within_;
  std::set<std::string, std::less<>> known_;
};

// Decimal or 0x…, up to 64 bits.
[[nodiscard]] std::optional<std::uint64_t> to_number64(std::string_view text);

}  // namespace espalier::tools
