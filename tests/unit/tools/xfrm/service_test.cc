// What a kernel's NETLINK_XFRM answers: errno for errno, datagrams of several messages, listings of
// several datagrams.
#include <gmock/gmock.h>

#include <cerrno>
#include <map>

#include "tests/unit/tools/xfrm/service_fixture.h"

namespace espalier::test {
namespace {

using testing::HasSubstr;
using tools::xfrm::kMaxDatagram;

constexpr StateWords kOut;
constexpr StateWords kIn{.source = kThere, .destination = kHere, .spi = 0x2000, .key = 2};

class XfrmService : public ServiceTest {};

TEST_F(XfrmService, WhatIsNoRequestHasNoAnswer) {
  EXPECT_TRUE(ask(Message(XFRM_MSG_FLUSHSA, 0)).empty());
  EXPECT_TRUE(ask(Message(XFRM_MSG_FLUSHSA, NLM_F_ACK)).size() == 1);  // as the kernel: but an ACK
  EXPECT_TRUE(ask(Message(NLMSG_NOOP, NLM_F_REQUEST)).empty());
  for (std::size_t length = 0; length < NLMSG_HDRLEN; ++length)
    EXPECT_TRUE(ask(Bytes(length, 0xff)).empty()) << length;
  for (const std::size_t length :
       {std::size_t{0}, std::size_t{15}, std::size_t{17}, std::size_t{1} << 31})
    EXPECT_TRUE(ask(Message(XFRM_MSG_GETSA).set_length(length)).empty()) << length;
}

TEST_F(XfrmService, TypesThatNobodyKnows) {
  for (const int type : {41, 200, 255, 65535})
    EXPECT_EQ(error_of(Message(static_cast<std::uint16_t>(type))), EINVAL) << type;
}

// Each message of a datagram is answered, the bad ones too, and a length that lies ends it.
TEST_F(XfrmService, SeveralMessagesInADatagram) {
  Bytes datagram;
  std::uint32_t sequence = 100;
  const auto add = [&](Message message) {
    message.set_sequence(sequence++).pad();
    datagram.insert(datagram.end(), message.bytes().begin(), message.bytes().end());
  };
  add(new_state(kOut));
  add(new_state(kOut));
  add(about_state(XFRM_MSG_GETSA, kOut));
  add(Message(99));
  add(about_state(XFRM_MSG_DELSA, kOut));
  add(about_state(XFRM_MSG_DELSA, kOut));
  add(Message(XFRM_MSG_GETSA).set_length(4000));
  add(new_state(kOut));
  const auto answers = ask(datagram);
  std::vector<std::pair<std::uint32_t, int>> errors;
  for (const Answered& answer : answers)
    if (answer.header.nlmsg_type == NLMSG_ERROR)
      errors.emplace_back(answer.header.nlmsg_seq, answer.error());
  EXPECT_THAT(errors, testing::ElementsAre(std::pair(100U, 0), std::pair(101U, EEXIST),
                                           std::pair(102U, 0), std::pair(103U, EINVAL),
                                           std::pair(104U, 0), std::pair(105U, ESRCH)));
  EXPECT_EQ(answers[2].header.nlmsg_type, XFRM_MSG_NEWSA);
  EXPECT_EQ(plane->sa_count(), 0U);
}

// The last message of a datagram need not be padded: FLUSHSA and SETDEFAULT of `ip` are 17 and 19.
TEST_F(XfrmService, LengthsThatAreNoMultipleOfFour) {
  EXPECT_EQ(error_of(Message(XFRM_MSG_FLUSHSA).raw(Bytes(1))), 0);
  EXPECT_EQ(error_of(Message(XFRM_MSG_SETDEFAULT).raw(Bytes{2, 2, 2})), 0);
  Message first(XFRM_MSG_FLUSHSA);
  first.raw(Bytes(1)).pad();
  Bytes datagram = first.bytes();
  const Message last = Message(XFRM_MSG_SETDEFAULT).raw(Bytes{2, 2, 2});
  datagram.insert(datagram.end(), last.bytes().begin(), last.bytes().end());
  EXPECT_EQ(ask(datagram).size(), 2U);
}

TEST_F(XfrmService, AcknowledgementsAsTheSocketWantsThem) {
  const Message bad = about_state(XFRM_MSG_DELSA, kOut);
  const std::size_t asked = bad.bytes().size() - NLMSG_HDRLEN;
  for (const bool capped : {false, true})
    for (const bool extended : {false, true}) {
      client.capped_ack = capped;
      client.extended_ack = extended;
      const Answered error = ask(bad).at(0);
      EXPECT_EQ(error.payload.size(), kError + (capped ? 0 : asked));
      EXPECT_EQ((error.header.nlmsg_flags & NLM_F_CAPPED) != 0, capped);
      const Answered wordy = ask(Message(XFRM_MSG_GETSA).raw(Bytes(3))).at(0);
      EXPECT_EQ(wordy.text(), extended ? "Invalid header length" : "");
      const Answered good = ask(Message(XFRM_MSG_FLUSHSA).raw(Bytes(1))).at(0);
      EXPECT_EQ(good.payload.size(), kError);
      EXPECT_EQ(good.error(), 0);
      EXPECT_EQ(good.header.nlmsg_pid, 4711U);
    }
}

TEST_F(XfrmService, StatesErrnoForErrno) {
  EXPECT_EQ(error_of(about_state(XFRM_MSG_DELSA, kOut)), ESRCH);
  EXPECT_EQ(error_of(about_state(XFRM_MSG_GETSA, kOut)), ESRCH);
  EXPECT_EQ(error_of(new_state(kOut, XFRM_MSG_UPDSA)), ESRCH);
  EXPECT_EQ(error_of(new_state(kOut)), 0);
  EXPECT_EQ(error_of(new_state(kOut)), EEXIST);
  EXPECT_EQ(error_of(new_state(kOut, XFRM_MSG_UPDSA)), 0);
  EXPECT_EQ(error_of(new_state({.spi = 0x1001})), EINVAL);  // a key that is used
  EXPECT_THAT(text, HasSubstr("same key"));
  EXPECT_EQ(error_of(new_state({.source = "198.51.100.1", .spi = 0x1002, .key = 9})),
            EADDRNOTAVAIL);
  EXPECT_EQ(error_of(new_state({.spi = 0, .key = 9})), EINVAL);
  EXPECT_EQ(plane->sa_count(), 1U);

  const auto changed = [](std::size_t at, std::uint8_t value) {
    Message message = new_state({.spi = 0x1003, .key = 9});
    reinterpret_cast<std::uint8_t*>(message.header())[NLMSG_HDRLEN + at] = value;
    return message;
  };
  const auto error_with = [&](std::size_t at, std::uint8_t value) {
    return error_of(changed(at, value));
  };
  EXPECT_EQ(error_with(offsetof(xfrm_usersa_info, family), AF_UNIX), EINVAL);
  EXPECT_EQ(error_with(offsetof(xfrm_usersa_info, mode), XFRM_MODE_TRANSPORT), EPROTONOSUPPORT);
  EXPECT_EQ(error_with(offsetof(xfrm_usersa_info, mode), XFRM_MODE_BEET), EPROTONOSUPPORT);
  EXPECT_EQ(error_with(offsetof(xfrm_usersa_info, mode), 200), EINVAL);
  constexpr std::size_t kProto = offsetof(xfrm_usersa_info, id) + offsetof(xfrm_id, proto);
  EXPECT_EQ(error_with(kProto, IPPROTO_AH), EPROTONOSUPPORT);
  EXPECT_EQ(error_with(kProto, IPPROTO_COMP), EPROTONOSUPPORT);
  EXPECT_EQ(error_with(kProto, IPPROTO_TCP), EINVAL);
  EXPECT_EQ(error_with(offsetof(xfrm_usersa_info, sel) + offsetof(xfrm_selector, prefixlen_s), 33),
            EINVAL);
  const auto error_with_attribute = [&](std::uint16_t type, const Bytes& value) {
    Message message = new_state({.spi = 0x1003, .key = 9});
    return error_of(message.put(type, value));
  };
  EXPECT_EQ(error_with_attribute(XFRMA_OFFLOAD_DEV, Bytes(8)), EINVAL);
  EXPECT_EQ(error_with_attribute(XFRMA_SEC_CTX, Bytes(8)), EINVAL);
  EXPECT_EQ(error_with_attribute(XFRMA_ALG_COMP, Bytes(68)), EINVAL);
  EXPECT_EQ(error_with_attribute(XFRMA_ENCAP, Bytes(24)), EPROTONOSUPPORT);
  EXPECT_EQ(error_with_attribute(tools::xfrm::kSaDir, Bytes{3}), EINVAL);
  EXPECT_EQ(error_with_attribute(XFRMA_REPLAY_ESN_VAL, Bytes(24, 0xff)), EINVAL);
  EXPECT_EQ(plane->sa_count(), 1U);
}

TEST_F(XfrmService, LarvalStatesErrnoForErrno) {
  xfrm_userspi_info body{};
  body.info.family = AF_INET;
  body.info.saddr = address(kThere);
  body.info.id.daddr = address(kHere);
  body.info.id.proto = IPPROTO_ESP;
  body.info.mode = XFRM_MODE_TUNNEL;
  body.min = body.max = 0x5000;
  const auto allocate = [&] { return error_of(Message(XFRM_MSG_ALLOCSPI).fixed(body)); };
  EXPECT_EQ(allocate(), 0);
  EXPECT_EQ(allocate(), ENOENT);
  EXPECT_EQ(text, "Requested SPI is already in use");
  body.max = 0x4fff;
  EXPECT_EQ(allocate(), EINVAL);
  body.min = 0;
  body.max = 255;
  EXPECT_EQ(allocate(), ENOENT);
  body.info.id.proto = IPPROTO_AH;
  EXPECT_EQ(allocate(), EPROTONOSUPPORT);
  body.info.id.proto = IPPROTO_TCP;
  EXPECT_EQ(allocate(), EINVAL);
  body.info.id.proto = IPPROTO_ESP;
  body.info.family = AF_UNIX;
  EXPECT_EQ(allocate(), EINVAL);
  const StateWords larval{.source = kThere, .destination = kHere, .spi = 0x5000, .key = 3};
  EXPECT_EQ(error_of(new_state(larval, XFRM_MSG_UPDSA)), 0);
  EXPECT_EQ(plane->sa_count(), 1U);
}

// Raw ESP from one address of this host to another.
class EspSender {
 public:
  EspSender() : fd_(::socket(AF_INET, SOCK_RAW, IPPROTO_ESP)) {
    EXPECT_TRUE(static_cast<bool>(fd_));
    sockaddr_storage from{};
    const socklen_t length = ifaces::Endpoint{*ifaces::IpAddress::parse(kMoved), 0}.to(from);
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<const sockaddr*>(&from), length), 0);
  }
  void send(std::uint32_t spi, unsigned count) const {
    sockaddr_storage to{};
    const socklen_t length = ifaces::Endpoint{*ifaces::IpAddress::parse(kHere), 0}.to(to);
    Bytes packet(64);
    for (std::uint32_t number = 1; number <= count; ++number) {
      const std::array<std::uint32_t, 2> header{htonl(spi), htonl(number)};
      std::memcpy(packet.data(), header.data(), sizeof header);
      EXPECT_EQ(::sendto(fd_.get(), packet.data(), packet.size(), 0,
                         reinterpret_cast<const sockaddr*>(&to), length),
                static_cast<ssize_t>(packet.size()));
    }
  }

