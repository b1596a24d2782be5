#include "ifaces/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace espalier::ifaces {

std::optional<IpAddress> IpAddress::parse(std::string_view text) {
  if (text.find('\0') != std::string_view::npos) return std::nullopt;  // inet_pton would stop there
  const std::string copy(text);
  IpAddress a;
  if (inet_pton(AF_INET, copy.c_str(), a.bytes.data()) == 1) {
    a.family = Family::v4;
    return a;
  }
  if (inet_pton(AF_INET6, copy.c_str(), a.bytes.data()) == 1) {
    a.family = Family::v6;
    return a;
  }
  return std::nullopt;
}

IpAddress IpAddress::v4(std::span<const std::uint8_t, 4> bytes) noexcept {
  IpAddress a;
  std::copy(bytes.begin(), bytes.end(), a.bytes.begin());
  a.family = Family::v4;
  return a;
}

IpAddress IpAddress::v6(std::span<const std::uint8_t, 16> bytes) noexcept {
  IpAddress a;
  std::copy(bytes.begin(), bytes.end(), a.bytes.begin());
  a.family = Family::v6;
  return a;
}

IpAddress IpAddress::any(Family family) noexcept {
  IpAddress a;
  a.family = family;
  return a;
}

bool IpAddress::is_any() const noexcept {
  return std::all_of(bytes.begin(), bytes.end(), [](std::uint8_t b) { return b == 0; });
}

std::string IpAddress::str() const {
  if (family == Family::none) return "any";
  std::array<char, INET6_ADDRSTRLEN> text{};
  inet_ntop(family == Family::v4 ? AF_INET : AF_INET6, bytes.data(), text.data(), text.size());
  return text.data();
}

std::optional<Prefix> Prefix::parse(std::string_view text) {
  const auto slash = text.find('/');
  const auto address = IpAddress::parse(text.substr(0, slash));
  if (!address) return std::nullopt;
  unsigned length = address->bits();
  if (slash != std::string_view::npos) {
    const std::string_view digits = text.substr(slash + 1);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), length);
    if (error != std::errc() || end != digits.data() + digits.size() || length > address->bits())
      return std::nullopt;
  }
  return Prefix{*address, static_cast<std::uint8_t>(length)};
}

bool Prefix::contains(const IpAddress& a) const noexcept {
  if (a.family != address.family) return false;
  const std::size_t whole = length / 8;
  if (std::memcmp(a.bytes.data(), address.bytes.data(), whole) != 0) return false;
  const unsigned rest = length % 8;
  if (rest == 0) return true;
  return ((a.bytes[whole] ^ address.bytes[whole]) >> (8 - rest)) == 0;
}

Prefix Prefix::network() const noexcept {
  Prefix p = *this;
  for (std::size_t i = 0; i < p.address.bytes.size(); ++i) {
    const unsigned first_bit = static_cast<unsigned>(i) * 8;
    if (first_bit >= length) {
      p.address.bytes[i] = 0;
    } else if (first_bit + 8 > length) {
      p.address.bytes[i] =
          static_cast<std::uint8_t>(p.address.bytes[i] & (0xff << (first_bit + 8 - length)));
    }
  }
  return p;
}

std::string Prefix::str() const {
  return address.str() + "/" + std::to_string(length);
}

Endpoint Endpoint::from(const sockaddr_storage& sa) noexcept {
  Endpoint e;
  if (sa.ss_family == AF_INET) {
    sockaddr_in in{};
    std::memcpy(&in, &sa, sizeof in);
    std::memcpy(e.address.bytes.data(), &in.sin_addr, 4);
    e.address.family = Family::v4;
    e.port = ntohs(in.sin_port);
  } else if (sa.ss_family == AF_INET6) {
    sockaddr_in6 in6{};
    std::memcpy(&in6, &sa, sizeof in6);
    std::memcpy(e.address.bytes.data(), &in6.sin6_addr, 16);
    e.address.family = Family::v6;
    e.port = ntohs(in6.sin6_port);
  }
  return e;
}

socklen_t Endpoint::to(sockaddr_storage& sa) const noexcept {
  sa = {};
  if (address.family == Family::v6) {
    sockaddr_in6 in6{};
    in6.sin6_family = AF_INET6;
    in6.sin6_port = htons(port);
    std::memcpy(&in6.sin6_addr, address.bytes.data(), 16);
    std::memcpy(&sa, &in6, sizeof in6);
    return sizeof in6;
  }
  sockaddr_in in{};
  in.sin_family = AF_INET;
  in.sin_port = htons(port);
  std::memcpy(&in.sin_addr, address.bytes.data(), 4);
  std::memcpy(&sa, &in, sizeof in);
  return sizeof in;
}

std::string Endpoint::str() const {
  std::string text = address.str();
  if (port == 0) return text;
  return (address.family == Family::v6 ? "[" + text + "]" : text) + ":" + std::to_string(port);
}

}  // namespace espalier::ifaces
