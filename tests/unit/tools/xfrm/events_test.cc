// NEWAE and GETAE, and what ends: EXPIRE and POLEXPIRE, as requests and by time.
#include <gmock/gmock.h>

#include <cerrno>
#include <limits>

#include "tests/unit/tools/xfrm/service_fixture.h"

namespace espalier::test {
namespace {

using std::chrono::seconds;
using testing::HasSubstr;
using Clock = tools::xfrm::Service::Clock;

constexpr StateWords kOut;
constexpr StateWords kIn{.source = kThere, .destination = kHere, .spi = 0x2000, .key = 2};
constexpr std::uint16_t kReplace = NLM_F_REQUEST | NLM_F_ACK | NLM_F_REPLACE;

Message event_values(const StateWords& words, std::uint16_t type = XFRM_MSG_NEWAE,
                     std::uint32_t flags = 0) {
  xfrm_aevent_id id{};
  id.sa_id = state_id(words);
  id.flags = flags;
  Message message(type, kReplace);
  message.fixed(id);
  return message;
}

class XfrmEvents : public ServiceTest {
 protected:
  void SetUp() override {
    ServiceTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_EQ(error_of(new_state(kOut)), 0);
    ASSERT_EQ(error_of(new_state(kIn)), 0);
    told.clear();
  }
  std::uint64_t next_number(dataplane::Direction direction) {
    for (const auto& sa : plane->sas())
      if (sa.direction == direction) return sa.seq;
    return 0;
  }
  int set_numbers(const StateWords& words, std::uint64_t oseq, std::uint64_t seq) {
    return error_of(event_values(words).put(XFRMA_REPLAY_ESN_VAL, replay_esn(oseq, seq)));
  }
  void pass(seconds after) {
    tools::xfrm::Output output;
    service->take_due(Clock::now() + after, output);
    take_notices(output);
  }
  // Types of what was told, and clears it.
  std::vector<int> kinds() {
    std::vector<int> out;
    for (const auto& [group, message] : told) out.push_back(message.header.nlmsg_type);
    told.clear();
    return out;
  }
};

constexpr std::size_t kFixed = sizeof(xfrm_aevent_id);

// A nonce never twice: forwards only.
TEST_F(XfrmEvents, NumbersOfAStateThatSendsGoForwardOnly) {
  const std::uint64_t far = (std::uint64_t{3} << 32) + 5;
  EXPECT_EQ(set_numbers(kOut, far, 0), 0);
  EXPECT_EQ(oseq(kOut), far);
  EXPECT_EQ(next_number(dataplane::Direction::out), far + 1);
  EXPECT_EQ(set_numbers(kOut, far, 0), 0) << "where it is";
  EXPECT_EQ(set_numbers(kOut, far - 1, 0), EINVAL);
  EXPECT_THAT(text, HasSubstr("only go forward"));
  EXPECT_EQ(set_numbers(kOut, 0, 0), EINVAL);
  EXPECT_EQ(set_numbers(kOut, std::numeric_limits<std::uint64_t>::max(), 0), EINVAL);
  EXPECT_EQ(oseq(kOut), far);
  EXPECT_EQ(next_number(dataplane::Direction::out), far + 1);
  // Deleted and added again it goes on there.
  EXPECT_EQ(error_of(about_state(XFRM_MSG_DELSA, kOut)), 0);
  EXPECT_EQ(error_of(new_state(kOut)), 0);
  EXPECT_EQ(oseq(kOut), far);
}

TEST_F(XfrmEvents, NumbersThatWereSeenStaySeen) {
  EXPECT_EQ(set_numbers(kIn, 0, 5000), 0);
  EXPECT_EQ(next_number(dataplane::Direction::in), 5000U);
  EXPECT_EQ(set_numbers(kIn, 0, 4999), EINVAL);
  EXPECT_THAT(text, HasSubstr("was seen"));
  EXPECT_EQ(next_number(dataplane::Direction::in), 5000U);
}

// What is reserved for the next espalierd is ahead of it before it can be used.
TEST_F(XfrmEvents, NumbersAreReservedAhead) {
  EXPECT_EQ(set_numbers(kOut, std::uint64_t{1} << 40, 0), 0);
  for (const auto& sa : plane->sas()) {
    if (sa.direction != dataplane::Direction::out) continue;
    EXPECT_GT(sa.seq_limit, std::uint64_t{1} << 40);
    EXPECT_LT(sa.seq_limit, std::uint64_t{1} << 41);
  }
  tools::Keep next;
  const auto records = next.adopt(ifaces::UniqueFd(::dup(keep.fd())), [] {});
  EXPECT_TRUE(std::any_of(records.begin(), records.end(), [](const auto& record) {
    return record.numbers.limit > std::uint64_t{1} << 40;
  }));
}

TEST_F(XfrmEvents, WithoutEsn) {
  const StateWords plain{.spi = 0x3000, .key = 3, .esn = false};
  ASSERT_EQ(error_of(new_state(plain)), 0);
  const auto set = [&](std::uint32_t oseq) {
    return error_of(event_values(plain).put(XFRMA_REPLAY_VAL, xfrm_replay_state{oseq, 0, 0}));
  };
  EXPECT_EQ(set(77), 0);
  const Answered answer = answer_of(event_values(plain, XFRM_MSG_GETAE));
  EXPECT_EQ(read_as<xfrm_replay_state>(answer.attribute(kFixed, XFRMA_REPLAY_VAL)).oseq, 77U);
  EXPECT_EQ(set(76), EINVAL);
  EXPECT_EQ(set(~0U), 0) << "the last one: no more";
  // The other attribute is not this state's.
  EXPECT_EQ(set_numbers(plain, 5, 0), 0);
}

TEST_F(XfrmEvents, CountersAndThresholds) {
  xfrm_lifetime_cur counted{};
  counted.bytes = 12345;
  counted.packets = 67;
  counted.add_time = 1600000000;
  Message message = event_values(kOut);
  message.put(XFRMA_LTIME_VAL, counted).put(XFRMA_REPLAY_THRESH, std::uint32_t{99});
  ASSERT_EQ(error_of(message), 0);
  const Answered answer =
      answer_of(event_values(kOut, XFRM_MSG_GETAE, XFRM_AE_RTHR | XFRM_AE_ETHR));
  EXPECT_EQ(read_as<xfrm_lifetime_cur>(answer.attribute(kFixed, XFRMA_LTIME_VAL)).bytes, 12345U);
  EXPECT_EQ(answer.attribute(kFixed, XFRMA_REPLAY_THRESH), bytes_of(std::uint32_t{99}));
  EXPECT_EQ(answer.attribute(kFixed, XFRMA_ETIMER_THRESH), bytes_of(std::uint32_t{10}));
  EXPECT_TRUE(
      answer_of(event_values(kOut, XFRM_MSG_GETAE)).attribute(kFixed, XFRMA_REPLAY_THRESH).empty());
  const auto body = read_as<xfrm_aevent_id>(answer.payload);
  EXPECT_EQ(body.reqid, 7U);
  EXPECT_EQ(body.sa_id.spi, htonl(kOut.spi));
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].first, XFRMNLGRP_AEVENTS);
  EXPECT_EQ(told[0].second.header.nlmsg_type, XFRM_MSG_NEWAE);
  EXPECT_EQ(read_as<xfrm_aevent_id>(told[0].second.payload).flags, std::uint32_t{XFRM_AE_CU});
}

