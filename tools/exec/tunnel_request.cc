#include "tools/exec/tunnel_request.h"

#include <arpa/inet.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/msg.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace espalier::tools {
namespace {

using ifaces::IpAddress;

std::string text_of(const nlattr* attribute, std::size_t limit) {
  const auto* data = static_cast<const char*>(nla_data(attribute));
  const auto size = std::min(static_cast<std::size_t>(nla_len(attribute)), limit);
  return {data, ::strnlen(data, size)};
}

std::uint32_t number_of(const nlattr* attribute) {
  std::uint32_t value = 0;
  if (attribute != nullptr && nla_len(attribute) >= int{sizeof value})
    std::memcpy(&value, nla_data(attribute), sizeof value);
  return value;
}

IpAddress address_of(const nlattr* attribute) {
  if (attribute == nullptr) return {};
  const auto* data = static_cast<const std::uint8_t*>(nla_data(attribute));
  std::array<std::uint8_t, 4> four{};
  std::array<std::uint8_t, 16> sixteen{};
  if (nla_len(attribute) == int{four.size()}) {
    std::copy_n(data, four.size(), four.begin());
    return IpAddress::v4(four);
  }
  if (nla_len(attribute) != int{sixteen.size()}) return {};
  std::copy_n(data, sixteen.size(), sixteen.begin());
  return IpAddress::v6(sixteen);
}

// Any address is no address: a wildcard.
IpAddress end_of(const IpAddress& address) {
  return address.is_any() ? IpAddress{} : address;
}

using Attributes = std::array<nlattr*, IFLA_MAX + 1>;

bool read_vti(nlattr* data, dataplane::DeviceSpec& device) {
  std::array<nlattr*, IFLA_VTI_MAX + 1> vti{};
  if (data != nullptr && nla_parse_nested(vti.data(), IFLA_VTI_MAX, data, nullptr) != 0)
    return false;
  device.ikey = ntohl(number_of(vti[IFLA_VTI_IKEY]));
  device.okey = ntohl(number_of(vti[IFLA_VTI_OKEY]));
  device.local = end_of(address_of(vti[IFLA_VTI_LOCAL]));
  device.remote = end_of(address_of(vti[IFLA_VTI_REMOTE]));
  return true;
}

bool read_xfrm(nlattr* data, dataplane::DeviceSpec& device) {
  std::array<nlattr*, IFLA_XFRM_MAX + 1> xfrm{};
  if (data == nullptr || nla_parse_nested(xfrm.data(), IFLA_XFRM_MAX, data, nullptr) != 0)
    return false;
  device.if_id = number_of(xfrm[IFLA_XFRM_IF_ID]);
  return device.if_id != 0;
}

// Without IFLA_LINKINFO, and no longer a creation.
std::vector<std::uint8_t> without_kind(const nlmsghdr& header,
                                       std::span<const std::uint8_t> message) {
  constexpr std::size_t kFixed = NLMSG_HDRLEN + NLMSG_ALIGN(sizeof(ifinfomsg));
  std::vector<std::uint8_t> out(message.begin(), message.begin() + kFixed);
  for (std::size_t at = kFixed; at + sizeof(nlattr) <= message.size();) {
    nlattr attribute{};
    std::memcpy(&attribute, &message[at], sizeof attribute);
    const std::size_t size =
        std::min<std::size_t>(NLA_ALIGN(attribute.nla_len), message.size() - at);
    if (size < sizeof attribute) break;
    if ((attribute.nla_type & NLA_TYPE_MASK) != IFLA_LINKINFO)
      out.insert(out.end(), message.begin() + static_cast<std::ptrdiff_t>(at),
                 message.begin() + static_cast<std::ptrdiff_t>(at + size));
    at += size;
  }
  ifinfomsg info{};  // found by its name, whatever index the message has
  std::memcpy(&info, out.data() + NLMSG_HDRLEN, sizeof info);
  info.ifi_index = 0;
  std::memcpy(out.data() + NLMSG_HDRLEN, &info, sizeof info);
  nlmsghdr changed = header;
  changed.nlmsg_len = static_cast<std::uint32_t>(out.size());
  changed.nlmsg_flags &= static_cast<std::uint16_t>(~(NLM_F_CREATE | NLM_F_EXCL));
  std::memcpy(out.data(), &changed, sizeof changed);
  return out;
}

}  // namespace

