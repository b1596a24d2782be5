#include "tools/config_outer.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace espalier::tools {
namespace {

using dataplane::OuterHeader;

Conn conn_of(const std::string& lines) {
  const Config config = parse_config(
      "[conn a]\nleft=192.1.2.23\nright=192.1.2.45\nkeys=a.keys\nleftsubnet=10.1.3.0/24\n"
      "rightsubnet=10.1.4.0/24\n" +
          lines,
      "/etc/t.conf", CheckKeys::no);
  return config.conns.at(0);
}

// What is said against the last of the lines.
std::string refusal(const std::string& lines) {
  try {
    static_cast<void>(conn_of(lines));
  } catch (const ConfigError& e) {
    return e.what();
  }
  return "";
}

TEST(ConfigOuter, Defaults) {
  const Conn conn = conn_of("");
  EXPECT_EQ(conn.outer, OuterHeader{});
  EXPECT_EQ(conn.outer.df, OuterHeader::Df::copy);
  EXPECT_EQ(conn.tfc, 0U);
  EXPECT_EQ(conn.mss_clamp, 0U);
}

TEST(ConfigOuter, Words) {
  EXPECT_EQ(conn_of("dscp=no\n").outer.dscp, OuterHeader::Dscp::no);
  EXPECT_EQ(conn_of("dscp=copy\n").outer.dscp, OuterHeader::Dscp::copy);
  EXPECT_EQ(conn_of("dscp=46\n").outer.dscp, OuterHeader::Dscp::set);
  EXPECT_EQ(conn_of("dscp=46\n").outer.dscp_value, 46);
  EXPECT_EQ(conn_of("encap-dscp=no\n").outer.dscp, OuterHeader::Dscp::no);
  EXPECT_TRUE(conn_of("decap-dscp=yes\n").outer.dscp_inwards);
  EXPECT_FALSE(conn_of("ecn=no\n").outer.ecn);
  EXPECT_EQ(conn_of("df=set\n").outer.df, OuterHeader::Df::set);
  EXPECT_EQ(conn_of("df=clear\n").outer.df, OuterHeader::Df::clear);
  EXPECT_EQ(conn_of("nopmtudisc=yes\n").outer.df, OuterHeader::Df::clear);
  EXPECT_EQ(conn_of("nopmtudisc=no\n").outer.df, OuterHeader::Df::copy);
  EXPECT_EQ(conn_of("hop-limit=255\n").outer.hop_limit, 255);
  EXPECT_TRUE(conn_of("flow-label=copy\n").outer.copy_flow_label);
  EXPECT_EQ(conn_of("tfc=yes\n").tfc, dataplane::kTfcToMtu);
  EXPECT_EQ(conn_of("tfc=no\n").tfc, 0U);
  EXPECT_EQ(conn_of("tfc=1400\n").tfc, 1400U);
  EXPECT_EQ(conn_of("mss-clamp=yes\n").mss_clamp, dataplane::kMssToPath);
  EXPECT_EQ(conn_of("mss-clamp=1300\n").mss_clamp, 1300);
}

TEST(ConfigOuter, Refusals) {
  for (const auto* line :
       {"dscp=64\n", "dscp=ef\n", "ecn=perhaps\n", "df=maybe\n", "df=\n", "hop-limit=256\n",
        "hop-limit=-1\n", "flow-label=5\n", "tfc=65001\n", "tfc=-1\n", "mss-clamp=10\n",
        "mss-clamp=65535\n", "dscp=no\nencap-dscp=yes\n", "df=set\nnopmtudisc=yes\n"}) {
    const std::string text = refusal(line);
    EXPECT_NE(text.find("write"), std::string::npos) << line << text;
  }
}

}  // namespace
}  // namespace espalier::tools
