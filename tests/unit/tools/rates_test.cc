#include "tools/rates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace espalier::tools {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::Not;

json device(const char* name, unsigned rx, unsigned tx) {
  return {{"name", name},         {"carrier", true},  {"rx_packets", rx},
          {"rx_bytes", rx * 100}, {"tx_packets", tx}, {"tx_bytes", tx * 1000}};
}
json sa(const char* direction, const char* spi, unsigned packets) {
  return {{"conn", "a"},           {"direction", direction}, {"spi", spi},
          {"local", "192.0.2.1"},  {"peer", "192.0.2.2"},    {"packets", packets},
          {"bytes", packets * 500}};
}
json reply(json devices, json sas, unsigned late) {
  return {{"devices", std::move(devices)},
          {"sa_count", sas.size()},
          {"sas", std::move(sas)},
          {"drops", {{"late", late}, {"integrity", 7}}}};
}

TEST(Rates, AreWhatWasCountedASecond) {
  const json before =
      reply({device("vti01", 100, 1000)}, {sa("in", "0x1", 5), sa("out", "0x1", 9)}, 3);
  const json after =
      reply({device("vti01", 300, 5000)}, {sa("in", "0x1", 9), sa("out", "0x1", 29)}, 13);
  const json now = rates(before, after, 2);
  ASSERT_EQ(now["devices"].size(), 1U);
  EXPECT_DOUBLE_EQ(now["devices"][0]["rx_packets"], 100);
  EXPECT_DOUBLE_EQ(now["devices"][0]["rx_bits"], 80000);
  EXPECT_DOUBLE_EQ(now["devices"][0]["tx_packets"], 2000);
  EXPECT_DOUBLE_EQ(now["devices"][0]["tx_bits"], 16e6);
  // The busiest first; one SPI may be of two directions.
  ASSERT_EQ(now["sas"].size(), 2U);
  EXPECT_EQ(now["sas"][0]["direction"], "out");
  EXPECT_DOUBLE_EQ(now["sas"][0]["bits"], 40000);
  EXPECT_DOUBLE_EQ(now["sas"][1]["packets"], 2);
  EXPECT_EQ(now["drops"], (json{{"late", 5.0}}));  // what does not grow is left out
  EXPECT_EQ(now["sa_count"], 2U);
}

TEST(Rates, WhatIsNewHasNoPast) {
  const json now = rates(reply(json::array(), json::array(), 0),
                         reply({device("vti01", 100, 1)}, {sa("in", "0x2", 50)}, 0), 1);
  EXPECT_DOUBLE_EQ(now["devices"][0]["rx_packets"], 0);
  // A device that was made again counts from 0.
  const json again = rates(reply({device("vti01", 1000, 1)}, json::array(), 0),
                           reply({device("vti01", 30, 1)}, json::array(), 0), 1);
  EXPECT_DOUBLE_EQ(again["devices"][0]["rx_packets"], 30);
}

TEST(Rates, AsText) {
  const json now = rates(reply({device("vti01", 0, 0)}, {sa("out", "0x00001000", 0)}, 0),
                         reply({device("vti01", 0, 1234567)}, {sa("out", "0x00001000", 4)}, 1), 1);
  const std::string text = rates_text(now, 100);
  EXPECT_THAT(text, HasSubstr("vti01"));
  EXPECT_THAT(text, HasSubstr("9.9 Gbit/s"));
  EXPECT_THAT(text, HasSubstr("0x00001000  192.0.2.1 -> 192.0.2.2"));
  EXPECT_THAT(text, HasSubstr("late"));
  EXPECT_THAT(rates_text(now, 1), Not(HasSubstr("0x00001000")));
}

// A reply may hold anything.
TEST(Rates, TrustsNothing) {
  for (const json& odd :
       {json::object(), json::array(), json(7), json{{"devices", 3}, {"sas", {1, "x", nullptr}}},
        json{{"devices", {{{"name", 5}, {"rx_packets", "x"}, {"carrier", 1}}}}, {"drops", {1}}},
        json{{"sas", {{{"spi", "\x1b[2J"}, {"bytes", -1}}}}, {"drops", {{"late", -1}}}}}) {
    const std::string text = rates_text(rates(odd, odd, 1), 100);
    EXPECT_EQ(text.find('\x1b'), std::string::npos) << odd;
    EXPECT_FALSE(rates_text(odd, 100).empty());
  }
}

}  // namespace
}  // namespace espalier::tools
