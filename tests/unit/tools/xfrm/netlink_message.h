// Requests and answers of NETLINK_XFRM as bytes, made and read by hand: libnl is what is tested.
#pragma once

#include <linux/netlink.h>
#include <linux/xfrm.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace espalier::test {

using Bytes = std::vector<std::uint8_t>;

template <class T>
Bytes bytes_of(const T& value) {
  Bytes out(sizeof value);
  std::memcpy(out.data(), &value, sizeof value);
  return out;
}

template <class T>
T read_as(std::span<const std::uint8_t> bytes) {
  T value{};
  std::memcpy(&value, bytes.data(), std::min(bytes.size(), sizeof value));
  return value;
}

class Message {
 public:
  explicit Message(std::uint16_t type, std::uint16_t flags = NLM_F_REQUEST | NLM_F_ACK) {
    nlmsghdr header{};
    header.nlmsg_len = NLMSG_HDRLEN;
    header.nlmsg_type = type;
    header.nlmsg_flags = flags;
    header.nlmsg_seq = 7;
    bytes_ = bytes_of(header);
  }

  template <class T>
  Message& fixed(const T& value) {
    return raw(bytes_of(value));
  }
  Message& raw(const Bytes& bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return set_length(bytes_.size());
  }
  // `length`: what the attribute says of itself; 0: the truth.
  Message& put(std::uint16_t type, const Bytes& value, std::uint16_t length = 0) {
    pad();
    nlattr header{};
    header.nla_type = type;
    header.nla_len = length != 0 ? length : static_cast<std::uint16_t>(NLA_HDRLEN + value.size());
    return raw(bytes_of(header)).raw(value);
  }
  template <class T>
  Message& put(std::uint16_t type, const T& value) {
    return put(type, bytes_of(value));
  }
  Message& set_length(std::size_t length) {
    const auto truth = static_cast<std::uint32_t>(length);
    std::memcpy(bytes_.data(), &truth, sizeof truth);
    return *this;
  }
  Message& set_sequence(std::uint32_t sequence) {
    std::memcpy(bytes_.data() + offsetof(nlmsghdr, nlmsg_seq), &sequence, sizeof sequence);
    return *this;
  }
  void pad() { bytes_.resize(NLMSG_ALIGN(bytes_.size())); }

  [[nodiscard]] const Bytes& bytes() const { return bytes_; }
  [[nodiscard]] nlmsghdr* header() { return reinterpret_cast<nlmsghdr*>(bytes_.data()); }

 private:
  Bytes bytes_;
};

// A message of an answer.
struct Answered {
  nlmsghdr header{};
  Bytes payload;

  [[nodiscard]] int error() const { return -read_as<nlmsgerr>(payload).error; }
  // Of an attribute behind `fixed` bytes; empty: it is not there.
  [[nodiscard]] Bytes attribute(std::size_t fixed, std::uint16_t type) const {
    const std::vector<Bytes> all = attributes(fixed, type);
    return all.empty() ? Bytes() : all.front();
  }
  [[nodiscard]] std::vector<Bytes> attributes(std::size_t fixed, std::uint16_t type) const {
    std::vector<Bytes> found;
    std::span rest = std::span(payload).subspan(NLMSG_ALIGN(fixed));
    while (rest.size() >= NLA_HDRLEN) {
      const auto attribute = read_as<nlattr>(rest);
      if (attribute.nla_len < NLA_HDRLEN || attribute.nla_len > rest.size()) break;
      const auto value = rest.subspan(NLA_HDRLEN, attribute.nla_len - std::size_t{NLA_HDRLEN});
      if (attribute.nla_type == type) found.emplace_back(value.begin(), value.end());
      rest = rest.subspan(std::min<std::size_t>(NLA_ALIGN(attribute.nla_len), rest.size()));
    }
    return found;
  }
  // What NETLINK_EXT_ACK says.
  [[nodiscard]] std::string text() const {
    if ((header.nlmsg_flags & NLM_F_ACK_TLVS) == 0) return "";
    const bool capped = (header.nlmsg_flags & NLM_F_CAPPED) != 0;
    const auto whole = read_as<nlmsgerr>(payload);
    const std::size_t fixed = sizeof whole + (capped ? 0 : whole.msg.nlmsg_len - NLMSG_HDRLEN);
    const Bytes value = attribute(fixed, NLMSGERR_ATTR_MSG);
    return value.empty() ? "" : std::string(value.begin(), value.end() - 1);
  }
};

// The messages of a datagram. What is no netlink is an empty answer.
inline std::vector<Answered> split(std::span<const std::uint8_t> rest) {
  std::vector<Answered> out;
  while (!rest.empty()) {
    const auto header = read_as<nlmsghdr>(rest);
    if (header.nlmsg_len < NLMSG_HDRLEN || header.nlmsg_len > rest.size() ||
        header.nlmsg_len % NLMSG_ALIGNTO != 0)
      return {};
    const auto payload = rest.subspan(NLMSG_HDRLEN, header.nlmsg_len - std::size_t{NLMSG_HDRLEN});
    out.push_back({header, Bytes(payload.begin(), payload.end())});
    rest = rest.subspan(header.nlmsg_len);
  }
  return out;
}

// xfrm_algo; with `icv_bits` xfrm_algo_auth or xfrm_algo_aead. `key_bits`: if not the truth.
inline Bytes algorithm(std::string_view name, const Bytes& key,
                       std::optional<std::uint32_t> icv_bits = {},
                       std::optional<std::uint32_t> key_bits = {}) {
  Bytes out(sizeof(xfrm_algo::alg_name));
  std::memcpy(out.data(), name.data(), std::min(name.size(), out.size()));
  const auto append = [&out](const Bytes& bytes) {
    out.insert(out.end(), bytes.begin(), bytes.end());
  };
  append(bytes_of(key_bits.value_or(static_cast<std::uint32_t>(key.size() * 8))));
  if (icv_bits) append(bytes_of(*icv_bits));
  append(key);
  return out;
}

}  // namespace espalier::test
