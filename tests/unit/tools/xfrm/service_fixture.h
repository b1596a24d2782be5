// The XFRM service over a data plane, in a network namespace of its own; no root where user
// namespaces are allowed.
#pragma once

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sched.h>
#include <unistd.h>

#include <deque>
#include <optional>
#include <set>

#include "crypto/registry.h"
#include "tests/unit/tools/xfrm/netlink_message.h"
#include "tools/device_pool.h"
#include "tools/keep.h"
#include "tools/log.h"
#include "tools/xfrm/service.h"

namespace espalier::test {

inline constexpr const char *kHere = "192.0.2.1", *kMoved = "192.0.2.3", *kThere = "192.0.2.2";
inline constexpr std::size_t kError = sizeof(nlmsgerr);

inline xfrm_address_t address(const char* text) {
  return tools::xfrm::from_address(*ifaces::IpAddress::parse(text));
}

// What a state is written with; defaults: out, GCM, raw ESP.
struct StateWords {
  const char* source = kHere;
  const char* destination = kThere;
  std::uint32_t spi = 0x1000;
  std::uint8_t key = 1;
  std::uint32_t reqid = 7;
  bool esn = true;
  std::optional<std::uint64_t> oseq = {};
};

inline Bytes replay_esn(std::uint64_t oseq, std::uint64_t seq, std::uint32_t window = 128) {
  const tools::xfrm::ReplaySizes sizes{window / 32,
                                       static_cast<std::uint32_t>(oseq),
                                       static_cast<std::uint32_t>(seq),
                                       static_cast<std::uint32_t>(oseq >> 32),
                                       static_cast<std::uint32_t>(seq >> 32),
                                       window};
  Bytes out = bytes_of(sizes);
  out.resize(out.size() + window / 8);
  return out;
}

inline Message new_state(const StateWords& words, std::uint16_t type = XFRM_MSG_NEWSA) {
  xfrm_usersa_info info{};
  info.family = AF_INET;
  info.saddr = address(words.source);
  info.id.daddr = address(words.destination);
  info.id.spi = htonl(words.spi);
  info.id.proto = IPPROTO_ESP;
  info.reqid = words.reqid;
  info.mode = XFRM_MODE_TUNNEL;
  info.flags = static_cast<std::uint8_t>(XFRM_STATE_AF_UNSPEC | (words.esn ? XFRM_STATE_ESN : 0));
  info.lft = tools::xfrm::from_lifetime({});
  Message message(type);
  message.fixed(info);
  message.put(XFRMA_ALG_AEAD, algorithm("rfc4106(gcm(aes))", Bytes(36, words.key), 128));
  if (words.esn) message.put(XFRMA_REPLAY_ESN_VAL, replay_esn(words.oseq.value_or(0), 0));
  return message;
}

inline xfrm_usersa_id state_id(const StateWords& words) {
  xfrm_usersa_id id{};
  id.daddr = address(words.destination);
  id.spi = htonl(words.spi);
  id.family = AF_INET;
  id.proto = IPPROTO_ESP;
  return id;
}

inline Message about_state(std::uint16_t type, const StateWords& words) {
  Message message(type);
  message.fixed(state_id(words));
  return message;
}

struct PolicyWords {
  std::uint8_t direction = XFRM_POLICY_OUT;
  const char* source = kHere;
  const char* destination = kThere;
  std::uint32_t mark = 42;
  std::uint32_t priority = 0;
  std::uint8_t second = 0;  // 10.SECOND.0.0/16 is the selector's destination
  std::uint32_t reqid = 7;
};

inline xfrm_selector selector(const PolicyWords& words) {
  xfrm_selector sel{};
  sel.family = AF_INET;
  const std::array<std::uint8_t, 4> bytes{10, words.second, 0, 0};
  std::memcpy(&sel.daddr, bytes.data(), bytes.size());
  sel.prefixlen_d = 16;
  return sel;
}

inline Message new_policy(const PolicyWords& words, std::uint16_t type = XFRM_MSG_NEWPOLICY) {
  xfrm_userpolicy_info info{};
  info.sel = selector(words);
  info.dir = words.direction;
  info.priority = words.priority;
  info.lft = tools::xfrm::from_lifetime({});
  xfrm_user_tmpl wanted{};
  wanted.family = AF_INET;
  wanted.saddr = address(words.source);
  wanted.id.daddr = address(words.destination);
  wanted.id.proto = IPPROTO_ESP;
  wanted.reqid = words.reqid;
  wanted.mode = XFRM_MODE_TUNNEL;
  wanted.aalgos = wanted.ealgos = wanted.calgos = ~0U;
  Message message(type);
  message.fixed(info).put(XFRMA_TMPL, wanted);
  if (words.mark != 0) message.put(XFRMA_MARK, xfrm_mark{words.mark, ~0U});
  return message;
}

inline Message about_policy(std::uint16_t type, const PolicyWords& words) {
  xfrm_userpolicy_id id{};
  id.sel = selector(words);
  id.dir = words.direction;
  Message message(type);
  message.fixed(id);
  if (words.mark != 0) message.put(XFRMA_MARK, xfrm_mark{words.mark, ~0U});
  return message;
}

class ServiceTest : public testing::Test {
 protected:
  void SetUp() override {
    static const bool kAlone =
        ::unshare(::geteuid() == 0 ? CLONE_NEWNET : CLONE_NEWUSER | CLONE_NEWNET) == 0;
    if (!kAlone) GTEST_SKIP() << "needs root, or user namespaces, for a network of its own";
    crypto::initialise();
    netlink.emplace();
    netlink->set_link("lo", {});
    for (const char* const own : {kHere, kMoved}) {
      try {
        netlink->add_address("lo", *ifaces::Prefix::parse(own));
      } catch (const std::system_error&) {
        continue;  // of the test before
      }
    }
    registry.emplace("auto");
    dataplane::Dataplane::Options options;
    options.io = "epoll";
    plane.emplace(*registry, options);
    devices.emplace(*plane, *netlink, log);
    service.emplace(*plane, *netlink, *devices, log);
    service->set_keep(keep);
  }
  void TearDown() override { service.reset(); }

