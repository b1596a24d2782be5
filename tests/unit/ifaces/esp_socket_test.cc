#include "ifaces/esp_socket.h"

#include <netinet/udp.h>
#include <poll.h>
#include <sys/wait.h>

#include <array>
#include <system_error>
#include <vector>

#include "ifaces/tun.h"
#include "tests/unit/ifaces/sandbox.h"

namespace espalier::ifaces {
namespace {

class EspSocketTest : public test::SandboxTest, public ::testing::WithParamInterface<const char*> {
 protected:
  [[nodiscard]] IpAddress local() const { return *IpAddress::parse(GetParam()); }
  [[nodiscard]] bool v6() const { return local().family == Family::v6; }
};

std::vector<std::uint8_t> esp(std::uint32_t spi) {
  std::vector<std::uint8_t> p(40);
  const std::uint32_t be = htonl(spi);
  std::memcpy(p.data(), &be, 4);
  return p;
}

void send_to(int fd, const Endpoint& to, const std::vector<std::uint8_t>& bytes) {
  sockaddr_storage sa;
  const socklen_t len = to.to(sa);
  ASSERT_EQ(::sendto(fd, bytes.data(), bytes.size(), 0, reinterpret_cast<sockaddr*>(&sa), len),
            static_cast<ssize_t>(bytes.size()))
      << std::strerror(errno);
}

// Which socket got it; all others must stay empty. On loopback a sent packet has arrived.
std::size_t receiver(const std::vector<UniqueFd>& sockets) {
  std::size_t found = sockets.size();
  for (std::size_t i = 0; i < sockets.size(); ++i) {
    std::array<std::uint8_t, 256> bytes{};
    while (::recv(sockets[i].get(), bytes.data(), bytes.size(), MSG_DONTWAIT) >= 0) {
      EXPECT_EQ(found, sockets.size()) << "received twice";
      found = i;
    }
  }
  return found;
}

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t size = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &size), 0);
  return value;
}

template <typename F>
std::string error_of(F&& open) {
  try {
    open();
    return "";
  } catch (const std::system_error& e) {
    return e.what();
  }
}

TEST_P(EspSocketTest, UdpIsSteeredBySpi) {
  const Endpoint here{local(), 4500};
  std::vector<UniqueFd> sockets;
  for (unsigned i = 0; i < 3; ++i) sockets.push_back(open_udp(here, {i, 3}, {}));
  const UniqueFd sender = open_udp({local(), 0}, {}, {});
  for (const std::uint32_t spi : {256U, 257U, 258U, 0x12345678U, 0xffffffffU}) {
    send_to(sender.get(), here, esp(spi));
    EXPECT_EQ(receiver(sockets), spi % 3) << spi;
  }
  send_to(sender.get(), here, {0xff});
  EXPECT_EQ(receiver(sockets), 0U) << "keepalive";
  send_to(sender.get(), here, esp(0));
  EXPECT_EQ(receiver(sockets), 0U) << "IKE";
}

TEST_P(EspSocketTest, RawIsSteeredBySpi) {
  std::vector<UniqueFd> sockets;
  for (unsigned i = 0; i < 3; ++i) sockets.push_back(open_raw_esp(local(), {i, 3}, {}));
  for (const std::uint32_t spi : {256U, 257U, 258U, 0x12345678U, 0xffffffffU}) {
    send_to(sockets[0].get(), {local(), 0}, esp(spi));
    EXPECT_EQ(receiver(sockets), spi % 3) << spi;
  }
  send_to(sockets[0].get(), {local(), 0}, {1, 2, 3});
  EXPECT_EQ(receiver(sockets), sockets.size()) << "too short for an SPI";
}