// Fewer than were counted here, or more: the limit is of the sum.
TEST_F(XfrmEvents, LimitsAreOfWhatIsToldToHaveBeenCounted) {
  Message limited = new_state({.spi = 0x3000, .key = 3});
  auto info = read_as<xfrm_usersa_info>(std::span(limited.bytes()).subspan(NLMSG_HDRLEN));
  info.lft.hard_byte_limit = 1000;
  std::memcpy(reinterpret_cast<std::uint8_t*>(limited.header()) + NLMSG_HDRLEN, &info, sizeof info);
  ASSERT_EQ(error_of(limited), 0);
  const auto limit = [&] {
    for (const auto& sa : plane->sas())
      if (sa.spi == dataplane::Spi{0x3000}) return sa.lifetime.bytes.hard;
    return std::uint64_t{0};
  };
  xfrm_lifetime_cur counted{};
  for (const std::uint64_t bytes : {std::uint64_t{400}, std::uint64_t{0}, ~std::uint64_t{0} - 99}) {
    counted.bytes = bytes;
    ASSERT_EQ(error_of(event_values({.spi = 0x3000}).put(XFRMA_LTIME_VAL, counted)), 0);
    EXPECT_EQ(limit(), 1000 - bytes) << bytes;
  }
}

TEST_F(XfrmEvents, ErrnoForErrno) {
  EXPECT_EQ(error_of(event_values(kOut)), EINVAL);
  EXPECT_EQ(text, "Missing required attribute for AE");
  Message careless = event_values(kOut).put(XFRMA_REPLAY_THRESH, std::uint32_t{1});
  careless.header()->nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
  EXPECT_EQ(error_of(careless), EINVAL);
  EXPECT_EQ(text, "NLM_F_REPLACE flag is required");
  const Message nowhere = event_values({.spi = 0x9999}).put(XFRMA_REPLAY_THRESH, std::uint32_t{1});
  EXPECT_EQ(error_of(nowhere), ESRCH);
  EXPECT_EQ(error_of(event_values({.spi = 0x9999}, XFRM_MSG_GETAE)), ESRCH);
  const auto refused = [&](const Bytes& numbers) {
    return error_of(event_values(kOut).put(XFRMA_REPLAY_ESN_VAL, numbers));
  };
  EXPECT_EQ(refused(replay_esn(9, 0, 256)), EINVAL);
  EXPECT_THAT(text, HasSubstr("doesn't match"));
  EXPECT_EQ(refused(Bytes(24, 0xff)), EINVAL);
  Bytes cut = replay_esn(9, 0);
  cut.pop_back();
  EXPECT_EQ(refused(cut), EINVAL);
  Bytes wide = replay_esn(9, 0);
  wide[offsetof(tools::xfrm::ReplaySizes, replay_window)] = 255;
  EXPECT_EQ(refused(wide), EINVAL);
  EXPECT_EQ(oseq(kOut), 0U);
  EXPECT_TRUE(told.empty());
}

