// The operations of the control socket, against a daemon that runs without a configuration, in a
// network namespace of its own in which 192.0.2.1 is this host.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <net/if.h>
#include <sched.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <csignal>
#include <filesystem>
#include <set>
#include <thread>

#include "ifaces/netlink.h"
#include "tools/control_client.h"
#include "tools/daemon.h"

namespace espalier::tools {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

// 36 bytes of hex, a different one for each number.
std::string key(unsigned number) {
  std::array<char, 16> text{};
  std::snprintf(text.data(), text.size(), "%08x", number);
  return std::string(64, 'c') + text.data();
}

class ControlApiTest : public testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root to make a network namespace";
    if (::access("/dev/net/tun", R_OK | W_OK) != 0) GTEST_SKIP() << "needs /dev/net/tun";
    ASSERT_EQ(::unshare(CLONE_NEWNET), 0);
    ifaces::Netlink netlink;
    netlink.set_link("lo", {});
    netlink.add_address("lo", *ifaces::Prefix::parse("192.0.2.1"));
    std::array<char, 32> name{"/tmp/espalier-api-XXXXXX"};
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name.data();
    ASSERT_EQ(::pipe2(log_pipe_.data(), O_NONBLOCK | O_CLOEXEC), 0);
    ASSERT_EQ(::pipe2(stop_pipe_.data(), O_NONBLOCK | O_CLOEXEC), 0);
    log_.emplace(log_pipe_[1]);
    DaemonOptions options;
    options.control = directory_ / "control.sock";
    daemon_.emplace(options, *log_);
    loop_ = std::thread([this] { daemon_->run(ifaces::UniqueFd(::dup(stop_pipe_[0]))); });
    connection_.emplace(*options.control);
  }
  void TearDown() override {
    if (loop_.joinable()) {
      signalfd_siginfo stop{};
      stop.ssi_signo = SIGTERM;
      ASSERT_EQ(::write(stop_pipe_[1], &stop, sizeof stop), ssize_t{sizeof stop});
      loop_.join();
      daemon_.reset();
    }
    for (const int fd : {log_pipe_[0], log_pipe_[1], stop_pipe_[0], stop_pipe_[1]}) ::close(fd);
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }

  [[nodiscard]] ControlConnection connect() const {
    return ControlConnection(directory_ / "control.sock");
  }
  json ask(const json& request) { return connection_->ask_line(line(request)); }
  // What it says when it refuses; "" if it does not.
  std::string refusal(const json& request) {
    try {
      ask(request);
    } catch (const ControlRefused& e) {
      return e.what();
    }
    return "";
  }
  static std::string line(json request) {
    request["version"] = 1;
    return request.dump();
  }
  std::vector<json> list(const std::string& op, const std::string& member) {
    std::vector<json> out;
    ask_pages(*connection_, op, member, [&](const json& entry) { out.push_back(entry); });
    return out;
  }
  std::vector<json> sas() { return list("sa-list", "sas"); }

  static json sa_out(unsigned spi, unsigned key_number) {
    return {{"op", "sa-add"},     {"source", "192.0.2.1"}, {"destination", "192.0.2.2"},
            {"spi", spi},         {"suite", "aes_gcm256"}, {"reqid", 1},
            {"direction", "out"}, {"key", key(key_number)}};
  }
  static json sa_in(unsigned spi, unsigned key_number) {
    return {{"op", "sa-add"},    {"source", "192.0.2.2"}, {"destination", "192.0.2.1"},
            {"spi", spi},        {"suite", "aes_gcm256"}, {"reqid", 1},
            {"direction", "in"}, {"key", key(key_number)}};
  }
  static json with(json object, const std::string& member, json value) {
    object[member] = std::move(value);
    return object;
  }
  // A datagram into the tunnel; where it goes in the end does not matter.
  static void send_to(const char* address) {
    const ifaces::UniqueFd fd(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    sockaddr_storage to{};
    const socklen_t length = ifaces::Endpoint{*ifaces::IpAddress::parse(address), 9}.to(to);
    ASSERT_EQ(::sendto(fd.get(), "x", 1, 0, reinterpret_cast<sockaddr*>(&to), length), 1);
  }
  void make_device() {
    ask({{"op", "vti-add"},
         {"name", "vti01"},
         {"local", "192.0.2.1"},
         {"remote", "192.0.2.2"},
         {"key", 5},
         {"carrier_follows_sa", false},
         {"addresses", {"10.0.1.1/24"}}});
    ask({{"op", "policy-add"},
         {"direction", "out"},
         {"source", "0.0.0.0/0"},
         {"mark", "5"},
         {"reqid", 1},
         {"trap", true}});
  }
  // Waits until the outbound SA with `spi` has used a number.
  void wait_used(unsigned spi) {
    for (int i = 0; i < 500; ++i) {
      const json sa = ask({{"op", "sa-get"}, {"spi", spi}, {"destination", "192.0.2.2"}})["sa"];
      if (sa["seq"].get<unsigned>() > 1) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    FAIL() << "nothing was sent";
  }

  std::filesystem::path directory_;
  std::array<int, 2> log_pipe_{}, stop_pipe_{};
  std::optional<Log> log_;
  std::optional<Daemon> daemon_;
  std::thread loop_;
  std::optional<ControlConnection> connection_;
};

TEST_F(ControlApiTest, AnSaComesIsListedAndGoes) {
  json request = sa_out(0x1234, 1);
  request.update({{"mark", "5/0xff"},
                  {"window", 64},
                  {"lifetime", {{"bytes", {{"soft", 1000}, {"hard", "0x7d0"}}}}},
                  {"outer", {{"dscp", 46}, {"df", "clear"}, {"hop_limit", 9}}},
                  {"tfc", "mtu"},
                  {"name", "mine"}});
  const json id = ask(request)["id"];
  const json sa = ask({{"op", "sa-get"}, {"spi", "0x1234"}, {"destination", "192.0.2.2"}})["sa"];
  EXPECT_EQ(sa["id"], id);
  EXPECT_EQ(sa["direction"], "out");
  EXPECT_EQ(sa["local"], "192.0.2.1:4500");
  EXPECT_EQ(sa["mark"], "5/0xff");
  EXPECT_EQ(sa["lifetime"]["bytes"], (json{{"soft", 1000}, {"hard", 2000}}));
  EXPECT_EQ(sa["outer"]["dscp"], 46);
  EXPECT_EQ(sa["outer"]["df"], "clear");
  EXPECT_EQ(sa["tfc"], "mtu");
  EXPECT_EQ(sas().size(), 1U);
  ask({{"op", "sa-delete"}, {"id", id}});
  EXPECT_EQ(sas().size(), 0U);
  EXPECT_THAT(refusal({{"op", "sa-delete"}, {"id", id}}), HasSubstr("there is no SA"));
}

TEST_F(ControlApiTest, TheDirectionFollowsFromWhatIsLocal) {
  json out = sa_out(0x1001, 1), in = sa_in(0x1002, 2);
  out.erase("direction");
  in.erase("direction");
  ask(out);
  ask(in);
  EXPECT_EQ(sas()[0]["direction"], "out");
  EXPECT_EQ(sas()[1]["direction"], "in");
  in["destination"] = "192.0.2.7";
  EXPECT_THAT(refusal(in), HasSubstr("neither end is of this host"));
}

TEST_F(ControlApiTest, C4AKeyNeverComesBack) {
  ask(sa_out(0x1234, 7));
  std::string all = ask({{"op", "status"}}).dump() + sas()[0].dump();
  all += refusal(sa_in(0x1235, 7));
  all += refusal(with(sa_out(0x1236, 8), "suite", "chacha20_poly1305_"));
  all += refusal(with(sa_out(0x1236, 8), "key", key(9) + "ff"));
  all += refusal(with(sa_out(0x1236, 8), "kee", key(9)));
  all += refusal(with(sa_out(0x1236, 8), "spi", key(9)));
  EXPECT_THAT(all, Not(HasSubstr("cccc")));
  EXPECT_THAT(refusal(with(sa_out(0x1236, 8), "key", key(9) + "ff")), HasSubstr("36 bytes"));
}

TEST_F(ControlApiTest, AKeyMayBeBase64WithEscapedSlashes) {
  // 36 bytes of 0xff are 48 slashes.
  std::string text = R"({"version":1,"op":"sa-add","direction":"out","source":"192.0.2.1",)"
                     R"("destination":"192.0.2.2","spi":4096,"suite":"aes_gcm256","key":")";
  for (int i = 0; i < 48; ++i) text += "\\/";
  connection_->ask_line(text + "\"}");
  EXPECT_THAT(refusal(with(sa_out(0x1001, 0), "key", "0x" + std::string(72, 'f'))),
              HasSubstr("same key and salt"));
}