TEST_P(EspSocketTest, OptionsAreSet) {
  const UniqueFd udp = open_udp({local(), 4500}, {}, {.mark = 77});
  const UniqueFd raw = open_raw_esp(local(), {}, {.mark = 77});
  for (const int fd : {udp.get(), raw.get()}) {
    EXPECT_EQ(option(fd, SOL_SOCKET, SO_MARK), 77);
    EXPECT_NE(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    if (v6()) {
      EXPECT_EQ(option(fd, SOL_IPV6, IPV6_MTU_DISCOVER), IPV6_PMTUDISC_DO);
      EXPECT_EQ(option(fd, SOL_IPV6, IPV6_RECVTCLASS), 1);
    } else {
      EXPECT_EQ(option(fd, SOL_IP, IP_MTU_DISCOVER), IP_PMTUDISC_DO);
      EXPECT_EQ(option(fd, SOL_IP, IP_RECVTOS), 1);
    }
    EXPECT_GE(option(fd, SOL_SOCKET, SO_RCVBUF), 1 << 20);
  }
  EXPECT_EQ(option(udp.get(), SOL_UDP, UDP_GRO), 1);
}

TEST_P(EspSocketTest, ASecondOwnerOfThePortIsRefused) {
  const Endpoint here{local(), 4500};
  const UniqueFd first = open_udp(here, {}, {});
  const std::string error = error_of([&] { return open_udp(here, {}, {}); });
  EXPECT_NE(error.find("bind UDP " + here.str()), std::string::npos) << error;
  EXPECT_NE(error.find("in use"), std::string::npos) << error;
}

TEST_P(EspSocketTest, AForeignAddressIsRefused) {
  const IpAddress foreign = *IpAddress::parse(v6() ? "2001:db8::1" : "192.0.2.1");
  for (const std::string& error : {error_of([&] {
                                     return open_udp({foreign, 4500}, {}, {});
                                   }),
                                   error_of([&] { return open_raw_esp(foreign, {}, {}); }),
                                   error_of([&] { return outer_mtu(foreign, local()); })}) {
    EXPECT_NE(error.find(foreign.str()), std::string::npos) << error;
    EXPECT_NE(error.find("not an address of this host"), std::string::npos) << error;
  }
}

TEST_P(EspSocketTest, RawNeedsACapabilityAndSaysSo) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const std::string error = error_of([&] { return open_raw_esp(local(), {}, {}); });
    ::_exit(error.find("CAP_NET_RAW") != std::string::npos ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_P(EspSocketTest, GsoProbeSendsForReal) {
  const unsigned segments = probe_udp_gso(local());
  EXPECT_TRUE(segments == 64 || segments == 128) << segments;
  // What it says must go through a socket of ours, and one more segment must not.
  const UniqueFd udp = open_udp({local(), 4500}, {}, {});
  const int one = 1;
  ASSERT_EQ(::setsockopt(udp.get(), SOL_UDP, UDP_SEGMENT, &one, sizeof one), 0);
  send_to(udp.get(), {local(), 4500}, std::vector<std::uint8_t>(segments));
  sockaddr_storage sa;
  const socklen_t len = Endpoint{local(), 4500}.to(sa);
  const std::vector<std::uint8_t> more(segments + 1);
  EXPECT_LT(::sendto(udp.get(), more.data(), more.size(), 0, reinterpret_cast<sockaddr*>(&sa), len),
            0);
}

TEST_P(EspSocketTest, OuterMtuFollowsTheRoute) {
  EXPECT_EQ(outer_mtu(local(), local()), v6() ? 65536U : 65535U);  // of lo; IPv4 ends there
  const UniqueFd tun = open_tun("out0", false, {});
  test::set_up("out0");
  test::add_address("out0", v6() ? "2001:db8:1::1/64" : "192.0.2.1/24");
  test::set_mtu("out0", 1333);
  const IpAddress remote = *IpAddress::parse(v6() ? "2001:db8:1::2" : "192.0.2.2");
  EXPECT_EQ(outer_mtu(IpAddress::any(remote.family), remote), 1333U);
  EXPECT_EQ(outer_mtu({}, remote), 1333U);
  if (!v6()) {  // an IPv6 address is tentative for a while: not to be bound yet
    EXPECT_EQ(outer_mtu(*IpAddress::parse("192.0.2.1"), remote), 1333U);
    const UniqueFd udp = open_udp({*IpAddress::parse("192.0.2.1"), 4500}, {}, {});
    sockaddr_storage sa;
    const socklen_t len = Endpoint{remote, 4500}.to(sa);
    const std::vector<std::uint8_t> large(1333 - 28 + 1);
    EXPECT_LT(
        ::sendto(udp.get(), large.data(), large.size(), 0, reinterpret_cast<sockaddr*>(&sa), len),
        0);
    EXPECT_EQ(errno, EMSGSIZE);
  }
  const IpAddress nowhere = *IpAddress::parse(v6() ? "2001:db8:ffff::1" : "198.51.100.1");
  const std::string error = error_of([&] { return outer_mtu({}, nowhere); });
  EXPECT_NE(error.find(nowhere.str()), std::string::npos) << error;
}

INSTANTIATE_TEST_SUITE_P(Families, EspSocketTest, ::testing::Values("127.0.0.1", "::1"),
                         [](const auto& i) { return i.index == 0 ? "v4" : "v6"; });

}  // namespace
}  // namespace espalier::ifaces