TEST_F(XfrmEvents, ExpireAsARequest) {
  const auto expire = [&](const StateWords& words, std::uint8_t hard) {
    xfrm_user_expire body{};
    body.state.family = AF_INET;
    body.state.id.daddr = address(words.destination);
    body.state.id.spi = htonl(words.spi);
    body.state.id.proto = IPPROTO_ESP;
    body.hard = hard;
    return error_of(Message(XFRM_MSG_EXPIRE).fixed(body));
  };
  EXPECT_EQ(expire({.spi = 0x9999}, 1), ENOENT);
  EXPECT_EQ(expire(kOut, 0), 0);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].first, XFRMNLGRP_EXPIRE);
  EXPECT_EQ(told[0].second.header.nlmsg_pid, 4711U);
  EXPECT_EQ(read_as<xfrm_user_expire>(told[0].second.payload).hard, 0);
  EXPECT_EQ(plane->sa_count(), 2U);
  told.clear();
  EXPECT_EQ(expire(kOut, 1), 0);
  EXPECT_EQ(kinds(), std::vector<int>{XFRM_MSG_EXPIRE});
  EXPECT_EQ(plane->sa_count(), 1U);
  EXPECT_EQ(expire(kOut, 1), ENOENT);
}

TEST_F(XfrmEvents, PolicyExpiresAsARequest) {
  ASSERT_EQ(error_of(new_policy({})), 0);
  told.clear();
  const auto expire = [&](const PolicyWords& words, std::uint8_t hard) {
    xfrm_user_polexpire body{};
    body.pol.sel = selector(words);
    body.pol.dir = words.direction;
    body.hard = hard;
    return error_of(
        Message(XFRM_MSG_POLEXPIRE).fixed(body).put(XFRMA_MARK, xfrm_mark{words.mark, ~0U}));
  };
  EXPECT_EQ(expire({.mark = 41}, 1), ENOENT);
  EXPECT_EQ(expire({.direction = 3}, 1), EINVAL);
  EXPECT_EQ(expire({}, 0), 0);
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(told[0].second.header.nlmsg_type, XFRM_MSG_POLEXPIRE);
  EXPECT_FALSE(told[0].second.attribute(sizeof(xfrm_user_polexpire), XFRMA_TMPL).empty());
  EXPECT_EQ(plane->policies().size(), 1U);
  EXPECT_EQ(expire({}, 1), 0);
  EXPECT_TRUE(plane->policies().empty());
  EXPECT_EQ(expire({}, 1), ENOENT);
}