TEST_F(ControlApiTest, L4TheSameSpiTwiceIsRefusedAndTheFirstUntouched) {
  ask(sa_in(0x1234, 1));
  const json before = sas()[0]["id"];
  EXPECT_THAT(refusal(sa_in(0x1234, 2)), HasSubstr("0x00001234"));
  for (const unsigned spi : {0U, 1U, 255U})
    EXPECT_THAT(refusal(sa_in(spi, 2)), HasSubstr("reserved")) << spi;
  ASSERT_EQ(sas().size(), 1U);
  EXPECT_EQ(sas()[0]["id"], before);
}

TEST_F(ControlApiTest, T2TheSameKeyTwiceIsRefusedEitherDirection) {
  ask(sa_out(0x1234, 1));
  EXPECT_THAT(refusal(sa_out(0x1235, 1)), HasSubstr("same key and salt"));
  EXPECT_THAT(refusal(sa_in(0x1236, 1)), HasSubstr("same key and salt"));
}

TEST_F(ControlApiTest, T1AKeyThatWasUsedGoesOnBehindItsNumbers) {
  make_device();
  ask(sa_out(0x1234, 1));
  send_to("10.0.1.9");
  wait_used(0x1234);
  ask({{"op", "sa-delete"}, {"spi", 0x1234}, {"destination", "192.0.2.2"}});
  ask(sa_out(0x1235, 1));
  EXPECT_GT(sas().at(0)["seq"].get<std::uint64_t>(), 1U);
}

