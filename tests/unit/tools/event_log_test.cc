#include "tools/event_log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <sstream>

namespace espalier::tools {
namespace {

using dataplane::Event;
using dataplane::EventKind;
using testing::AllOf;
using testing::HasSubstr;

class EventLogTest : public testing::Test {
 protected:
  void SetUp() override { ASSERT_EQ(::pipe2(pipe_.data(), O_NONBLOCK | O_CLOEXEC), 0); }
  void TearDown() override {
    for (const int fd : pipe_) ::close(fd);
  }
  // The lines since the last call.
  std::vector<std::string> lines() {
    std::array<char, 65536> buffer{};
    const ssize_t got = ::read(pipe_[0], buffer.data(), buffer.size());
    std::istringstream text(
        std::string(buffer.data(), got < 0 ? 0 : static_cast<std::size_t>(got)));
    std::vector<std::string> out;
    for (std::string line; std::getline(text, line);) out.push_back(line);
    return out;
  }
  static Event event(EventKind kind) {
    Event e;
    e.kind = kind;
    e.direction = dataplane::Direction::in;
    e.sa = dataplane::SaId{7};
    e.spi = dataplane::Spi{0xc0ffee};
    e.seq = 4711;
    e.count = 17;
    e.local = {*ifaces::IpAddress::parse("192.0.2.1"), 4500};
    e.peer = {*ifaces::IpAddress::parse("192.0.2.9"), 61000};
    e.flow.source = *ifaces::IpAddress::parse("10.1.3.2");
    e.flow.destination = *ifaces::IpAddress::parse("10.1.4.2");
    e.flow.protocol = 17;
    return e;
  }

  std::array<int, 2> pipe_{};
};

// RFC 4303 §3.4.3, §3.4.4, RFC 4301 §5.2: what an audit log entry has.
TEST_F(EventLogTest, RefusedPacketsHaveWhatIsAudited) {
  for (const EventKind kind : {EventKind::replay, EventKind::integrity})
    EXPECT_THAT(event_text(event(kind), "a"),
                AllOf(HasSubstr("0x00c0ffee in (conn a)"), HasSubstr("17 packets"),
                      HasSubstr("from 192.0.2.9:61000"), HasSubstr("to 192.0.2.1:4500"),
                      HasSubstr("number 4711")));
  EXPECT_THAT(event_text(event(EventKind::selector_mismatch), ""),
              AllOf(HasSubstr("0x00c0ffee in: "), HasSubstr("from 192.0.2.9:61000"),
                    HasSubstr("10.1.3.2 to 10.1.4.2, protocol 17")));
  Event unknown = event(EventKind::no_spi);
  unknown.local.port = unknown.peer.port = 0;
  EXPECT_THAT(event_text(unknown, ""),
              AllOf(HasSubstr("from 192.0.2.9 to 192.0.2.1 "), HasSubstr("SPI 0x00c0ffee")));
}

TEST_F(EventLogTest, EveryKindIsOneLine) {
  for (std::size_t kind = 0; kind < dataplane::kEventNames.size(); ++kind) {
    const std::string text = event_text(event(static_cast<EventKind>(kind)), "a");
    EXPECT_FALSE(text.empty()) << dataplane::kEventNames[kind];
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
  }
}

// A reserve is extended by whoever reserved it; the end of the numbers is the end.
TEST_F(EventLogTest, OnlyTheLastNumberIsAnError) {
  const Log log(pipe_[1], LogLevel::info);
  EventLog events(log, [](dataplane::SaId) { return std::string(); });
  const auto now = std::chrono::steady_clock::now();
  Event e = event(EventKind::seq_exhausted);
  events.tell(e, now);
  EXPECT_TRUE(lines().empty());
  EXPECT_THAT(event_text(e, ""), HasSubstr("the reserved numbers are used up at 4711"));
  for (const std::uint64_t last :
       {std::uint64_t{0xffffffff}, ~std::uint64_t{0} - (std::uint64_t{1} << 32)}) {
    e.seq = last;
    events.tell(e, now);
    EXPECT_THAT(lines(),
                testing::ElementsAre(AllOf(HasSubstr("error "), HasSubstr("numbers are used up"))));
  }
}

// T16: who sends what is refused cannot fill the log.
TEST_F(EventLogTest, T16SoManyLinesASecondAndThenACount) {
  const Log log(pipe_[1]);
  EventLog events(log, [](dataplane::SaId) { return std::string("a"); });
  const auto start = std::chrono::steady_clock::now();
  for (unsigned i = 0; i < EventLog::kLines + 1000; ++i)
    events.tell(event(EventKind::integrity), start + std::chrono::microseconds(i));
  const auto first = lines();
  ASSERT_EQ(first.size(), EventLog::kLines);
  EXPECT_EQ(first.front(), "warning " + event_text(event(EventKind::integrity), "a"));
  events.tell(event(EventKind::replay), start + std::chrono::seconds(1));
  const auto second = lines();
  ASSERT_EQ(second.size(), 2U);
  EXPECT_THAT(second.front(), HasSubstr("1000 more events"));
}

TEST_F(EventLogTest, AFloodKeepsNoErrorBack) {
  const Log log(pipe_[1]);
  EventLog events(log, [](dataplane::SaId) { return std::string("a"); });
  const auto now = std::chrono::steady_clock::now();
  for (unsigned i = 0; i < 2 * EventLog::kLines; ++i) events.tell(event(EventKind::replay), now);
  EXPECT_EQ(lines().size(), EventLog::kLines);
  Event last = event(EventKind::seq_exhausted);
  last.seq = 0xffffffff;
  events.tell(last, now);
  EXPECT_THAT(lines(), testing::ElementsAre(HasSubstr("numbers are used up")));
  for (unsigned i = 0; i < 2 * EventLog::kLines; ++i) events.tell(last, now);
  EXPECT_EQ(lines().size(), EventLog::kLines - 1);
}

TEST_F(EventLogTest, WhatTheLevelLeavesOutIsNotCounted) {
  const Log log(pipe_[1], LogLevel::warning);
  EventLog events(log, [](dataplane::SaId) { return std::string(); });
  const auto start = std::chrono::steady_clock::now();
  for (unsigned i = 0; i < 2 * EventLog::kLines; ++i) events.tell(event(EventKind::acquire), start);
  events.tell(event(EventKind::hard_expire), start + std::chrono::seconds(2));
  const auto seen = lines();
  ASSERT_EQ(seen.size(), 1U);
  EXPECT_THAT(seen.front(), HasSubstr("a hard limit"));
}

}  // namespace
}  // namespace espalier::tools