 private:
  ifaces::UniqueFd fd_;
};

// What comes under an SPI without keys waits as long as there is that state, and no longer.
TEST_F(XfrmService, LarvalStatesHavePacketsWait) {
  ASSERT_EQ(error_of(new_state({})), 0);  // it has the socket opened
  const StateWords larval{.source = kThere, .destination = kHere, .spi = 0x5000, .key = 3};
  xfrm_userspi_info body{};
  body.info.family = AF_INET;
  body.info.saddr = address(kThere);
  body.info.id.daddr = address(kHere);
  body.info.id.proto = IPPROTO_ESP;
  body.min = body.max = larval.spi;
  const EspSender peer;
  const auto drops = [&](dataplane::Drop reason) {
    return plane->drops()[static_cast<std::size_t>(reason)];
  };
  const auto becomes = [&](dataplane::Drop reason, std::uint64_t count) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (drops(reason) != count && std::chrono::steady_clock::now() < end) ::usleep(1000);
    EXPECT_EQ(drops(reason), count);
  };
  const auto arrive = [&] {
    ASSERT_EQ(error_of(Message(XFRM_MSG_ALLOCSPI).fixed(body)), 0);
    const std::uint64_t before = drops(dataplane::Drop::not_keyed);
    const std::uint64_t unknown = drops(dataplane::Drop::no_spi);
    peer.send(larval.spi, 3);
    peer.send(larval.spi + 1, 1);
    // They are taken in this order.
    becomes(dataplane::Drop::no_spi, unknown + 1);
    EXPECT_EQ(drops(dataplane::Drop::not_keyed), before);
  };
  arrive();
  EXPECT_EQ(error_of(about_state(XFRM_MSG_DELSA, larval)), 0);
  becomes(dataplane::Drop::not_keyed, 3);
  arrive();
  tools::xfrm::Output output;
  service->take_due(std::chrono::steady_clock::now() + std::chrono::hours(25), output);
  becomes(dataplane::Drop::not_keyed, 6);
  arrive();
  EXPECT_EQ(error_of(new_state(larval, XFRM_MSG_UPDSA)), 0);
  becomes(dataplane::Drop::wrong_peer, 3);  // held to the same checks as any other
  EXPECT_EQ(error_of(about_state(XFRM_MSG_DELSA, larval)), 0);
  arrive();
  EXPECT_EQ(error_of(Message(XFRM_MSG_FLUSHSA).fixed(xfrm_usersa_flush{IPPROTO_ESP})), 0);
  becomes(dataplane::Drop::not_keyed, 9);
}

