// XFRM_MSG_MIGRATE: what moves, what goes on, what is refused and then stays as it was.
#include <gmock/gmock.h>
#include <sys/socket.h>

#include <cerrno>

#include "ifaces/unique_fd.h"
#include "tests/unit/tools/xfrm/service_fixture.h"

namespace espalier::test {
namespace {

using testing::HasSubstr;

constexpr StateWords kOut{.oseq = 1000};
constexpr StateWords kIn{.source = kThere, .destination = kHere, .spi = 0x2000, .key = 2};
constexpr StateWords kMovedIn{.source = kThere, .destination = kMoved, .spi = 0x2000, .key = 2};
constexpr PolicyWords kPolicyIn{
    .direction = XFRM_POLICY_IN, .source = kThere, .destination = kHere};

xfrm_user_migrate move_of(const char* old_source, const char* old_destination,
                          const char* new_source, const char* new_destination) {
  xfrm_user_migrate move{};
  move.old_saddr = address(old_source);
  move.old_daddr = address(old_destination);
  move.new_saddr = address(new_source);
  move.new_daddr = address(new_destination);
  move.proto = IPPROTO_ESP;
  move.mode = XFRM_MODE_TUNNEL;
  move.reqid = 7;
  move.old_family = move.new_family = AF_INET;
  return move;
}

const xfrm_user_migrate& out_move() {
  static const auto kMove = move_of(kHere, kThere, kMoved, kThere);
  return kMove;
}
const xfrm_user_migrate& in_move() {
  static const auto kMove = move_of(kThere, kHere, kThere, kMoved);
  return kMove;
}

Message migrate(const PolicyWords& policy, const std::vector<xfrm_user_migrate>& moves) {
  xfrm_userpolicy_id id{};
  id.sel = selector(policy);
  id.dir = policy.direction;
  Bytes list;
  for (const xfrm_user_migrate& move : moves) {
    const Bytes bytes = bytes_of(move);
    list.insert(list.end(), bytes.begin(), bytes.end());
  }
  Message message(XFRM_MSG_MIGRATE);
  message.fixed(id).put(XFRMA_MIGRATE, list);
  return message;
}

class XfrmMigrate : public ServiceTest {
 protected:
  void SetUp() override {
    ServiceTest::SetUp();
    if (IsSkipped()) return;
    for (const Message& message :
         {new_state(kOut), new_state(kIn), new_policy({}), new_policy(kPolicyIn)})
      ASSERT_EQ(error_of(message), 0);
    told.clear();
  }
  xfrm_usersa_info state(const StateWords& words) {
    return read_as<xfrm_usersa_info>(answer_of(about_state(XFRM_MSG_GETSA, words)).payload);
  }
  xfrm_user_tmpl template_of(const PolicyWords& words) {
    const Answered answer = answer_of(about_policy(XFRM_MSG_GETPOLICY, words));
    return read_as<xfrm_user_tmpl>(answer.attribute(sizeof(xfrm_userpolicy_info), XFRMA_TMPL));
  }
  static bool is(const xfrm_address_t& given, const char* text) {
    const xfrm_address_t wanted = address(text);
    return std::memcmp(&given, &wanted, sizeof given) == 0;
  }
  // As before any of it.
  void expect_unchanged() {
    EXPECT_TRUE(is(state(kOut).saddr, kHere));
    EXPECT_GE(oseq(kOut), 1000U);
    EXPECT_TRUE(is(state(kIn).id.daddr, kHere));
    EXPECT_TRUE(is(template_of({}).saddr, kHere));
    EXPECT_TRUE(is(template_of(kPolicyIn).id.daddr, kHere));
    EXPECT_EQ(plane->sa_count(), 2U);
    EXPECT_EQ(plane->policies().size(), 2U);
    EXPECT_TRUE(told.empty());
  }
};

TEST_F(XfrmMigrate, OutboundMovesAndItsNumbersGoOn) {
  const auto before = plane->policies();
  ASSERT_EQ(error_of(migrate({}, {out_move()})), 0);
  EXPECT_TRUE(is(state(kOut).saddr, kMoved));
  EXPECT_TRUE(is(state(kOut).id.daddr, kThere));
  EXPECT_TRUE(is(template_of({}).saddr, kMoved));
  EXPECT_TRUE(is(template_of({}).id.daddr, kThere));
  EXPECT_GE(oseq(kOut), 1000U);
  EXPECT_TRUE(is(state(kIn).id.daddr, kHere)) << "the other direction has a request of its own";
  for (const auto& sa : plane->sas()) {
    if (sa.direction != dataplane::Direction::out) continue;
    EXPECT_EQ(sa.local.address.str(), kMoved);
    EXPECT_GE(sa.seq, 1001U);
    EXPECT_NE(sa.reqid, before[0].spec.reqid);
    const auto policies = plane->policies();
    EXPECT_TRUE(std::any_of(policies.begin(), policies.end(), [&](const auto& policy) {
      return policy.spec.direction == dataplane::Direction::out && policy.spec.reqid == sa.reqid;
    })) << "the policy finds its state";
  }
}

TEST_F(XfrmMigrate, InboundIsFoundAtItsNewAddress) {
  ASSERT_EQ(error_of(migrate(kPolicyIn, {in_move()})), 0);
  EXPECT_EQ(error_of(about_state(XFRM_MSG_GETSA, kIn)), ESRCH);
  EXPECT_EQ(ntohl(state(kMovedIn).id.spi), 0x2000U);
  ASSERT_EQ(error_of(about_state(XFRM_MSG_DELSA, kMovedIn)), 0);
  EXPECT_EQ(plane->sa_count(), 1U);
}

TEST_F(XfrmMigrate, ThereAndBackAgain) {
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(error_of(migrate({}, {out_move()})), 0);
    ASSERT_EQ(error_of(migrate(kPolicyIn, {in_move()})), 0);
    ASSERT_EQ(error_of(migrate({}, {move_of(kMoved, kThere, kHere, kThere)})), 0);
    ASSERT_EQ(error_of(migrate(kPolicyIn, {move_of(kThere, kMoved, kThere, kHere)})), 0);
  }
  told.clear();
  expect_unchanged();
}

// Bytes, packets and times too, and what a policy's listing says of its index and age.
TEST_F(XfrmMigrate, CountersGoOn) {
  Message counted = new_state({.spi = 0x3000, .key = 3});
  xfrm_lifetime_cur lifetime{};
  lifetime.bytes = 5000;
  lifetime.packets = 50;
  lifetime.add_time = 1700000000;
  ASSERT_EQ(error_of(counted.put(XFRMA_LTIME_VAL, lifetime)), 0);
  const auto policy = [&] {
    return read_as<xfrm_userpolicy_info>(answer_of(about_policy(XFRM_MSG_GETPOLICY, {})).payload);
  };
  const std::uint32_t index = policy().index;
  ASSERT_EQ(error_of(migrate({}, {out_move()})), 0);
  const xfrm_usersa_info info = state({.spi = 0x3000});
  EXPECT_TRUE(is(info.saddr, kMoved)) << "every state that is met, not the newest alone";
  EXPECT_TRUE(is(state(kOut).saddr, kMoved));
  EXPECT_EQ(info.curlft.bytes, 5000U);
  EXPECT_EQ(info.curlft.packets, 50U);
  EXPECT_EQ(info.curlft.add_time, 1700000000U);
  EXPECT_EQ(policy().index, index);
}

TEST_F(XfrmMigrate, WhoListensIsTold) {
  xfrm_user_kmaddress ends{};
  ends.local = address(kMoved);
  ends.remote = address(kThere);
  ends.family = AF_INET;
  ASSERT_EQ(error_of(migrate({}, {out_move()}).put(XFRMA_KMADDRESS, ends)), 0);
  ASSERT_EQ(told.size(), 1U);
  const auto& [group, message] = told[0];
  EXPECT_EQ(group, XFRMNLGRP_MIGRATE);
  EXPECT_EQ(message.header.nlmsg_type, XFRM_MSG_MIGRATE);
  EXPECT_EQ(message.header.nlmsg_pid, 0U);
  constexpr std::size_t kFixed = sizeof(xfrm_userpolicy_id);
  EXPECT_EQ(message.attribute(kFixed, XFRMA_MIGRATE), bytes_of(out_move()));
  EXPECT_EQ(message.attribute(kFixed, XFRMA_KMADDRESS), bytes_of(ends));
  EXPECT_EQ(message.attribute(kFixed, XFRMA_POLICY_TYPE), Bytes(sizeof(xfrm_userpolicy_type)));
  EXPECT_EQ(read_as<xfrm_userpolicy_id>(message.payload).dir, XFRM_POLICY_OUT);
}

TEST_F(XfrmMigrate, OfTwoMarksThatWhoseTemplateIsMeant) {
  ASSERT_EQ(error_of(new_policy({.source = kMoved, .mark = 41})), 0);
  told.clear();
  ASSERT_EQ(error_of(migrate({}, {out_move()})), 0);
  EXPECT_TRUE(is(template_of({}).saddr, kMoved));
  // Now both are met; the more urgent one moves, as in the kernel's search.
  ASSERT_EQ(error_of(new_policy({.source = kMoved, .mark = 40, .priority = 5})), 0);
  const auto back = move_of(kMoved, kThere, kHere, kThere);
  ASSERT_EQ(error_of(migrate({}, {back})), 0);
  EXPECT_TRUE(is(template_of({}).saddr, kHere) != is(template_of({.mark = 41}).saddr, kHere));
  EXPECT_TRUE(is(template_of({.mark = 40}).saddr, kMoved));
}

TEST_F(XfrmMigrate, ErrnoForErrno) {
  xfrm_userpolicy_id id{};
  EXPECT_EQ(error_of(Message(XFRM_MSG_MIGRATE).fixed(id)), EINVAL);
  EXPECT_EQ(text, "Missing required MIGRATE attribute");
  // libreswan's way to find out whether there is MIGRATE at all.
  EXPECT_EQ(error_of(migrate({}, {})), ERANGE);
  const auto with = [&](auto change) {
    xfrm_user_migrate move = out_move();
    change(move);
    return error_of(migrate({}, {move}));
  };
  EXPECT_EQ(with([](auto& move) { move.new_saddr = {}; }), EINVAL);
  EXPECT_THAT(text, HasSubstr("cannot be null"));
  EXPECT_EQ(with([](auto& move) { move.new_daddr = {}; }), EINVAL);
  EXPECT_EQ(with([](auto& move) { move.new_family = AF_UNIX; }), EINVAL);
  EXPECT_EQ(with([](auto& move) { move.reqid = 8; }), ENODATA);
  EXPECT_EQ(with([](auto& move) { move.proto = IPPROTO_AH; }), ENODATA);
  EXPECT_EQ(with([](auto& move) { move.mode = XFRM_MODE_BEET; }), ENODATA);
  EXPECT_EQ(with([](auto& move) { move.old_saddr = move.new_saddr; }), ENODATA);
  EXPECT_EQ(error_of(migrate({}, {out_move(), out_move()})), EINVAL);
  EXPECT_THAT(text, HasSubstr("must be unique"));
  std::vector<xfrm_user_migrate> seven(7, out_move());
  for (std::uint32_t i = 0; i < seven.size(); ++i) seven[i].reqid = 7 + i;
  EXPECT_EQ(error_of(migrate({}, seven)), EINVAL);
  EXPECT_EQ(error_of(migrate({.direction = 3}, {out_move()})), EINVAL);
  EXPECT_EQ(error_of(migrate({.second = 9}, {out_move()})), ENOENT);
  EXPECT_EQ(text, "Target policy not found");
  EXPECT_EQ(error_of(migrate({}, {out_move()}).put(XFRMA_IF_ID, std::uint32_t{9})), ENOENT);
  EXPECT_EQ(error_of(migrate({}, {out_move()}).put(XFRMA_ENCAP, Bytes(24))), EPROTONOSUPPORT);
  EXPECT_EQ(error_of(migrate({}, {out_move()}).put(XFRMA_POLICY_TYPE, Bytes(6, 1))), EINVAL);
  expect_unchanged();
}

TEST_F(XfrmMigrate, AddressThatIsNotOurs) {
  EXPECT_EQ(error_of(migrate({}, {move_of(kHere, kThere, "192.0.2.99", kThere)})), EADDRNOTAVAIL);
  expect_unchanged();
}

TEST_F(XfrmMigrate, PlaceThatIsTaken) {
  Message other =
      new_state({.source = kThere, .destination = kMoved, .spi = 0x2000, .key = 9, .reqid = 9});
  ASSERT_EQ(error_of(other), 0);
  EXPECT_EQ(error_of(migrate(kPolicyIn, {in_move()})), ENODATA);
  ASSERT_EQ(error_of(about_state(XFRM_MSG_DELSA, kMovedIn)), 0);
  told.clear();
  expect_unchanged();
}

// Two that would have one name where they go.
TEST_F(XfrmMigrate, PlaceThatAnotherOneTakes) {
  constexpr const char* kOther = "192.0.2.77";
  ASSERT_EQ(error_of(new_state({.destination = kOther, .key = 3})), 0);
  told.clear();
  const auto second = move_of(kHere, kOther, kMoved, kThere);
  EXPECT_EQ(error_of(migrate({}, {out_move(), second})), ENODATA);
  ASSERT_EQ(error_of(about_state(XFRM_MSG_DELSA, {.destination = kOther})), 0);
  told.clear();
  expect_unchanged();
}

TEST_F(XfrmMigrate, StateThatTwoMovesMeet) {
  xfrm_user_migrate any = move_of(kHere, kThere, "192.0.2.99", kThere);
  any.reqid = 0;
  ASSERT_EQ(error_of(migrate({}, {out_move(), any})), 0);
  EXPECT_TRUE(is(state(kOut).saddr, kMoved)) << "the first counts";
  EXPECT_GE(oseq(kOut), 1000U);
  EXPECT_EQ(plane->sa_count(), 2U);
}

// A port that somebody has at the new address: the first state has moved by then, and comes back.
TEST_F(XfrmMigrate, FailureHalfWay) {
  xfrm_encap_tmpl encap{};
  encap.encap_type = UDP_ENCAP_ESPINUDP;
  encap.encap_sport = encap.encap_dport = htons(4500);
  const StateWords udp{.spi = 0x3000, .key = 3, .oseq = 70};
  ASSERT_EQ(error_of(new_state(udp).put(XFRMA_ENCAP, encap)), 0);
  told.clear();
  const ifaces::UniqueFd squatter(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in name{};
  name.sin_family = AF_INET;
  name.sin_port = htons(4500);
  const xfrm_address_t own = address(kMoved);
  std::memcpy(&name.sin_addr, &own, sizeof name.sin_addr);
  ASSERT_EQ(::bind(squatter.get(), reinterpret_cast<const sockaddr*>(&name), sizeof name), 0);
  EXPECT_NE(error_of(migrate({}, {out_move()})), 0);
  EXPECT_TRUE(is(state(udp).saddr, kHere));
  EXPECT_GE(oseq(udp), 70U);
  ASSERT_EQ(error_of(about_state(XFRM_MSG_DELSA, udp)), 0);
  told.clear();
  expect_unchanged();
}

TEST_F(XfrmMigrate, EncapsulationComesWithIt) {
  xfrm_encap_tmpl encap{};
  encap.encap_type = UDP_ENCAP_ESPINUDP;
  encap.encap_sport = htons(4500);
  encap.encap_dport = htons(4501);
  ASSERT_EQ(error_of(migrate({}, {out_move()}).put(XFRMA_ENCAP, encap)), 0);
  const Answered answer = answer_of(about_state(XFRM_MSG_GETSA, kOut));
  EXPECT_EQ(answer.attribute(sizeof(xfrm_usersa_info), XFRMA_ENCAP), bytes_of(encap));
  for (const auto& sa : plane->sas())
    EXPECT_EQ(sa.peer.port, sa.direction == dataplane::Direction::out ? 4501 : 0);
  // Without one it stays.
  ASSERT_EQ(error_of(migrate({}, {move_of(kMoved, kThere, kHere, kThere)})), 0);
  EXPECT_EQ(
      answer_of(about_state(XFRM_MSG_GETSA, kOut)).attribute(sizeof(xfrm_usersa_info), XFRMA_ENCAP),
      bytes_of(encap));
}

// The next espalierd finds the states where they are now, and their numbers.
TEST_F(XfrmMigrate, WhatIsKeptMoves) {
  ASSERT_EQ(error_of(migrate({}, {out_move()})), 0);
  ASSERT_EQ(error_of(migrate(kPolicyIn, {in_move()})), 0);
  tools::Keep next;
  const auto records = next.adopt(ifaces::UniqueFd(::dup(keep.fd())), [] {});
  unsigned states = 0;
  for (const auto& record : records) {
    if (record.kind != tools::Keep::Kind::state) continue;
    ++states;
    const auto info = read_as<xfrm_usersa_info>(record.bytes.bytes().subspan(NLMSG_HDRLEN));
    EXPECT_TRUE(is(info.saddr, kMoved) || is(info.id.daddr, kMoved));
    EXPECT_TRUE(record.numbers.limit == 0 || record.numbers.limit > 1000U);
  }
  EXPECT_EQ(states, 2U);
  EXPECT_EQ(records.size(), 4U);
}

}  // namespace
}  // namespace espalier::test