std::optional<TunnelRequest> parse_new_link(std::span<const std::uint8_t> message) {
  nlmsghdr header{};
  if (message.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, message.data(), sizeof header);
  if (header.nlmsg_type != RTM_NEWLINK || (header.nlmsg_flags & NLM_F_CREATE) == 0 ||
      header.nlmsg_len < NLMSG_HDRLEN + sizeof(ifinfomsg) || header.nlmsg_len > message.size())
    return std::nullopt;
  // libnl wants an aligned message of its own to read.
  std::vector<std::uint32_t> words((header.nlmsg_len + 3) / 4);
  std::memcpy(words.data(), message.data(), header.nlmsg_len);
  auto* aligned = reinterpret_cast<nlmsghdr*>(words.data());
  Attributes link{};
  if (nlmsg_parse(aligned, sizeof(ifinfomsg), link.data(), IFLA_MAX, nullptr) != 0 ||
      link[IFLA_LINKINFO] == nullptr || link[IFLA_IFNAME] == nullptr)
    return std::nullopt;
  std::array<nlattr*, IFLA_INFO_MAX + 1> info{};
  if (nla_parse_nested(info.data(), IFLA_INFO_MAX, link[IFLA_LINKINFO], nullptr) != 0 ||
      info[IFLA_INFO_KIND] == nullptr)
    return std::nullopt;

  const std::string kind = text_of(info[IFLA_INFO_KIND], IFNAMSIZ);
  TunnelRequest request;
  request.device.name = text_of(link[IFLA_IFNAME], IFNAMSIZ);
  const bool understood = kind == "vti" || kind == "vti6"
                              ? read_vti(info[IFLA_INFO_DATA], request.device)
                              : kind == "xfrm" && read_xfrm(info[IFLA_INFO_DATA], request.device);
  if (!understood || request.device.name.empty()) return std::nullopt;
  request.elsewhere = link[IFLA_NET_NS_PID] != nullptr || link[IFLA_NET_NS_FD] != nullptr ||
                      link[IFLA_TARGET_NETNSID] != nullptr;
  request.rest = without_kind(header, message.first(header.nlmsg_len));
  return request;
}

dataplane::DeviceSpec device_of(const ip_tunnel_parm& p) {
  const auto v4 = [](std::uint32_t be32) {
    std::array<std::uint8_t, 4> bytes{};
    std::memcpy(bytes.data(), &be32, sizeof be32);
    return end_of(IpAddress::v4(bytes));
  };
  dataplane::DeviceSpec device;
  device.name = {p.name, ::strnlen(p.name, sizeof p.name)};
  device.ikey = ntohl(p.i_key);
  device.okey = ntohl(p.o_key);
  device.local = v4(p.iph.saddr);
  device.remote = v4(p.iph.daddr);
  return device;
}

ip_tunnel_parm parameters_of(const dataplane::DeviceSpec& device) {
  ip_tunnel_parm p{};
  device.name.copy(p.name, sizeof p.name - 1);
  p.i_key = htonl(device.ikey);
  p.o_key = htonl(device.okey);
  p.i_flags = p.o_flags = GRE_KEY;
  std::memcpy(&p.iph.saddr, device.local.bytes.data(), sizeof p.iph.saddr);
  std::memcpy(&p.iph.daddr, device.remote.bytes.data(), sizeof p.iph.daddr);
  p.iph.version = 4;
  p.iph.ihl = 5;
  p.iph.protocol = IPPROTO_IPIP;
  return p;
}

}  // namespace espalier::tools
