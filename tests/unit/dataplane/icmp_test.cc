#include "dataplane/icmp.h"

#include <gtest/gtest.h>

#include <cstring>

#include "dataplane/checksum.h"
#include "dataplane/device.h"
#include "tests/unit/dataplane/sa_pair.h"

namespace espalier::dataplane {
namespace {

using Message = std::array<std::uint8_t, kMaxIcmpError>;

Bytes error_about(const Bytes& packet, IcmpReason reason, std::size_t length = 0,
                  std::uint32_t mtu = 0) {
  Message out{};
  const std::size_t n = icmp_error(packet, reason, length != 0 ? length : packet.size(), mtu, out);
  return {out.begin(), out.begin() + static_cast<long>(n)};
}

Bytes icmp4(std::uint8_t type) {
  Bytes p = inner_v4(60);
  p[9] = 1;
  p[20] = type;
  return p;
}

Bytes icmp6(std::uint8_t type) {
  Bytes p = inner_v6(60);
  p[6] = 58;
  p[40] = type;
  return p;
}

TEST(Icmp, TypesAndCodes) {
  const Bytes v4 = inner_v4(40);
  const Bytes v6 = inner_v6(60);
  EXPECT_EQ(error_about(v4, IcmpReason::unreachable)[0], 3);
  EXPECT_EQ(error_about(v4, IcmpReason::unreachable)[1], 1);
  EXPECT_EQ(error_about(v4, IcmpReason::prohibited)[1], 13);
  EXPECT_EQ(error_about(v4, IcmpReason::too_big)[1], 4);
  EXPECT_EQ(error_about(v6, IcmpReason::unreachable)[0], 1);
  EXPECT_EQ(error_about(v6, IcmpReason::unreachable)[1], 3);
  EXPECT_EQ(error_about(v6, IcmpReason::prohibited)[1], 1);
  EXPECT_EQ(error_about(v6, IcmpReason::too_big)[0], 2);
}

// Byte by byte: RFC 792 with RFC 1191 §4, and the checksum over it all.
TEST(Icmp, FragmentationNeeded) {
  const Bytes packet = inner_v4(28);
  const Bytes error = error_about(packet, IcmpReason::too_big, 28, 1300);
  Bytes expected = {3, 4, 0, 0, 0, 0, 0x05, 0x14};
  expected.insert(expected.end(), packet.begin(), packet.end());
  std::uint32_t sum = 0;
  for (std::size_t i = 0; i < expected.size(); i += 2) sum += load_be<std::uint16_t>(&expected[i]);
  while (sum >> 16 != 0) sum = (sum & 0xffff) + (sum >> 16);
  store_be(&expected[2], static_cast<std::uint16_t>(~sum));
  EXPECT_EQ(error, expected);
}

TEST(Icmp, PacketTooBig) {
  const Bytes packet = inner_v6(100);
  const Bytes error = error_about(packet, IcmpReason::too_big, 100, 1280);
  Bytes expected = {2, 0, 0, 0, 0, 0, 0x05, 0x00};
  expected.insert(expected.end(), packet.begin(), packet.end());
  EXPECT_EQ(error, expected);
}

// RFC 1812 §4.3.2.3, RFC 4443 §2.4(c): as much as fits 576 and 1280 bytes.
TEST(Icmp, QuotesAsMuchAsFits) {
  EXPECT_EQ(error_about(inner_v4(1500), IcmpReason::unreachable).size() + 20, 576U);
  EXPECT_EQ(error_about(inner_v6(1500), IcmpReason::unreachable).size() + 40, 1280U);
  EXPECT_EQ(error_about(inner_v4(65535), IcmpReason::unreachable).size() + 20, 576U);
}

// A super-packet is quoted as the segment that did not fit; its header stays right.
TEST(Icmp, QuotesOneSegment) {
  const Bytes error = error_about(inner_v4(60000), IcmpReason::too_big, 1400, 1300);
  const std::span quote(&error[8], 20);
  EXPECT_EQ(load_be<std::uint16_t>(&quote[2]), 1400);
  EXPECT_EQ(fold(sum_bytes(quote.data(), 20)), 0xffff);
  const Bytes six = error_about(inner_v6(60000), IcmpReason::too_big, 1400, 1300);
  EXPECT_EQ(load_be<std::uint16_t>(&six[8 + 4]), 1360);
}

// RFC 1122 §3.2.2.
TEST(Icmp, NeverAboutAnErrorOrToNobody) {
  for (const std::uint8_t type : Bytes{3, 4, 5, 11, 12, 40, 255})
    EXPECT_TRUE(error_about(icmp4(type), IcmpReason::unreachable).empty()) << +type;
  for (const std::uint8_t type : Bytes{0, 8, 13, 17})
    EXPECT_FALSE(error_about(icmp4(type), IcmpReason::unreachable).empty()) << +type;

  const auto with = [](std::size_t at, std::initializer_list<std::uint8_t> bytes) {
    Bytes p = inner_v4(40);
    std::copy(bytes.begin(), bytes.end(), p.begin() + static_cast<long>(at));
    return error_about(p, IcmpReason::too_big).empty();
  };
  EXPECT_FALSE(with(12, {10, 1, 3, 2}));
  EXPECT_TRUE(with(12, {0, 0, 0, 0}));
  EXPECT_TRUE(with(12, {127, 0, 0, 1}));
  EXPECT_TRUE(with(12, {224, 0, 0, 9}));
  EXPECT_TRUE(with(12, {255, 255, 255, 255}));
  EXPECT_TRUE(with(16, {224, 0, 0, 9}));
  EXPECT_TRUE(with(16, {255, 255, 255, 255}));
  EXPECT_TRUE(with(6, {0x00, 0x01}));   // a later fragment
  EXPECT_FALSE(with(6, {0x20, 0x00}));  // the first one
  EXPECT_TRUE(error_about(Bytes(10, 0x45), IcmpReason::unreachable).empty());
}

// RFC 4443 §2.4(e).
TEST(Icmp, NeverAboutAnError6) {
  for (const std::uint8_t type : Bytes{1, 2, 3, 4, 127, 137})
    EXPECT_TRUE(error_about(icmp6(type), IcmpReason::unreachable).empty()) << +type;
  EXPECT_FALSE(error_about(icmp6(128), IcmpReason::unreachable).empty());

  Bytes p = inner_v6(60);
  p[24] = 0xff;  // multicast: too big only
  EXPECT_TRUE(error_about(p, IcmpReason::unreachable).empty());
  EXPECT_FALSE(error_about(p, IcmpReason::too_big).empty());
  p = inner_v6(60);
  p[8] = 0xff;
  EXPECT_TRUE(error_about(p, IcmpReason::too_big).empty());
  p[8] = 0xfe;
  p[9] = 0x80;
  EXPECT_TRUE(error_about(p, IcmpReason::too_big).empty());
  p[8] = p[9] = p[23] = 0;
  EXPECT_TRUE(error_about(p, IcmpReason::too_big).empty());

  // An error behind a destination options header is an error still; one in a later fragment could
  // be.
  p = icmp6(1);
  p[6] = 60;
  p[40] = 58;
  p[41] = 0;
  p[48] = 1;
  EXPECT_TRUE(error_about(p, IcmpReason::unreachable).empty());
  p[48] = 128;
  EXPECT_FALSE(error_about(p, IcmpReason::unreachable).empty());
  p = inner_v6(60);
  p[6] = 44;
  p[40] = 17;
  store_be(&p[42], std::uint16_t{8});
  EXPECT_TRUE(error_about(p, IcmpReason::too_big).empty());
}

Bytes summed(Bytes m) {
  m[2] = m[3] = 0;
  const auto sum = static_cast<std::uint16_t>(~fold(sum_bytes(m.data(), m.size())));
  std::memcpy(&m[2], &sum, sizeof sum);
  return m;
}

// A report about the packet of an SA, as a router makes it.
Bytes report4(std::uint16_t mtu, std::uint8_t protocol, const Bytes& payload) {
  Bytes m = {3,    4, 0,  0, 0, 0, 0,   0, 0x45, 0, 0x05, 0xdc, 0, 0,
             0x40, 0, 64, 0, 0, 0, 192, 0, 2,    1, 192,  0,    2, 9};
  store_be(&m[6], mtu);
  m[8 + 9] = protocol;
  m.insert(m.end(), payload.begin(), payload.end());
  return summed(m);
}

const Bytes kUdpEsp = {0x11, 0x94, 0x11, 0x95, 0x05, 0xc8, 0, 0,
                       0xc0, 0xff, 0xee, 0x01, 0,    0,    0, 1};
const Bytes kRawEsp = {0xc0, 0xff, 0xee, 0x01, 0, 0, 0, 1};

TEST(Icmp, T24ReadsReports) {
  TooBig r;
  ASSERT_TRUE(parse_too_big(report4(1300, 17, kUdpEsp), false, r));
  EXPECT_EQ(r.mtu, 1300U);
  EXPECT_EQ(r.encapsulation, Encapsulation::udp);
  EXPECT_EQ(r.local.str(), "192.0.2.1:4500");
  EXPECT_EQ(r.peer.str(), "192.0.2.9:4501");
  EXPECT_EQ(r.spi, Spi{0xc0ffee01});
  EXPECT_EQ(r.length, 1500);
  ASSERT_TRUE(parse_too_big(report4(0, 50, kRawEsp), false, r));
  EXPECT_EQ(r.encapsulation, Encapsulation::esp);
  EXPECT_EQ(r.spi, Spi{0xc0ffee01});
  EXPECT_EQ(r.peer.port, 0);

  Bytes six = {2, 0, 0, 0, 0, 1, 0, 0};
  Bytes quote = inner_v6(40);
  quote[6] = 17;
  six.insert(six.end(), quote.begin(), quote.end());
  six.insert(six.end(), kUdpEsp.begin(), kUdpEsp.end());
  ASSERT_TRUE(parse_too_big(six, true, r));
  EXPECT_EQ(r.mtu, 65536U);
  EXPECT_EQ(r.peer.address.str(), "fd00::2");
}

// Every length, and whatever else a router or an attacker may write.
TEST(Icmp, T24RefusesWhatShowsNoSpi) {
  TooBig r;
  const Bytes whole = report4(1300, 17, kUdpEsp);
  const auto first_of = [](const Bytes& m, std::size_t n) {
    const Bytes part(m.begin(), m.begin() + static_cast<std::ptrdiff_t>(n));
    return n < 4 ? part : summed(part);
  };
  for (std::size_t n = 0; n < whole.size() - 4; ++n)
    EXPECT_FALSE(parse_too_big(first_of(whole, n), false, r)) << n;
  EXPECT_TRUE(parse_too_big(first_of(whole, whole.size() - 4), false, r));
  for (const std::uint8_t protocol : Bytes{0, 1, 6, 58})
    EXPECT_FALSE(parse_too_big(report4(1300, protocol, kUdpEsp), false, r));
  Bytes bad = whole;
  bad[1] = 1;  // host unreachable
  EXPECT_FALSE(parse_too_big(summed(bad), false, r));
  bad = whole;
  bad[8] = 0x4f;  // options beyond the end
  EXPECT_FALSE(parse_too_big(summed(bad), false, r));
  bad[8] = 0x41;
  EXPECT_FALSE(parse_too_big(summed(bad), false, r));
  bad = whole;
  bad[8 + 7] = 1;  // a later fragment
  EXPECT_FALSE(parse_too_big(summed(bad), false, r));
  EXPECT_FALSE(parse_too_big(whole, true, r));
}

// The raw socket has its copy before the kernel checks the sum: any bit that is wrong is seen here.
TEST(Icmp, T24RefusesAWrongChecksum) {
  TooBig r;
  const Bytes whole = report4(1300, 17, kUdpEsp);
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    Bytes bad = whole;
    bad[bit / 8] = static_cast<std::uint8_t>(bad[bit / 8] ^ 1U << bit % 8);
    EXPECT_FALSE(parse_too_big(bad, false, r)) << bit;
  }
}

TEST(Icmp, TokenBucket) {
  TokenBucket bucket;
  std::int64_t now = 1'000'000'000'000;
  int sent = 0;
  for (int i = 0; i < 1000; ++i) {
    if (!bucket.has(now)) continue;
    bucket.take(now);
    ++sent;
  }
  EXPECT_EQ(sent, TokenBucket::kBurst);
  now += 10 * TokenBucket::kIntervalNs;
  for (sent = 0; bucket.has(now); ++sent) bucket.take(now);
  EXPECT_EQ(sent, 10);
}

}  // namespace
}  // namespace espalier::dataplane
