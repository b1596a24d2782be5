// The words of espalier sa|policy|vti, and the way of a key around the JSON library.
#include "tools/op_words.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "tools/command.h"
#include "tools/control_client.h"
#include "tools/request_keys.h"

namespace espalier::tools {
namespace {

using nlohmann::json;
using testing::HasSubstr;

std::vector<std::string> words(const std::string& text) {
  std::istringstream in(text);
  return {std::istream_iterator<std::string>(in), {}};
}

json sa(const std::string& text, WordSource source = WordSource::file) {
  std::vector<crypto::SecretBytes> keys;
  return sa_operation(words(text), source, keys);
}

template <typename Call>
std::string refused(Call call) {
  try {
    call();
  } catch (const UsageError& e) {
    return e.what();
  }
  return "";
}

std::string text_of(const crypto::SecretBytes& secret) {
  return {secret.bytes().begin(), secret.bytes().end()};
}

TEST(OpWords, AnSaInTheWordsOfIpXfrm) {
  EXPECT_EQ(sa("add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1234 reqid 1 mode tunnel"
               " mark 5 mask 0xff replay-window 64 flag esn encap espinudp 4500 4501 0.0.0.0"
               " limit byte-soft 10 limit byte-hard 20 if_id 7 output-mark 9"),
            (json{{"op", "sa-add"},
                  {"source", "192.0.2.1"},
                  {"destination", "192.0.2.2"},
                  {"spi", "0x1234"},
                  {"reqid", "1"},
                  {"mark", "5/0xff"},
                  {"window", "64"},
                  {"esn", true},
                  {"encapsulation", "udp"},
                  {"source_port", "4500"},
                  {"destination_port", "4501"},
                  {"lifetime", {{"bytes", {{"soft", "10"}, {"hard", "20"}}}}},
                  {"if_id", "7"},
                  {"outer_mark", "9"}}));
}

TEST(OpWords, AKeyOnTheCommandLineIsRefusedWithTheReason) {
  EXPECT_THAT(refused([] { sa("add key 0x00112233445566778899", WordSource::command_line); }),
              HasSubstr("seen by everybody"));
  EXPECT_THAT(refused([] { sa("add aead rfc4106(gcm(aes)) 0x00 128", WordSource::command_line); }),
              HasSubstr("key-file"));
}

TEST(OpWords, AWordThatIsNoneIsRefusedWithTheNearest) {
  EXPECT_THAT(refused([] { sa("add windwo 64"); }), HasSubstr("'window'"));
  EXPECT_THAT(refused([] { sa("add src"); }), HasSubstr("needs a value"));
  EXPECT_THAT(refused([] { sa("add spi 1 spi 2"); }), HasSubstr("second time"));
  EXPECT_THAT(refused([] { sa("add mode transport"); }), HasSubstr("tunnel only"));
  EXPECT_THAT(refused([] { sa("ad"); }), HasSubstr("add"));
  EXPECT_THAT(refused([] { sa(""); }), HasSubstr("add"));
}

TEST(OpWords, APolicyInTheWordsOfIpXfrm) {
  EXPECT_EQ(
      policy_operation(words("add dir out src 10.1.0.0/16 dst 10.2.0.0/16 proto tcp dport 80"
                             " mark 5 priority 3 action allow"
                             " tmpl src 192.0.2.1 dst 192.0.2.2 proto esp mode tunnel reqid 1")),
      (json{{"op", "policy-add"},
            {"direction", "out"},
            {"source", "10.1.0.0/16"},
            {"destination", "10.2.0.0/16"},
            {"protocol", "tcp"},
            {"destination_port", "80"},
            {"mark", "5"},
            {"priority", "3"},
            {"reqid", "1"},
            {"action", "protect"}}));
  EXPECT_EQ(policy_operation(words("add dir in action block"))["action"], "discard");
  EXPECT_EQ(policy_operation(words("add dir in action allow"))["action"], "bypass");
  EXPECT_THAT(refused([] { (void)policy_operation(words("add dir fwd")); }), HasSubstr("dir in"));
  EXPECT_THAT(refused([] { (void)policy_operation(words("add tmpl proto ah reqid 1")); }),
              HasSubstr("proto esp"));
}

TEST(OpWords, ADeviceInTheWordsOfIpTunnel) {
  EXPECT_EQ(vti_operation(words("add vti01 mode vti local 192.0.2.1 remote 192.0.2.2 ikey 5 okey 6"
                                " address 10.0.1.1/24")),
            (json{{"op", "vti-add"},
                  {"name", "vti01"},
                  {"local", "192.0.2.1"},
                  {"remote", "192.0.2.2"},
                  {"ikey", "5"},
                  {"okey", "6"},
                  {"addresses", {"10.0.1.1/24"}}}));
  EXPECT_THAT(refused([] { (void)vti_operation(words("add vti01 mode gre")); }),
              HasSubstr("vti only"));
}

TEST(RequestKeys, AKeyNeverReachesTheJsonLibraryAndComesOutWhole) {
  std::string line =
      R"({"ops":[{"key" : "0123456789abcdef"},{"name":"\"key\":\"xxxxxxxxxxxxxxxxxx",)"
      R"("key":"ab\/cdefghijklmnop"},{"key":"short","other":"key"}]})";
  const auto keys = take_keys(line);
  ASSERT_EQ(keys.size(), 2U);
  EXPECT_EQ(text_of(keys[0]), "0123456789abcdef");
  EXPECT_EQ(text_of(keys[1]), "ab/cdefghijklmnop");
  const json parsed = json::parse(line);
  EXPECT_EQ(parsed["ops"][0]["key"], 0);
  EXPECT_EQ(parsed["ops"][1]["key"], 1);
  EXPECT_EQ(parsed["ops"][1]["name"], R"("key":"xxxxxxxxxxxxxxxxxx)");
  EXPECT_EQ(parsed["ops"][2]["key"], "short");
}

TEST(RequestKeys, StandsWhatIsNoJson) {
  const std::string good =
      R"({"a":"\\","key":"0123456789abcdef0123","b":[1,2,{"key":"0123456789abcdef"}]})";
  for (std::size_t length = 0; length <= good.size(); ++length) {
    std::string cut = good.substr(0, length);
    static_cast<void>(take_keys(cut));
    for (const char c : {'"', '\\', ':', '\0'}) {
      std::string changed = good;
      if (length < good.size()) changed[length] = c;
      static_cast<void>(take_keys(changed));
    }
  }
}

TEST(RequestKeys, WhatIsRenderedIsTakenBack) {
  std::vector<crypto::SecretBytes> keys;
  const json op =
      sa_operation(words("add spi 7 key 00112233445566778899aabbccddeeff"), WordSource::file, keys);
  SecretText text = render(op, keys);
  const auto taken = take_keys(text);
  ASSERT_EQ(taken.size(), 1U);
  EXPECT_EQ(text_of(taken[0]), "00112233445566778899aabbccddeeff");
  EXPECT_EQ(json::parse(text), (json{{"op", "sa-add"}, {"spi", "7"}, {"key", 0}}));
}

TEST(RequestKeys, AKeyIsHexOrBase64OfTheRightLength) {
  const auto& suite = crypto::info(crypto::Suite::aes_gcm128);
  const auto decoded = [&](const std::string& text) {
    return text_of(
        decode_key({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}, suite));
  };
  EXPECT_EQ(decoded("0x" + std::string(40, '4')), std::string(20, 'D'));
  EXPECT_EQ(decoded(std::string(40, '4')), std::string(20, 'D'));
  EXPECT_EQ(decoded("RERERERERERERERERERERERE"
                    "REQ="),
            std::string(20, 'D'));
  for (const auto& text : {std::string(38, '4'), std::string(42, '4'), std::string(39, '4'),
                           std::string(40, 'g'), std::string("0x"), std::string(28, '!')})
    EXPECT_THROW(decoded(text), std::invalid_argument) << text;
}

TEST(ExplainWords, APacket) {
  const std::vector<std::string> words = {"src",   "10.1.3.2", "dst", "10.1.4.2", "proto", "tcp",
                                          "dport", "443",      "df",  "no",       "dev",   "vti01"};
  EXPECT_EQ(explain_operation(words), (nlohmann::json{{"op", "explain"},
                                                      {"source", "10.1.3.2"},
                                                      {"destination", "10.1.4.2"},
                                                      {"protocol", "tcp"},
                                                      {"destination_port", "443"},
                                                      {"df", false},
                                                      {"device", "vti01"}}));
  EXPECT_THROW(static_cast<void>(explain_operation(std::vector<std::string>{"from", "10.1.3.2"})),
               UsageError);
}

}  // namespace
}  // namespace espalier::tools