TEST_F(XfrmService, PoliciesErrnoForErrno) {
  EXPECT_EQ(error_of(about_policy(XFRM_MSG_DELPOLICY, {})), ENOENT);
  EXPECT_EQ(error_of(about_policy(XFRM_MSG_GETPOLICY, {})), ENOENT);
  EXPECT_EQ(error_of(new_policy({}, XFRM_MSG_UPDPOLICY)), 0);
  EXPECT_EQ(error_of(new_policy({})), EEXIST);
  EXPECT_EQ(error_of(about_policy(XFRM_MSG_GETPOLICY, {.mark = 41})), ENOENT);
  EXPECT_EQ(error_of(about_policy(XFRM_MSG_GETPOLICY, {.direction = 3})), EINVAL);
  const auto error_with = [&](std::size_t at, std::uint8_t value) {
    Message message = new_policy({.second = 5});
    reinterpret_cast<std::uint8_t*>(message.header())[NLMSG_HDRLEN + at] = value;
    return error_of(message);
  };
  EXPECT_EQ(error_with(offsetof(xfrm_userpolicy_info, dir), 3), EINVAL);
  EXPECT_EQ(error_with(offsetof(xfrm_userpolicy_info, action), 2), EINVAL);
  EXPECT_EQ(error_with(offsetof(xfrm_userpolicy_info, share), 4), EINVAL);
  EXPECT_EQ(error_with(offsetof(xfrm_userpolicy_info, index), 2), EINVAL);
  EXPECT_EQ(error_with(offsetof(xfrm_selector, prefixlen_d), 33), EINVAL);
  EXPECT_EQ(error_with(offsetof(xfrm_selector, family), AF_UNIX), EINVAL);
  constexpr std::size_t kTemplate = sizeof(xfrm_userpolicy_info) + NLA_HDRLEN;
  EXPECT_EQ(error_with(kTemplate + offsetof(xfrm_user_tmpl, family), AF_UNIX), EINVAL);
  EXPECT_EQ(error_with(kTemplate + offsetof(xfrm_user_tmpl, mode), 9), EINVAL);
  EXPECT_EQ(error_with(kTemplate + offsetof(xfrm_user_tmpl, mode), XFRM_MODE_BEET),
            EPROTONOSUPPORT);
  EXPECT_EQ(error_with(kTemplate + offsetof(xfrm_id, proto), IPPROTO_AH), EPROTONOSUPPORT);
  EXPECT_EQ(error_with(kTemplate + offsetof(xfrm_id, proto), IPPROTO_TCP), EINVAL);
  const auto error_with_attribute = [&](std::uint16_t type, const Bytes& value) {
    return error_of(new_policy({.second = 5}).put(type, value));
  };
  EXPECT_EQ(error_with_attribute(XFRMA_TMPL, Bytes(7 * sizeof(xfrm_user_tmpl))), EINVAL);
  EXPECT_EQ(error_with_attribute(XFRMA_POLICY_TYPE, Bytes(6, 1)), EINVAL);
  EXPECT_EQ(error_with_attribute(XFRMA_SEC_CTX, Bytes(8)), EINVAL);
  EXPECT_EQ(plane->policies().size(), 1U);
}