  // The messages of all answers; what listens is in `told`.
  std::vector<Answered> ask(const Bytes& datagram) {
    // Aligned, as what a socket's buffer holds.
    std::vector<std::uint64_t> memory((datagram.size() + 7) / 8);
    const std::span<std::uint8_t> bytes(reinterpret_cast<std::uint8_t*>(memory.data()),
                                        datagram.size());
    std::copy(datagram.begin(), datagram.end(), bytes.begin());
    tools::xfrm::Output output;
    service->handle(client, bytes, output);
    std::vector<Answered> answers;
    const auto take = [&answers](const tools::xfrm::Datagram& answer) {
      const auto messages = split(answer.bytes());
      EXPECT_FALSE(messages.empty());
      answers.insert(answers.end(), messages.begin(), messages.end());
    };
    for (const auto& reply : output.replies) take(reply);
    dump = output.dump;
    take_notices(output);
    return answers;
  }
  std::vector<Answered> ask(const Message& message) { return ask(message.bytes()); }
  void take_notices(const tools::xfrm::Output& output) {
    for (const auto& notice : output.notices) {
      const auto messages = split(notice.message.bytes());
      ASSERT_EQ(messages.size(), 1U);
      told.emplace_back(notice.group, messages.front());
    }
  }
  // The errno of a message that is acknowledged; `text` is what else it says.
  int error_of(const Message& message) {
    const auto answers = ask(message);
    if (answers.empty() || answers.back().header.nlmsg_type != NLMSG_ERROR) return -1;
    text = answers.back().text();
    return answers.back().error();
  }
  // The one answer of a message that asks for something.
  Answered answer_of(Message message) {
    message.header()->nlmsg_flags = NLM_F_REQUEST;
    const auto answers = ask(message);
    EXPECT_EQ(answers.size(), 1U);
    return answers.empty() ? Answered() : answers.front();
  }
  // Of an outbound state: the last number that was used.
  std::uint64_t oseq(const StateWords& words) {
    const Answered answer = answer_of(about_state(XFRM_MSG_GETSA, words));
    const auto sizes = read_as<tools::xfrm::ReplaySizes>(
        answer.attribute(sizeof(xfrm_usersa_info), XFRMA_REPLAY_ESN_VAL));
    return std::uint64_t{sizes.oseq_hi} << 32 | sizes.oseq;
  }

  tools::Log log{STDERR_FILENO, tools::LogLevel::error};
  tools::Keep keep;
  std::optional<ifaces::Netlink> netlink;
  std::optional<crypto::Registry> registry;
  std::optional<dataplane::Dataplane> plane;
  std::optional<tools::DevicePool> devices;
  std::optional<tools::xfrm::Service> service;
  tools::xfrm::Client client{4711, 0, true, false};
  std::optional<tools::xfrm::Dump> dump;
  std::vector<std::pair<unsigned, Answered>> told;
  std::string text;
};

}  // namespace espalier::test
