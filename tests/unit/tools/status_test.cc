// Status: what the daemon collected is all there in JSON, and people can read it.
#include "tools/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tools/log.h"

namespace espalier::tools {
namespace {

using dataplane::Direction;
using dataplane::Drop;
using nlohmann::json;
using std::chrono::seconds;
using testing::HasSubstr;
using testing::Not;

const std::chrono::steady_clock::time_point kNow{seconds(100000)};

DaemonStatus example() {
  DaemonStatus status;
  status.config = "/etc/espalier/espalier.conf";
  status.engine = "io_uring (multishot)";
  status.workers = 1;
  status.crypto = {{"ipsec-mb", false, "not on this processor"}, {"openssl", true, "AES-NI"}};
  status.started = kNow - seconds(7325);

  ConnStatus conn;
  conn.name = "routed-vpn";
  conn.up = true;
  conn.device = "vti01";
  conn.left = "192.1.2.23:4500";
  conn.right = "192.1.2.45:4500";
  conn.leftsubnet = {"0.0.0.0/0"};
  conn.rightsubnet = {"10.0.2.0/24", "10.0.3.0/24"};
  conn.mark_in = conn.mark_out = "5/0xffffffff";
  conn.encapsulation = dataplane::Encapsulation::udp;
  conn.esp = crypto::Suite::aes_gcm256;
  conn.mtu = 1438;
  conn.since = kNow - seconds(61);
  status.conns = {conn};

  dataplane::DeviceStatus device;
  device.name = "vti01";
  device.ikey = device.okey = 5;
  device.rx = {10, 2048};
  status.devices = {device};

  dataplane::SaStatus in;
  in.direction = Direction::in;
  in.spi = dataplane::Spi{0x1001};
  in.name = "routed-vpn";
  in.backend = "openssl";
  in.traffic = {1203112, 1331439861};
  in.drops[static_cast<std::size_t>(Drop::integrity)] = 2;
  in.last_packet = kNow - seconds(3);
  dataplane::SaStatus out = in;
  out.direction = Direction::out;
  out.spi = dataplane::Spi{0x2002};
  out.local = {*ifaces::IpAddress::parse("192.1.2.23"), 4500};
  out.peer = {*ifaces::IpAddress::parse("192.1.2.45"), 4501};
  out.last_packet.reset();
  out.drops = {};
  out.seq = 77;
  status.sas = {in, out};
  status.drops[static_cast<std::size_t>(Drop::integrity)] = 2;
  status.drops[static_cast<std::size_t>(Drop::no_spi)] = 1234;
  return status;
}

TEST(StatusJson, HoldsEverythingUnderStableNames) {
  const json out = status_json(example(), kNow);
  EXPECT_EQ(out["daemon"]["engine"], "io_uring (multishot)");
  EXPECT_EQ(out["daemon"]["uptime_s"], 7325.0);
  EXPECT_EQ(out["conns"][0]["state"], "up");
  EXPECT_EQ(out["devices"][0]["rx_bytes"], 2048);
  ASSERT_EQ(out["sas"].size(), 2U);
  EXPECT_EQ(out["sas"][0]["spi"], "0x00001001");
  EXPECT_EQ(out["sas"][0]["last_packet_s"], 3.0);
  EXPECT_EQ(out["sas"][0]["drops"], json({{"integrity", 2}}));
  EXPECT_TRUE(out["sas"][1]["last_packet_s"].is_null());
  EXPECT_EQ(out["sas"][1]["peer"], "192.1.2.45:4501");
  EXPECT_EQ(out["sas"][1]["seq"], 77);
  // Every reason is there, zero or not.
  EXPECT_EQ(out["drops"].size(), dataplane::kDropCount);
  EXPECT_EQ(out["drops"]["no_spi"], 1234);
  EXPECT_EQ(out["drops"]["late"], 0);
}

TEST(StatusJson, AConnThatFailedSaysWhy) {
  DaemonStatus status = example();
  status.conns[0].up = false;
  status.conns[0].error = "bind 192.1.2.23:4500: Address already in use";
  const json out = status_json(status, kNow);
  EXPECT_EQ(out["conns"][0]["state"], "failed");
  EXPECT_EQ(out["conns"][0]["error"], status.conns[0].error);
  EXPECT_THAT(status_text(out), HasSubstr(status.conns[0].error));
}

TEST(StatusText, ReadsAtAGlance) {
  const std::string text = status_text(status_json(example(), kNow));
  EXPECT_THAT(text, HasSubstr("up for 2 h 2 min"));
  EXPECT_THAT(text, HasSubstr("crypto: openssl (AES-NI)"));
  EXPECT_THAT(text, Not(HasSubstr("not on this processor")));
  EXPECT_THAT(text, HasSubstr("conn routed-vpn: up for 1 min 1 s"));
  EXPECT_THAT(text, HasSubstr("192.1.2.23:4500 <=> 192.1.2.45:4501, ESP in UDP, aes_gcm256"));
  EXPECT_THAT(text, HasSubstr("0.0.0.0/0 === 10.0.2.0/24,10.0.3.0/24 on vti01"));
  EXPECT_THAT(text, HasSubstr("in  SPI 0x00001001: 1.24 GiB in 1 203 112 packets"));
  EXPECT_THAT(text, HasSubstr("the last one 3 s ago"));
  EXPECT_THAT(text, HasSubstr("dropped: integrity 2"));
  EXPECT_THAT(text, HasSubstr("dropped since the start: no_spi 1 234, integrity 2"));
  EXPECT_THAT(text, Not(HasSubstr("late")));
}

TEST(StatusText, TrustsNothingThatItIsGiven) {
  json hostile = status_json(example(), kNow);
  hostile["conns"][0]["name"] = "evil\x1b[2J\n";
  EXPECT_THAT(status_text(hostile), Not(HasSubstr("\x1b")));
  // Every member replaced by something of another type, one after the other.
  const json good = status_json(example(), kNow);
  const json wrong[] = {nullptr, -1, 1e300, "x", json::array({1, json::array()}), json::object()};
  const json flat = good.flatten();
  for (const auto& [path, unused] : flat.items())
    for (const json& value : wrong)
      for (json::json_pointer at(path); !at.empty(); at = at.parent_pointer()) {
        json changed = good;
        changed[at] = value;
        EXPECT_THAT(status_text(changed), HasSubstr("espalierd"));
      }
}

TEST(Human, Bytes) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536), "1.50 KiB");
  EXPECT_EQ(human_bytes(~std::uint64_t{0}), "16.00 EiB");
}

TEST(Human, Durations) {
  EXPECT_EQ(human_duration(0.9), "0 s");
  EXPECT_EQ(human_duration(60), "1 min");
  EXPECT_EQ(human_duration(3661), "1 h 1 min");
  EXPECT_EQ(human_duration(90000), "1 d 1 h");
  EXPECT_EQ(human_duration(-5), "0 s");
}

TEST(Human, Counts) {
  EXPECT_EQ(human_count(999), "999");
  EXPECT_EQ(human_count(1000), "1 000");
  EXPECT_EQ(human_count(1234567), "1 234 567");
}

TEST(Printable, LeavesNoControlCharacter) {
  EXPECT_EQ(printable("a\nb\x1b[0m\x7f"), "a?b?[0m?");
}

}  // namespace
}  // namespace espalier::tools