TEST_F(XfrmService, FiguresErrnoForErrno) {
  for (const std::uint16_t type :
       {XFRM_MSG_GETSADINFO, XFRM_MSG_GETSPDINFO, XFRM_MSG_NEWSPDINFO, XFRM_MSG_SETDEFAULT,
        XFRM_MSG_GETAE, XFRM_MSG_NEWAE, XFRM_MSG_ALLOCSPI, XFRM_MSG_FLUSHSA, XFRM_MSG_MIGRATE})
    EXPECT_EQ(error_of(Message(type)), EINVAL) << type;
  const auto set = [&](std::uint16_t type, const Bytes& value) {
    return error_of(Message(XFRM_MSG_NEWSPDINFO).fixed(std::uint32_t{0}).put(type, value));
  };
  EXPECT_EQ(set(XFRMA_SPD_IPV4_HTHRESH, Bytes{24, 32}), 0);
  EXPECT_EQ(set(XFRMA_SPD_IPV4_HTHRESH, Bytes{33, 32}), EINVAL);
  EXPECT_EQ(set(XFRMA_SPD_IPV6_HTHRESH, Bytes{128, 129}), EINVAL);
  const Answered figures = answer_of(Message(XFRM_MSG_GETSPDINFO).fixed(std::uint32_t{0xffffffff}));
  EXPECT_EQ(figures.attribute(4, XFRMA_SPD_IPV4_HTHRESH), (Bytes{24, 32}));
}

