// Requests from bytes that may be anything, and answers.
#include "tools/xfrm/message.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <map>

#include "tests/unit/tools/xfrm/netlink_message.h"

namespace espalier::tools::xfrm {
namespace {

using test::Bytes;
using test::bytes_of;
using test::Message;

// What reading it is refused with; 0: it is taken.
int refusal(Message message) {
  try {
    Request request(message.header());
    static_cast<void>(request.read<xfrm_usersa_id>());
    return 0;
  } catch (const Refused& e) {
    return e.error();
  }
}

Message named() {
  Message message(XFRM_MSG_GETSA);
  message.fixed(xfrm_usersa_id{});
  return message;
}

TEST(XfrmRequest, FixedPartThatIsShort) {
  for (std::size_t length = 0; length < sizeof(xfrm_usersa_id); ++length)
    EXPECT_EQ(refusal(Message(XFRM_MSG_GETSA).raw(Bytes(length))), EINVAL) << length;
  EXPECT_EQ(refusal(named()), 0);
}

TEST(XfrmRequest, EveryAttributeHasALeastLength) {
  const std::map<int, std::size_t> least = {{XFRMA_ALG_AUTH, 68},
                                            {XFRMA_ALG_CRYPT, 68},
                                            {XFRMA_ALG_COMP, 68},
                                            {XFRMA_ENCAP, 24},
                                            {XFRMA_TMPL, 64},
                                            {XFRMA_SEC_CTX, 8},
                                            {XFRMA_LTIME_VAL, 32},
                                            {XFRMA_REPLAY_VAL, 12},
                                            {XFRMA_REPLAY_THRESH, 4},
                                            {XFRMA_ETIMER_THRESH, 4},
                                            {XFRMA_SRCADDR, 16},
                                            {XFRMA_COADDR, 16},
                                            {XFRMA_POLICY_TYPE, 6},
                                            {XFRMA_MIGRATE, 76},
                                            {XFRMA_ALG_AEAD, 72},
                                            {XFRMA_KMADDRESS, 40},
                                            {XFRMA_ALG_AUTH_TRUNC, 72},
                                            {XFRMA_MARK, 8},
                                            {XFRMA_TFCPAD, 4},
                                            {XFRMA_REPLAY_ESN_VAL, 24},
                                            {XFRMA_SA_EXTRA_FLAGS, 4},
                                            {XFRMA_PROTO, 1},
                                            {XFRMA_ADDRESS_FILTER, 36},
                                            {XFRMA_OFFLOAD_DEV, 8},
                                            {XFRMA_SET_MARK, 4},
                                            {XFRMA_SET_MARK_MASK, 4},
                                            {XFRMA_IF_ID, 4},
                                            {XFRMA_MTIMER_THRESH, 4},
                                            {kSaDir, 1}};
  for (const auto& [type, bytes] : least) {
    const auto attribute = static_cast<std::uint16_t>(type);
    for (std::size_t length = 0; length < bytes; ++length)
      EXPECT_EQ(refusal(named().put(attribute, Bytes(length))), ERANGE) << type << ": " << length;
    EXPECT_EQ(refusal(named().put(attribute, Bytes(bytes))), 0) << type;
    EXPECT_EQ(refusal(named().put(attribute, Bytes(bytes + 7))), 0) << type;
  }
}

// Behind the message, into the next attribute, no header: what is not whole is not there, and what
// is there has its length.
TEST(XfrmRequest, AttributesThatLieAboutTheirLength) {
  const Bytes mark = bytes_of(xfrm_mark{5, 0xff});
  for (std::uint16_t length = 0; length < 64; ++length) {
    Message message = named();
    message.put(XFRMA_MARK, mark, length == 0 ? std::uint16_t{1} : length);
    message.put(XFRMA_IF_ID, std::uint32_t{9});
    Request request(message.header());
    try {
      static_cast<void>(request.read<xfrm_usersa_id>());
    } catch (const Refused& e) {
      EXPECT_EQ(e.error(), ERANGE);
      continue;
    }
    const auto* const begin = message.bytes().data();
    for (const int type : {XFRMA_MARK, XFRMA_IF_ID}) {
      const auto data = request.data(type);
      if (data.empty()) continue;
      EXPECT_GE(data.data(), begin);
      EXPECT_LE(data.data() + data.size(), begin + message.bytes().size()) << length;
    }
    // The mark's 8 bytes and the next attribute's 8 are as far as it can go.
    EXPECT_EQ(request.has(XFRMA_MARK), length >= 12 && length <= 20) << length;
    EXPECT_EQ(request.has(XFRMA_IF_ID), length == 12) << length;
  }
}

TEST(XfrmRequest, LastOfTwoCounts) {
  Message message = named();
  message.put(XFRMA_IF_ID, std::uint32_t{1}).put(XFRMA_IF_ID, std::uint32_t{2});
  Request request(message.header());
  static_cast<void>(request.read<xfrm_usersa_id>());
  EXPECT_EQ(request.u32(XFRMA_IF_ID), 2U);
}

TEST(XfrmRequest, WhatNobodyKnowsIsPassedOver) {
  Message message = named();
  message.put(kMaxAttribute + 1, Bytes(8)).put(0x3fff, Bytes(3)).put(0, Bytes(5));
  message.put(XFRMA_IF_ID | NLA_F_NESTED, std::uint32_t{3});
  Request request(message.header());
  static_cast<void>(request.read<xfrm_usersa_id>());
  EXPECT_EQ(request.u32(XFRMA_IF_ID), 3U);
}

TEST(XfrmRequest, OddEndIsNoAttribute) {
  for (std::size_t more = 1; more < NLA_HDRLEN; ++more)
    EXPECT_EQ(refusal(named().raw(Bytes(more, 0xff))), 0) << more;
}

TEST(XfrmRequest, AbsentIsZero) {
  Message message = named();
  Request request(message.header());
  static_cast<void>(request.read<xfrm_usersa_id>());
  EXPECT_FALSE(request.has(XFRMA_MARK));
  EXPECT_TRUE(request.data(XFRMA_MARK).empty());
  EXPECT_FALSE(request.get<xfrm_mark>(XFRMA_MARK));
  EXPECT_EQ(request.u32(XFRMA_MARK), 0U);
}

TEST(XfrmRequest, PlainAttributesHaveNoLeastLength) {
  Message message(XFRM_MSG_NEWSPDINFO);
  message.fixed(std::uint32_t{0}).put(XFRMA_SPD_IPV4_HTHRESH, Bytes{24, 32});
  Request request(message.header());
  request.read_plain_attributes(sizeof(std::uint32_t));
  const auto threshold = request.get<xfrmu_spdhthresh>(XFRMA_SPD_IPV4_HTHRESH);
  ASSERT_TRUE(threshold);
  EXPECT_EQ(threshold->lbits, 24);
}

TEST(XfrmReply, LengthsAreMultiplesOfFour) {
  for (std::size_t fixed = 0; fixed < 9; ++fixed)
    for (std::size_t more = 0; more < 9; ++more) {
      Reply reply(XFRM_MSG_NEWSA, {3, 4}, NLM_F_MULTI);
      reply.append(std::span<const std::uint8_t>(Bytes(fixed, 1)));
      reply.put(XFRMA_ALG_AEAD, std::span<const std::uint8_t>(Bytes(more, 2)));
      const auto messages = test::split(reply.bytes());
      ASSERT_EQ(messages.size(), 1U) << fixed << ' ' << more;
      EXPECT_EQ(messages[0].header.nlmsg_pid, 3U);
      EXPECT_EQ(messages[0].header.nlmsg_seq, 4U);
      EXPECT_EQ(messages[0].attribute(fixed, XFRMA_ALG_AEAD), Bytes(more, 2));
    }
}

// 0 is what libnl has for "any".
TEST(XfrmReply, PortAndSequenceOfZeroStay) {
  const Reply reply(XFRM_MSG_EXPIRE, {});
  const auto messages = test::split(reply.bytes());
  ASSERT_EQ(messages.size(), 1U);
  EXPECT_EQ(messages[0].header.nlmsg_pid, 0U);
  EXPECT_EQ(messages[0].header.nlmsg_seq, 0U);
}

TEST(XfrmReply, NoRoomIsNoMemory) {
  Reply reply(XFRM_MSG_NEWSA, {}, 0, 64);
  EXPECT_THROW(reply.append(std::span<const std::uint8_t>(Bytes(65))), std::bad_alloc);
  EXPECT_THROW(reply.put(XFRMA_ALG_AEAD, std::span<const std::uint8_t>(Bytes(65))), std::bad_alloc);
}

TEST(XfrmDatagram, GrowsAndKeepsWhatIsInIt) {
  Datagram datagram;
  Bytes all;
  for (std::size_t i = 1; i < 200; ++i) {
    const Bytes part(i, static_cast<std::uint8_t>(i));
    datagram.append(part);
    all.insert(all.end(), part.begin(), part.end());
  }
  EXPECT_TRUE(std::equal(all.begin(), all.end(), datagram.bytes().begin(), datagram.bytes().end()));
}

}  // namespace
}  // namespace espalier::tools::xfrm