TEST_F(ControlApiTest, A15NoWindowOnlyWithoutEsn) {
  EXPECT_THAT(refusal(with(sa_in(0x1234, 1), "window", "no")), HasSubstr("ESN"));
  EXPECT_THAT(refusal(with(with(sa_in(0x1234, 1), "window", 0), "esn", false)),
              HasSubstr("\"no\""));
  EXPECT_EQ(refusal(with(with(sa_in(0x1234, 1), "window", "no"), "esn", false)), "");
}

TEST_F(ControlApiTest, T29ParametersOutOfBoundsAreRefused) {
  const json good = sa_in(0x1234, 1);
  for (const auto& [member, value] : {std::pair<std::string, json>{"window", 31},
                                      {"window", 65537},
                                      {"window", 0x80000000},
                                      {"window", -1},
                                      {"window", 64.5},
                                      {"window", "many"},
                                      {"window", json::array()},
                                      {"spi", 0x100000000},
                                      {"spi", -1},
                                      {"reqid", 0x100000000},
                                      {"reqid", -1},
                                      {"mark", "1/0x100000000"},
                                      {"mark", "6/1"},
                                      {"mark", 4294967296},
                                      {"seq", 0},
                                      {"source_port", 65536},
                                      {"esn", "perhaps"},
                                      {"direction", "up"},
                                      {"tfc", 65536},
                                      {"name", "a b"},
                                      {"name", std::string(65, 'x')},
                                      {"lifetime", 7},
                                      {"lifetime", {{"bytes", {{"soft", 2}, {"hard", 1}}}}},
                                      {"lifetime", {{"years", 1}}},
                                      {"outer", {{"dscp", 64}}},
                                      {"outer", {{"df", "maybe"}}},
                                      {"outer", {{"hop_limit", 256}}},
                                      {"source", "fe80::1"},
                                      {"source", "192.0.2.1"},
                                      {"destination", "nowhere"},
                                      {"suite", "rot13"},
                                      {"key", 0},
                                      {"key", "short"},
                                      {"key", json::object()},
                                      {"windw", 64},
                                      {"encapsulation", "tcp"}})
    EXPECT_NE(refusal(with(good, member, value)), "") << member << " " << value;
  EXPECT_EQ(sas().size(), 0U);
  EXPECT_EQ(refusal(good), "");
}