// Any prefix of a good request is refused, and nothing is made of it.
TEST_F(XfrmService, RequestsThatAreCutOff) {
  std::vector<Message> whole = {new_state(kOut), new_state(kIn, XFRM_MSG_UPDSA), new_policy({})};
  for (Message& message : whole) {
    const std::uint16_t type = message.header()->nlmsg_type;
    for (std::size_t length = NLMSG_HDRLEN; length < message.bytes().size(); ++length) {
      Bytes cut(message.bytes().begin(),
                message.bytes().begin() + static_cast<std::ptrdiff_t>(length));
      const auto size = static_cast<std::uint32_t>(length);
      std::memcpy(cut.data(), &size, sizeof size);
      const auto answers = ask(cut);
      ASSERT_EQ(answers.size(), 1U) << length;
      // A policy without its template or its mark is a policy.
      if (type == XFRM_MSG_NEWPOLICY && length >= 16 + sizeof(xfrm_userpolicy_info)) {
        ask(Message(XFRM_MSG_FLUSHPOLICY));
        continue;
      }
      EXPECT_NE(answers[0].error(), 0) << length;
    }
  }
  EXPECT_EQ(plane->sa_count(), 0U);
  EXPECT_TRUE(plane->policies().empty());
}

// ---------------------------------------------------------------------------------- listings

class XfrmListing : public ServiceTest {
 protected:
  std::vector<Answered> list(const Message& message) {
    EXPECT_TRUE(ask(message).empty());
    std::vector<Answered> all;
    datagrams = 0;
    while (dump && !dump->done && datagrams < 1000) next(all);
    return all;
  }
  void next(std::vector<Answered>& all) {
    const auto datagram = service->next(*dump, client);
    EXPECT_LE(datagram.bytes().size(), kMaxDatagram);
    for (const Answered& answer : split(datagram.bytes())) all.push_back(answer);
    ++datagrams;
  }
  int datagrams = 0;
};

constexpr std::uint16_t kDump = NLM_F_REQUEST | NLM_F_DUMP;
constexpr std::uint32_t kMany = 100;

std::uint32_t spi_of(const Answered& answer) {
  return ntohl(read_as<xfrm_usersa_info>(answer.payload).id.spi);
}

TEST_F(XfrmListing, OfManyStatesSpansDatagrams) {
  for (std::uint32_t i = 0; i < kMany; ++i)
    ASSERT_EQ(error_of(new_state({.spi = 0x1000 + i, .key = static_cast<std::uint8_t>(i)})), 0);
  const auto all = list(Message(XFRM_MSG_GETSA, kDump));
  EXPECT_GT(datagrams, 5);
  ASSERT_EQ(all.size(), kMany + 1);
  for (std::uint32_t i = 0; i < kMany; ++i) {  // the newest first
    EXPECT_EQ(spi_of(all[i]), 0x1000 + kMany - 1 - i);
    EXPECT_EQ(all[i].header.nlmsg_type, XFRM_MSG_NEWSA);
    EXPECT_NE(all[i].header.nlmsg_flags & NLM_F_MULTI, 0);
    EXPECT_EQ(all[i].header.nlmsg_seq, 7U);
  }
  EXPECT_EQ(all.back().header.nlmsg_type, NLMSG_DONE);
  EXPECT_EQ(all.back().payload, Bytes(4));
}