Message policy_with(const xfrm_lifetime_cfg& limits, std::uint16_t type = XFRM_MSG_NEWPOLICY) {
  Message message = new_policy({}, type);
  std::memcpy(reinterpret_cast<std::uint8_t*>(message.header()) + NLMSG_HDRLEN +
                  offsetof(xfrm_userpolicy_info, lft),
              &limits, sizeof limits);
  return message;
}

// As the kernel's timer: soft again and again, until the end.
TEST_F(XfrmEvents, PolicyExpiresByTime) {
  auto limits = tools::xfrm::from_lifetime({});
  limits.soft_add_expires_seconds = 10;
  limits.hard_use_expires_seconds = 100;
  ASSERT_EQ(error_of(policy_with(limits)), 0);
  told.clear();
  pass(seconds(0));
  ASSERT_TRUE(service->deadline());
  EXPECT_LE(*service->deadline(), Clock::now() + seconds(11));
  pass(seconds(9));
  EXPECT_TRUE(told.empty());
  pass(seconds(11));
  EXPECT_EQ(kinds(), std::vector<int>{XFRM_MSG_POLEXPIRE});
  pass(seconds(12));
  EXPECT_TRUE(told.empty());
  pass(seconds(45));
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(read_as<xfrm_user_polexpire>(told[0].second.payload).hard, 0);
  told.clear();
  pass(seconds(102));
  ASSERT_EQ(told.size(), 1U);
  EXPECT_EQ(read_as<xfrm_user_polexpire>(told[0].second.payload).hard, 1);
  EXPECT_TRUE(plane->policies().empty());
  told.clear();
  pass(seconds(1000));
  EXPECT_TRUE(told.empty());
}

TEST_F(XfrmEvents, PolicyThatIsReplacedLivesAnew) {
  auto limits = tools::xfrm::from_lifetime({});
  limits.hard_add_expires_seconds = 10;
  ASSERT_EQ(error_of(policy_with(limits)), 0);
  limits.hard_add_expires_seconds = 1000;
  ASSERT_EQ(error_of(policy_with(limits, XFRM_MSG_UPDPOLICY)), 0);
  told.clear();
  pass(seconds(500));
  EXPECT_TRUE(told.empty());
  limits.hard_add_expires_seconds = 0;
  ASSERT_EQ(error_of(policy_with(limits, XFRM_MSG_UPDPOLICY)), 0);
  told.clear();
  pass(seconds(5000));
  EXPECT_EQ(plane->policies().size(), 1U);
  EXPECT_TRUE(told.empty());
}

TEST_F(XfrmEvents, MappingThresholdIsKeptAndListed) {
  const std::uint32_t threshold = 30;
  EXPECT_EQ(error_of(new_state({.spi = 0x3000, .key = 3}).put(XFRMA_MTIMER_THRESH, threshold)),
            EINVAL);
  xfrm_encap_tmpl encap{};
  encap.encap_type = UDP_ENCAP_ESPINUDP;
  encap.encap_sport = encap.encap_dport = htons(4500);
  const StateWords udp{.spi = 0x3000, .key = 3};
  ASSERT_EQ(error_of(new_state(udp).put(XFRMA_ENCAP, encap).put(XFRMA_MTIMER_THRESH, threshold)),
            0);
  EXPECT_EQ(answer_of(about_state(XFRM_MSG_GETSA, udp))
                .attribute(sizeof(xfrm_usersa_info), XFRMA_MTIMER_THRESH),
            bytes_of(threshold));
}

}  // namespace
}  // namespace espalier::test