TEST_F(ControlApiTest, ABatchIsAllOrNothing) {
  const json id = ask(sa_in(0x1000, 1))["id"];
  json ops = {with({{"op", "sa-update"}, {"id", id}}, "window", 128),
              sa_in(0x1001, 2),
              {{"op", "sa-delete"}, {"id", id}},
              sa_in(0x1002, 2)};
  try {
    ask({{"op", "batch"}, {"ops", ops}});
    FAIL() << "the last has the key of another";
  } catch (const ControlRefused& e) {
    EXPECT_EQ(e.reply()["index"], 3);
  }
  connection_.emplace(connect());  // an error ends the connection
  ASSERT_EQ(sas().size(), 1U);
  EXPECT_EQ(sas()[0]["id"], id);
  EXPECT_EQ(sas()[0]["window"], 4096);

  ops[3]["key"] = key(3);
  const json reply = ask({{"op", "batch"}, {"ops", ops}});
  EXPECT_EQ(reply["added"], 2);
  EXPECT_EQ(reply["updated"], 1);
  EXPECT_EQ(reply["deleted"], 1);
  EXPECT_EQ(sas().size(), 2U);
}

TEST_F(ControlApiTest, WhatFollowsABatchThatFailedIsNotDone) {
  ControlConnection other = connect();
  EXPECT_THROW(other.ask_line(line({{"op", "batch"}, {"more", true}, {"ops", {sa_in(1, 1)}}}) +
                              "\n" + line({{"op", "batch"}, {"ops", {sa_in(0x1000, 2)}}})),
               ControlRefused);
  EXPECT_EQ(sas().size(), 0U);
}

TEST_F(ControlApiTest, C5ABatchThatIsNotCompleteIsNothing) {
  {
    ControlConnection other = connect();
    const json reply =
        other.ask_line(line({{"op", "batch"}, {"more", true}, {"ops", {sa_in(0x1000, 1)}}}));
    EXPECT_EQ(reply["queued"], 1);
  }
  EXPECT_EQ(sas().size(), 0U);
  ask({{"op", "batch"}, {"more", true}, {"ops", {sa_in(0x1000, 1)}}});
  ask({{"op", "batch"}, {"ops", {sa_in(0x1001, 2)}}});
  EXPECT_EQ(sas().size(), 2U);
}

TEST_F(ControlApiTest, C3AListThatIsChangedInTheMiddleHasWhatStaysOnce) {
  json ops = json::array();
  for (unsigned i = 0; i < 1500; ++i) ops.push_back(with(sa_in(0x1000 + i, i), "reqid", 100 + i));
  const json ids = ask({{"op", "batch"}, {"ops", ops}})["ids"];
  if (ids.is_array()) FAIL() << "a reply with all ids";
  const json first = ask({{"op", "sa-list"}});
  ASSERT_EQ(first["sas"].size(), 500U);
  ask({{"op", "sa-delete"}, {"id", first["sas"][3]["id"]}});  // behind the cursor
  ask({{"op", "sa-delete"}, {"id", first["next"]}});          // the cursor itself
  ask({{"op", "sa-add"},
       {"direction", "in"},
       {"source", "192.0.2.2"},
       {"destination", "192.0.2.1"},
       {"spi", 0x9000},
       {"key", key(9000)}});
  std::set<std::string> seen;
  for (const json& sa : first["sas"]) seen.insert(sa["spi"]);
  for (json next = first["next"]; !next.is_null();) {
    const json page = ask({{"op", "sa-list"}, {"after", next}});
    for (const json& sa : page["sas"]) EXPECT_TRUE(seen.insert(sa["spi"]).second) << sa["spi"];
    next = page["next"];
  }
  EXPECT_EQ(seen.size(), 1501U);
  EXPECT_EQ(ask({{"op", "sa-count"}})["count"], 1499);
  EXPECT_EQ(ask({{"op", "flush"}, {"what", "sa"}})["sa"], 1499);
}