// What stays is listed once, whatever comes and goes between two reads.
TEST_F(XfrmListing, ChangesMeanwhile) {
  for (std::uint32_t i = 0; i < kMany; ++i)
    ASSERT_EQ(error_of(new_state({.spi = 0x1000 + i, .key = static_cast<std::uint8_t>(i)})), 0);
  EXPECT_TRUE(ask(Message(XFRM_MSG_GETSA, kDump)).empty());
  auto running = *dump;
  std::vector<Answered> all;
  for (std::uint32_t round = 0; !running.done; ++round) {
    dump = running;
    next(all);
    running = *dump;
    ask(about_state(XFRM_MSG_DELSA, {.spi = 0x1000 + 10 * round}));  // every tenth
    ask(new_state({.spi = 0x9000 + round, .key = static_cast<std::uint8_t>(200 + round)}));
  }
  std::map<std::uint32_t, int> seen;
  for (const Answered& answer : all)
    if (answer.header.nlmsg_type == XFRM_MSG_NEWSA) ++seen[spi_of(answer)];
  for (std::uint32_t i = 0; i < kMany; ++i) {
    if (i % 10 == 0) continue;
    EXPECT_EQ(seen[0x1000 + i], 1) << i;
  }
  for (const auto& [spi, times] : seen) EXPECT_LE(times, 1) << spi;
  EXPECT_LT(seen.rbegin()->first, 0x9000U) << "none that was added meanwhile";
}

TEST_F(XfrmListing, OfPoliciesAndByFilter) {
  for (std::uint8_t i = 0; i < kMany; ++i) ASSERT_EQ(error_of(new_policy({.second = i})), 0);
  const auto policies = list(Message(XFRM_MSG_GETPOLICY, kDump));
  EXPECT_EQ(policies.size(), kMany + 1);
  EXPECT_GT(datagrams, 5);
  ASSERT_EQ(error_of(new_state(kOut)), 0);
  ASSERT_EQ(error_of(new_state(kIn)), 0);
  xfrm_address_filter filter{};
  filter.family = AF_INET;
  filter.saddr = address(kThere);
  filter.splen = 32;
  const auto some = list(Message(XFRM_MSG_GETSA, kDump).put(XFRMA_ADDRESS_FILTER, filter));
  ASSERT_EQ(some.size(), 2U);
  EXPECT_EQ(spi_of(some[0]), kIn.spi);
  filter.splen = 33;
  EXPECT_EQ(error_of(Message(XFRM_MSG_GETSA, kDump).put(XFRMA_ADDRESS_FILTER, filter)), EINVAL);
}

TEST_F(XfrmListing, OneAtATime) {
  Bytes datagram = Message(XFRM_MSG_GETSA, kDump).bytes();
  const Bytes again = Message(XFRM_MSG_GETPOLICY, kDump).bytes();
  datagram.insert(datagram.end(), again.begin(), again.end());
  const auto answers = ask(datagram);
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(answers[0].error(), EBUSY);
}

// --------------------------------------------------------------------------------- notifications

TEST_F(XfrmService, WhoListensIsTold) {
  ask(new_state(kOut));
  ask(new_state(kOut, XFRM_MSG_UPDSA));
  ask(about_state(XFRM_MSG_DELSA, kOut));
  ask(new_policy({}));
  ask(about_policy(XFRM_MSG_DELPOLICY, {}));
  ask(Message(XFRM_MSG_FLUSHSA).raw(Bytes(1)));  // of nothing: no word
  std::set<std::pair<unsigned, int>> kinds;
  for (const auto& [group, message] : told) kinds.emplace(group, message.header.nlmsg_type);
  EXPECT_EQ(kinds, (std::set<std::pair<unsigned, int>>{{XFRMNLGRP_SA, XFRM_MSG_NEWSA},
                                                       {XFRMNLGRP_SA, XFRM_MSG_UPDSA},
                                                       {XFRMNLGRP_SA, XFRM_MSG_DELSA},
                                                       {XFRMNLGRP_POLICY, XFRM_MSG_NEWPOLICY},
                                                       {XFRMNLGRP_POLICY, XFRM_MSG_DELPOLICY}}));
}

}  // namespace
}  // namespace espalier::test
