// IP addresses, prefixes and end points, both families.
#pragma once

#include <sys/socket.h>

#include <array>
#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace espalier::ifaces {

// NOLINT below: clang-tidy 14 takes the 0 that a defaulted comparison compares with for a pointer.

enum class Family : std::uint8_t { none, v4, v6 };

// Network byte order; an IPv4 address uses the first four bytes, the rest are zero.
struct IpAddress {
  std::array<std::uint8_t, 16> bytes{};
  Family family = Family::none;

  [[nodiscard]] static std::optional<IpAddress> parse(std::string_view text);
  [[nodiscard]] static IpAddress v4(std::span<const std::uint8_t, 4> bytes) noexcept;
  [[nodiscard]] static IpAddress v6(std::span<const std::uint8_t, 16> bytes) noexcept;
  [[nodiscard]] static IpAddress any(Family family) noexcept;
  [[nodiscard]] bool is_any() const noexcept;  // all zero, or no family at all
  [[nodiscard]] unsigned bits() const noexcept { return family == Family::v6 ? 128 : 32; }
  [[nodiscard]] std::size_t size() const noexcept { return bits() / 8; }
  [[nodiscard]] std::string str() const;
  auto operator<=>(const IpAddress&) const = default;  // NOLINT(modernize-use-nullptr)
};

struct Prefix {
  IpAddress address;  // host bits may be set (an interface address); contains() ignores them
  std::uint8_t length = 0;

  [[nodiscard]] static std::optional<Prefix> parse(std::string_view text);  // no /length: a host
  [[nodiscard]] bool contains(const IpAddress& a) const noexcept;
  [[nodiscard]] Prefix network() const noexcept;  // host bits cleared
  [[nodiscard]] std::string str() const;
  auto operator<=>(const Prefix&) const = default;  // NOLINT(modernize-use-nullptr)
};

struct Endpoint {
  IpAddress address;
  std::uint16_t port = 0;  // host order

  [[nodiscard]] static Endpoint from(const sockaddr_storage& sa) noexcept;
  // Returns the length to pass with it.
  socklen_t to(sockaddr_storage& sa) const noexcept;
  [[nodiscard]] std::string str() const;              // 192.0.2.1:4500, [2001:db8::1]:4500
  auto operator<=>(const Endpoint&) const = default;  // NOLINT(modernize-use-nullptr)
};

}  // namespace espalier::ifaces