TEST_F(ControlApiTest, PoliciesKeepWhatTheySay) {
  const json policy = {{"direction", "out"},
                       {"source", "10.1.0.0/16"},
                       {"destination", "10.2.0.5-10.2.0.9"},
                       {"protocol", "tcp"},
                       {"destination_port", "80-443"},
                       {"mark", "5/0xffffffff"},
                       {"priority", 7},
                       {"reqid", 3},
                       {"action", "discard"}};
  json request = policy;
  request["op"] = "policy-add";
  const json id = ask(request)["id"];
  const json listed = list("policy-list", "policies").at(0);
  for (const auto& [member, value] : policy.items()) EXPECT_EQ(listed[member], value) << member;
  for (const auto& [member, value] : {std::pair<std::string, json>{"source", "10.1.2.3/16"},
                                      {"source", "10.9.0.1-10.8.0.1"},
                                      {"destination", "fd00::/8"},
                                      {"protocol", "tpc"},
                                      {"destination_port", "443-80"},
                                      {"destination_port", 65536},
                                      {"direction", "fwd"},
                                      {"action", "allow"},
                                      {"trap", 1},
                                      {"icmp_type", 8}})
    EXPECT_NE(refusal(with(request, member, value)), "") << member << " " << value;
  ask({{"op", "policy-delete"}, {"id", id}});
  EXPECT_NE(refusal({{"op", "policy-delete"}, {"id", id}}), "");
}

TEST_F(ControlApiTest, ADeviceIsThereAsAConnsIs) {
  make_device();
  EXPECT_NE(::if_nametoindex("vti01"), 0U);
  ifaces::Netlink netlink;
  EXPECT_TRUE(netlink.is_local(*ifaces::IpAddress::parse("10.0.1.1")));
  const json vti = ask({{"op", "vti-list"}})["vtis"][0];
  EXPECT_EQ(vti["ikey"], 5);
  EXPECT_EQ(vti["local"], "192.0.2.1");
  EXPECT_EQ(vti["mtu"], 1438);
  EXPECT_THAT(refusal({{"op", "vti-add"}, {"name", "vti01"}}), HasSubstr("there already"));
  EXPECT_THAT(refusal({{"op", "vti-add"}, {"name", "a/b"}}), HasSubstr("name"));
  ask({{"op", "vti-delete"}, {"name", "vti01"}});
  EXPECT_EQ(::if_nametoindex("vti01"), 0U);
  EXPECT_THAT(refusal({{"op", "vti-delete"}, {"name", "vti01"}}), HasSubstr("no device"));
}

TEST_F(ControlApiTest, L5APacketWithoutAnSaIsAnAcquire) {
  make_device();
  ControlConnection listener = connect();
  static_cast<void>(listener.ask({{"op", "subscribe"}}));
  send_to("10.0.1.9");
  const auto event = listener.next_event();
  ASSERT_TRUE(event);
  EXPECT_EQ((*event)["event"], "acquire");
  EXPECT_EQ((*event)["reqid"], 1);
  EXPECT_EQ((*event)["flow"]["destination"], "10.0.1.9");
  EXPECT_EQ((*event)["flow"]["destination_port"], 9);
}

TEST_F(ControlApiTest, A16AnSaGoesWithItsHardLimit) {
  make_device();
  ControlConnection listener = connect();
  static_cast<void>(listener.ask({{"op", "subscribe"}}));
  ask(with(sa_out(0x1234, 1), "lifetime", {{"seconds", {{"hard", 1}}}}));
  const auto event = listener.next_event();
  ASSERT_TRUE(event);
  EXPECT_EQ((*event)["event"], "hard-expire");
  EXPECT_EQ((*event)["spi"], "0x00001234");
  EXPECT_EQ(sas().size(), 0U);
}

}  // namespace
}  // namespace espalier::tools
