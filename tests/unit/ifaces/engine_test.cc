// One engine against real TUNs and sockets in a namespace of its own; every test runs on every way
// that an engine can work.
#include "ifaces/engine.h"

#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <fstream>
#include <numeric>
#include <thread>
#include <vector>

#include "ifaces/epoll_engine.h"
#include "ifaces/esp_socket.h"
#include "ifaces/tun.h"
#include "ifaces/uring_engine.h"
#include "ifaces/vnet_hdr.h"
#include "tests/unit/ifaces/sandbox.h"

namespace espalier::ifaces {
namespace {

struct Mode {
  const char* name;
  bool epoll;
  UringFeatures features;
};

void PrintTo(const Mode& mode, std::ostream* out) {
  *out << mode.name;
}

constexpr Mode kModes[] = {
    {"io_uring", false, {}},
    {"two_calls", false, {.one_call = false}},
    {"one_shot", false, {.read_multishot = false, .receive_multishot = false}},
    {"no_rings", false, {.buffer_rings = false, .fixed_files = false}},
    {"plain", false, {false, false, false, false, false}},
    {"epoll", true, {}},
};

using Bytes = std::vector<std::uint8_t>;

Bytes pattern(std::size_t size, unsigned seed = 1) {
  Bytes b(size);
  for (std::size_t i = 0; i < size; ++i) b[i] = static_cast<std::uint8_t>(i * 7 + seed);
  return b;
}

// A socket of the engine, where to reach it, and what it got.
struct Socket {
  UniqueFd fd;
  Endpoint where;
  sockaddr_storage address{};
  socklen_t address_len = 0;
  Port port = 0;
};

void wait_until_asleep(pid_t tid) {
  const std::string path = "/proc/self/task/" + std::to_string(tid) + "/stat";
  for (;;) {
    std::ifstream f(path);
    std::string text((std::istreambuf_iterator<char>(f)), {});
    const auto end = text.rfind(')');
    if (end != std::string::npos && text.size() > end + 2 && text[end + 2] == 'S') return;
    std::this_thread::yield();
  }
}

double cpu_seconds() {
  rusage u{};
  ::getrusage(RUSAGE_THREAD, &u);
  return static_cast<double>(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
         static_cast<double>(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

// Blocks in turn(true) for a while; the processor time that this took.
double idle_cpu(Engine& engine) {
  const auto tid = static_cast<pid_t>(::syscall(SYS_gettid));
  const double before = cpu_seconds();
  std::thread waker([&] {
    wait_until_asleep(tid);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));  // the idle time itself
    engine.wake();
  });
  EXPECT_TRUE(engine.turn(true).empty());
  const double used = cpu_seconds() - before;
  waker.join();
  return used;
}

class EngineTest : public test::SandboxTest, public ::testing::WithParamInterface<Mode> {
 protected:
  void SetUp() override {
    SandboxTest::SetUp();
    if (IsSkipped()) return;
    if (GetParam().epoll) {
      engine_ = std::make_unique<EpollEngine>();
    } else {
      engine_ = std::make_unique<UringEngine>(GetParam().features);
    }
  }

  Socket udp(const char* address = "127.0.0.1") {
    Socket s;
    s.fd = open_udp({*IpAddress::parse(address), 0}, {}, {});
    socklen_t len = sizeof s.address;
    test::check(::getsockname(s.fd.get(), reinterpret_cast<sockaddr*>(&s.address), &len) == 0,
                "getsockname");
    s.where = Endpoint::from(s.address);
    s.address_len = len;
    s.port = engine_->attach(PortKind::udp, s.fd.get());
    return s;
  }
  Socket raw(const char* address) {
    Socket s;
    s.where.address = *IpAddress::parse(address);
    const bool v6 = s.where.address.family == Family::v6;
    s.fd = open_raw_esp(s.where.address, {}, {});
    s.address_len = s.where.to(s.address);
    s.port = engine_->attach(v6 ? PortKind::raw_esp6 : PortKind::raw_esp4, s.fd.get());
    return s;
  }
  Socket tun(const std::string& name, const std::string& prefix, TunOffloads offloads = {}) {
    Socket s;
    s.fd = open_tun(name, false, offloads);
    test::add_address(name, prefix);
    test::set_up(name);
    s.port = engine_->attach(PortKind::tun, s.fd.get());
    return s;
  }
  // The bytes stay where they are until the test ends.
  void send(const Socket& from, const Socket& to, Bytes bytes, std::uint16_t segment = 0,
            std::uint8_t tos = 0, std::uint16_t packets = 1) {
    const Bytes& b = queued_.emplace_back(std::move(bytes));
    engine_->send({from.port, tos, segment, static_cast<std::uint32_t>(b.size()), b.data(),
                   &to.address, to.address_len},
                  packets);
  }
  // Turns until `port` has received `count` datagrams (those inside a GRO receive counted), and
  // what they held.
  std::vector<Bytes> receive(Port port, std::size_t count) {
    std::vector<Bytes> got;
    while (got.size() < count)
      for (const Received& r : engine_->turn(true)) {
        EXPECT_EQ(r.port, port);
        last_ = r;
        const std::uint32_t step = r.segment_size == 0 ? r.len : r.segment_size;
        std::uint32_t at = 0;
        do {
          got.emplace_back(r.data + at, r.data + std::min(at + step, r.len));
          at += step;
        } while (at < r.len);
      }
    return got;
  }
  void expect_error(Port port, std::uint16_t packets, int error) {
    const auto errors = engine_->take_errors();
    ASSERT_EQ(errors.size(), 1U);
    EXPECT_EQ(errors[0].port, port);
    EXPECT_EQ(errors[0].packets, packets);
    EXPECT_EQ(errors[0].error, error) << std::strerror(errors[0].error);
    EXPECT_TRUE(engine_->take_errors().empty());
  }

  std::unique_ptr<Engine> engine_;
  std::deque<Bytes> queued_;
  Received last_{};
};

// --- sockets ---

TEST_P(EngineTest, UdpGsoArrivesComplete) {
  for (const char* address : {"127.0.0.1", "::1"}) {
    const Socket a = udp(address), b = udp(address);
    const Bytes bytes = pattern(10 * 1400 - 300);
    send(a, b, bytes, 1400);
    const auto got = receive(b.port, 10);
    EXPECT_EQ(last_.peer, a.where);
    EXPECT_EQ(last_.kind, PortKind::udp);
    ASSERT_EQ(got.size(), 10U);
    EXPECT_EQ(got[0].size(), 1400U);
    EXPECT_EQ(got[9].size(), 1100U);
    Bytes all;
    for (const Bytes& g : got) all.insert(all.end(), g.begin(), g.end());
    EXPECT_EQ(all, bytes);
    EXPECT_TRUE(engine_->take_errors().empty());
    engine_->detach(a.port);
    engine_->detach(b.port);
  }
}

TEST_P(EngineTest, TosIsSentAndReported) {
  for (const char* address : {"127.0.0.1", "::1"}) {
    const Socket a = udp(address), b = udp(address);
    for (const std::uint8_t tos : Bytes{0xb9, 0, 3}) {  // with ECN bits
      send(a, b, pattern(100), 0, tos);
      receive(b.port, 1);
      EXPECT_EQ(last_.tos, tos) << address;
    }
    send(a, b, pattern(3000), 1000, 0x2e);
    receive(b.port, 3);
    EXPECT_EQ(last_.tos, 0x2e) << "with GSO";
    engine_->detach(a.port);
    engine_->detach(b.port);
  }
}

TEST_P(EngineTest, RawEspStepsOverTheHeader) {
  for (const char* address : {"127.0.0.1", "::1"}) {
    const Socket s = raw(address);
    const Bytes bytes = pattern(1400);
    send(s, s, bytes, 0, 0xb9);
    EXPECT_EQ(receive(s.port, 1)[0], bytes);
    EXPECT_EQ(last_.tos, 0xb9);
    EXPECT_EQ(last_.peer, s.where);
    engine_->detach(s.port);
  }
}

// Raw packets above the small buffers' size: one is lost, from then on they fit.
TEST_P(EngineTest, RawEspGrowsIntoLargeBuffers) {
  const Socket s = raw("127.0.0.1");
  const Bytes large = pattern(30000);
  send(s, s, large);
  for (int i = 0; i < 100 && engine_->receive_stalls() == 0; ++i)
    EXPECT_TRUE(engine_->turn(false).empty());
  EXPECT_EQ(engine_->receive_stalls(), 1U);
  EXPECT_TRUE(engine_->turn(false).empty());
  send(s, s, large);
  send(s, s, pattern(50));
  const auto got = receive(s.port, 2);
  EXPECT_EQ(got[0], large);
  EXPECT_EQ(got[1], pattern(50));
}

TEST_P(EngineTest, AnEmptyDatagramStopsNothing) {
  const Socket a = udp(), b = udp();
  for (int i = 0; i < 3; ++i) {
    send(a, b, {});
    EXPECT_TRUE(engine_->turn(false).empty());
  }
  send(a, b, pattern(9));
  EXPECT_EQ(receive(b.port, 1)[0], pattern(9));
}

// More than there are buffers, all of different sizes, so that nothing is merged.
TEST_P(EngineTest, AFloodAboveTheBuffersLosesNothing) {
  const Socket a = udp(), b = udp();
  constexpr std::size_t kCount = 500;
  static_assert(kCount > kUdpBuffers);
  std::vector<Bytes> sent;
  for (std::size_t i = 0; i < kCount; ++i) sent.push_back(pattern(1 + i % 700, unsigned(i)));
  for (const Bytes& s : sent) send(a, b, s);
  EXPECT_EQ(receive(b.port, kCount), sent);
  for (const Bytes& s : sent) send(a, b, s);
  EXPECT_EQ(receive(b.port, kCount), sent) << "second round";
  const Socket r = raw("127.0.0.1");
  for (const Bytes& s : sent) send(r, r, s);
  EXPECT_EQ(receive(r.port, kCount), sent) << "raw";
}

// More operations than the submission queue holds.
TEST_P(EngineTest, ManySendsInOneTurn) {
  const Socket a = udp(), b = udp();
  const Bytes one = pattern(64);
  for (int i = 0; i < 2000; ++i) send(a, b, one, 0, 0x10);
  const auto got = receive(b.port, 2000);
  EXPECT_TRUE(std::all_of(got.begin(), got.end(), [&](const Bytes& g) { return g == one; }));
  EXPECT_TRUE(engine_->take_errors().empty());
}

TEST_P(EngineTest, FlushFinishesWithoutReceiving) {
  const Socket a = udp(), b = udp();
  EXPECT_TRUE(engine_->turn(false).empty());
  Bytes bytes = pattern(200);
  engine_->send({a.port, 0, 0, 200, bytes.data(), &b.address, b.address_len}, 1);
  engine_->flush();
  std::fill(bytes.begin(), bytes.end(), std::uint8_t{0});  // may be reused now
  EXPECT_EQ(receive(b.port, 1)[0], pattern(200));
}

// --- errors ---

TEST_P(EngineTest, AFailedSendIsReportedWithItsPackets) {
  const Socket a = udp(), b = udp();
  send(a, b, pattern(65508), 0, 0, 7);  // one byte above what an IPv4 datagram holds
  send(a, b, pattern(10));
  std::size_t received = 0;
  for (const Received& r : engine_->turn(true)) received += r.len;  // returns for either
  expect_error(a.port, 7, EMSGSIZE);
  if (received == 0) {
    receive(b.port, 1);
  }
  send(a, b, pattern(65508), 0, 0, 3);
  EXPECT_TRUE(engine_->turn(true).empty()) << "an error alone ends the turn";
  expect_error(a.port, 3, EMSGSIZE);
  send(a, b, pattern(65508), 0, 0, 4);
  engine_->flush();
  expect_error(a.port, 4, EMSGSIZE);
}

TEST_P(EngineTest, AWrongPortIsAnErrorAndNoMore) {
  const Socket b = udp();
  Socket nobody;
  const Bytes bytes = pattern(10);
  const iovec part{const_cast<std::uint8_t*>(bytes.data()), bytes.size()};
  for (const Port wrong : {Port{17}, Port{kMaxPorts - 1}, Port{kMaxPorts}, Port{0xffff}}) {
    nobody.port = wrong;
    send(nobody, b, bytes, 0, 0, 2);
    EXPECT_TRUE(engine_->turn(false).empty());
    expect_error(wrong, 2, EBADF);
    engine_->write(wrong, {&part, 1}, 1);
    EXPECT_TRUE(engine_->turn(false).empty());
    expect_error(wrong, 1, EBADF);
    engine_->detach(wrong);
  }
}

TEST_P(EngineTest, NoFailedPacketIsForgotten) {
  const Socket b = udp();
  Socket nobody;
  for (unsigned i = 0; i < 5000; ++i) {
    nobody.port = static_cast<Port>(100 + i % 7);
    send(nobody, b, pattern(1), 0, 0, 3);
  }
  EXPECT_TRUE(engine_->turn(false).empty());
  unsigned sum = 0;
  for (const TxError& e : engine_->take_errors()) sum += e.packets;
  EXPECT_EQ(sum, 15000U);
}

TEST_P(EngineTest, AnErrorThatNobodyTakesEndsOneTurnOnly) {
  const Socket s = udp();
  send(s, s, pattern(65508), 0, 0, 7);
  EXPECT_TRUE(engine_->turn(true).empty());
  EXPECT_LT(idle_cpu(*engine_), 0.03);
  expect_error(s.port, 7, EMSGSIZE);
}

TEST_P(EngineTest, AttachRefusesWhatIsNoDescriptor) {
  EXPECT_THROW(engine_->attach(PortKind::udp, -1), std::system_error);
  EXPECT_THROW(engine_->attach(PortKind::udp, 19999), std::system_error);
  const Socket b = udp();
  send(b, b, pattern(5));
  EXPECT_EQ(receive(b.port, 1)[0], pattern(5));
}

// A connected socket, because only such a one hears of ICMP errors.
TEST_P(EngineTest, IcmpErrorsDoNotEndTheReceive) {
  Socket peer = udp();
  const Socket s = udp();
  ASSERT_EQ(::connect(s.fd.get(), reinterpret_cast<sockaddr*>(&peer.address), peer.address_len), 0);
  engine_->detach(peer.port);
  peer.fd = UniqueFd();
  for (int i = 0; i < 100; ++i) {
    send(s, peer, pattern(5));
    for (int k = 0; k < 2; ++k) EXPECT_TRUE(engine_->turn(false).empty());
    for (const TxError& e : engine_->take_errors()) EXPECT_EQ(e.error, ECONNREFUSED);
  }
  const UniqueFd back = open_udp(peer.where, {}, {});
  ASSERT_EQ(::sendto(back.get(), "again", 5, 0, reinterpret_cast<const sockaddr*>(&s.address),
                     s.address_len),
            5);
  EXPECT_EQ(receive(s.port, 1)[0], Bytes({'a', 'g', 'a', 'i', 'n'}));
}

// --- TUN ---

constexpr std::size_t kHeaders = sizeof(VnetHdr) + 20 + 8;

// VnetHdr, IPv4, UDP (checksum 0: none), payload.
Bytes udp_packet(const char* from, const char* to, std::uint16_t port, const Bytes& payload) {
  Bytes p(kHeaders);
  std::uint8_t* ip = p.data() + sizeof(VnetHdr);
  const auto put16 = [](std::uint8_t* at, std::size_t v) {
    at[0] = static_cast<std::uint8_t>(v >> 8);
    at[1] = static_cast<std::uint8_t>(v);
  };
  ip[0] = 0x45;
  put16(ip + 2, 28 + payload.size());
  ip[8] = 64;
  ip[9] = IPPROTO_UDP;
  ::inet_pton(AF_INET, from, ip + 12);
  ::inet_pton(AF_INET, to, ip + 16);
  unsigned sum = 0;
  for (int i = 0; i < 20; i += 2) sum += ip[i] * 256U + ip[i + 1];
  sum = (sum & 0xffff) + (sum >> 16);
  put16(ip + 10, ~(sum + (sum >> 16)) & 0xffffU);
  put16(ip + 20, 9);
  put16(ip + 22, port);
  put16(ip + 24, 8 + payload.size());
  p.insert(p.end(), payload.begin(), payload.end());
  return p;
}

// IPv6 speaks on a device that comes up without being asked.
bool is_ipv4(const Received& r) {
  return r.len > sizeof(VnetHdr) && r.data[sizeof(VnetHdr)] >> 4 == 4;
}

TEST_P(EngineTest, TunReadsWhatIsRoutedIntoIt) {
  const Socket t = tun("t0", "10.9.0.1/24");
  const UniqueFd s(::socket(AF_INET, SOCK_DGRAM, 0));
  sockaddr_storage to;
  const socklen_t len = Endpoint{*IpAddress::parse("10.9.0.2"), 5000}.to(to);
  for (std::size_t i = 0; i < 200; ++i) {
    const Bytes b = pattern(10 + i, unsigned(i));
    ASSERT_GT(::sendto(s.get(), b.data(), b.size(), 0, reinterpret_cast<sockaddr*>(&to), len), 0);
  }
  std::size_t next = 0;
  while (next < 200)
    for (const Received& r : engine_->turn(true)) {
      EXPECT_EQ(r.port, t.port);
      EXPECT_EQ(r.kind, PortKind::tun);
      EXPECT_EQ(r.peer.address.family, Family::none);
      if (!is_ipv4(r)) continue;
      ASSERT_EQ(r.len, kHeaders + 10 + next) << "in order";
      EXPECT_EQ(Bytes(r.data + kHeaders, r.data + r.len), pattern(10 + next, unsigned(next)));
      ++next;
    }
}

TEST_P(EngineTest, TunWritesWholeAndInParts) {
  const Socket t = tun("t0", "10.9.0.1/24");
  const UniqueFd s(::socket(AF_INET, SOCK_DGRAM, 0));
  sockaddr_storage here;
  const socklen_t len = Endpoint{*IpAddress::parse("10.9.0.1"), 5000}.to(here);
  ASSERT_EQ(::bind(s.get(), reinterpret_cast<sockaddr*>(&here), len), 0);
  const Bytes payload = pattern(1000);
  Bytes p = udp_packet("10.9.0.2", "10.9.0.1", 5000, payload);
  for (const std::size_t piece : {std::size_t{1038}, std::size_t{100}, std::size_t{7}}) {
    std::vector<iovec> parts;
    for (std::size_t at = 0; at < p.size(); at += piece)
      parts.push_back({p.data() + at, std::min(piece, p.size() - at)});
    engine_->write(t.port, parts, 1);
    std::fill(parts.begin(), parts.end(), iovec{});  // the array was copied
    engine_->flush();
    EXPECT_TRUE(engine_->take_errors().empty());
    Bytes got(2000);
    const ssize_t n = ::recv(s.get(), got.data(), got.size(), 0);
    ASSERT_EQ(n, 1000);
    got.resize(1000);
    EXPECT_EQ(got, payload);
  }
}

TEST_P(EngineTest, TunWritesManyPartsBeforeAFlush) {
  const Socket t = tun("t0", "10.9.0.1/24");
  const Socket s = [&] {
    Socket u = udp("10.9.0.1");
    return u;
  }();
  const Bytes payload = pattern(900);
  Bytes p = udp_packet("10.9.0.2", "10.9.0.1", s.where.port, payload);
  std::vector<iovec> parts;
  for (std::size_t at = 0; at < p.size(); at += 10)
    parts.push_back({p.data() + at, std::min<std::size_t>(10, p.size() - at)});
  for (int i = 0; i < 300; ++i) engine_->write(t.port, parts, 1);  // 28,200 pieces
  std::size_t got = 0;
  while (got < 300)
    for (const Received& r : engine_->turn(true)) {
      if (r.port != s.port) continue;
      ASSERT_EQ(Bytes(r.data, r.data + std::min<std::size_t>(r.len, 900)), payload);
      got += r.len / 900;
    }
  const std::vector<iovec> too_many(1025, iovec{p.data(), 1});
  engine_->write(t.port, too_many, 5);
  engine_->flush();
  expect_error(t.port, 5, EINVAL);
}

TEST_P(EngineTest, TunThatIsDownRefusesWritesAndRecovers) {
  Socket t;
  t.fd = open_tun("t0", false, {});
  test::add_address("t0", "10.9.0.1/24");
  {
    const UniqueFd s(::socket(AF_INET, SOCK_DGRAM, 0));
    ifreq r = test::request("t0");
    ASSERT_EQ(::ioctl(s.get(), SIOCSIFFLAGS, &r), 0);
  }
  t.port = engine_->attach(PortKind::tun, t.fd.get());
  Bytes p = udp_packet("10.9.0.2", "10.9.0.1", 5000, pattern(10));
  const iovec part{p.data(), p.size()};
  engine_->write(t.port, {&part, 1}, 3);
  EXPECT_TRUE(engine_->turn(true).empty());
  expect_error(t.port, 3, EIO);
  test::set_up("t0");
  const Socket s = udp("10.9.0.1");
  p = udp_packet("10.9.0.2", "10.9.0.1", s.where.port, pattern(10));
  const iovec again{p.data(), p.size()};
  engine_->write(t.port, {&again, 1}, 3);
  bool got = false;
  while (!got)
    for (const Received& r : engine_->turn(true)) got |= r.port == s.port;
  EXPECT_TRUE(engine_->take_errors().empty());
}

// client (this namespace, t0 10.9.0.1) ── engine ── (another namespace, t1 10.9.0.2) server.
// What is read is written from the buffer it was read into.
TEST_P(EngineTest, TcpSuperPacketsPassFromTunToTun) {
  const TunOffloads offloads = probe_tun_offloads();
  const Socket t0 = tun("t0", "10.9.0.1/24", offloads);
  const UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  test::new_namespace();
  const Socket t1 = tun("t1", "10.9.0.2/24", offloads);
  const UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_storage server_address;
  const socklen_t len = Endpoint{*IpAddress::parse("10.9.0.2"), 80}.to(server_address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&server_address), len), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);

  constexpr std::size_t kTotal = 8 << 20;
  std::atomic<bool> done = false;
  Bytes got;
  std::thread server([&] {
    const UniqueFd c(::accept(listener.get(), nullptr, nullptr));
    Bytes chunk(1 << 16);
    ssize_t n = 0;
    while ((n = ::recv(c.get(), chunk.data(), chunk.size(), 0)) > 0)
      got.insert(got.end(), chunk.begin(), chunk.begin() + n);
    done = true;
    engine_->wake();
  });
  const Bytes sent = pattern(kTotal);
  std::thread sender([&] {
    if (::connect(client.get(), reinterpret_cast<sockaddr*>(&server_address), len) == 0) {
      for (std::size_t at = 0; at < sent.size();) {
        const ssize_t n = ::send(client.get(), sent.data() + at, sent.size() - at, 0);
        if (n <= 0) break;
        at += static_cast<std::size_t>(n);
      }
    }
    ::shutdown(client.get(), SHUT_RDWR);
  });
  std::uint32_t largest = 0;
  while (!done)
    for (const Received& r : engine_->turn(true)) {
      if (!is_ipv4(r)) continue;
      VnetHdr h;
      std::memcpy(&h, r.data, sizeof h);
      if (h.gso_type == kVnetGsoTcp4) largest = std::max(largest, r.len);
      const std::uint32_t half = r.len / 2;
      const iovec parts[] = {{r.data, half}, {r.data + half, r.len - half}};
      engine_->write(r.port == t0.port ? t1.port : t0.port, parts, 1);
    }
  server.join();
  sender.join();
  EXPECT_EQ(got.size(), kTotal);
  EXPECT_TRUE(got == sent);
  EXPECT_GT(largest, 20000U) << "no super-packet came out of the TUN";
  EXPECT_TRUE(engine_->take_errors().empty());
}

// --- detach, deletion, wake ---

TEST_P(EngineTest, DetachWhileTrafficIsPending) {
  Socket a = udp(), b = udp();
  for (int round = 0; round < 20; ++round) {
    for (std::size_t i = 0; i < 100; ++i) send(a, b, pattern(1 + i));
    if (round % 2 == 0) {
      EXPECT_FALSE(engine_->turn(true).empty());
    } else {
      engine_->flush();
    }
    const Port old = b.port;
    engine_->detach(b.port);
    EXPECT_TRUE(engine_->turn(false).empty()) << "of a port that is gone";
    b = udp();
    EXPECT_EQ(b.port, old) << "ports are reused";
    send(a, b, pattern(3, unsigned(round)));
    EXPECT_EQ(receive(b.port, 1)[0], pattern(3, unsigned(round)));
  }
}

TEST_P(EngineTest, DetachLetsGoOfTheTun) {
  Socket t = tun("t0", "10.9.0.1/24");
  const Socket other = udp();
  (void)engine_->turn(false);
  engine_->detach(t.port);
  t.fd = UniqueFd();
  EXPECT_EQ(::if_nametoindex("t0"), 0U);
}

TEST_P(EngineTest, WakeEndsTheTurnInProgressOrTheNext) {
  const Socket s = udp();
  engine_->wake();
  engine_->wake();
  EXPECT_TRUE(engine_->turn(true).empty());
  for (int i = 0; i < 3; ++i) {
    const auto tid = static_cast<pid_t>(::syscall(SYS_gettid));
    std::thread waker([&] {
      wait_until_asleep(tid);
      engine_->wake();
    });
    EXPECT_TRUE(engine_->turn(true).empty());
    waker.join();
  }
  send(s, s, pattern(5));
  EXPECT_EQ(receive(s.port, 1)[0], pattern(5));
}

TEST_P(EngineTest, IdleCostsNothing) {
  const Socket t = tun("t0", "10.9.0.1/24");
  const Socket s = udp();
  const Socket r = raw("127.0.0.1");
  // Swallow what IPv6 says on a new device.
  for (int i = 0; i < 10; ++i) (void)engine_->turn(false);
  const auto tid = static_cast<pid_t>(::syscall(SYS_gettid));
  const double before = cpu_seconds();
  std::atomic<bool> over = false;
  std::thread waker([&] {
    wait_until_asleep(tid);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    over = true;
    engine_->wake();
  });
  int turns = 0;
  while (!over) {
    for (const Received& x : engine_->turn(true)) EXPECT_FALSE(is_ipv4(x));
    ++turns;
  }
  waker.join();
  EXPECT_LT(cpu_seconds() - before, 0.03);
  EXPECT_LT(turns, 20);
}

TEST_P(EngineTest, ADeletedTunIsReportedOnceAndStaysQuiet) {
  const Socket t = tun("t0", "10.9.0.1/24");
  const Socket s = udp();
  for (int i = 0; i < 10; ++i) (void)engine_->turn(false);
  test::delete_device("t0");
  std::span<const TxError> errors;
  for (int i = 0; i < 10 && errors.empty(); ++i) {
    (void)engine_->turn(true);
    errors = engine_->take_errors();
  }
  ASSERT_EQ(errors.size(), 1U);
  EXPECT_EQ(errors[0].port, t.port);
  EXPECT_EQ(errors[0].packets, 0U);
  EXPECT_LT(idle_cpu(*engine_), 0.03);
  EXPECT_TRUE(engine_->take_errors().empty());
  Bytes p = udp_packet("10.9.0.2", "10.9.0.1", 5000, pattern(10));
  const iovec part{p.data(), p.size()};
  engine_->write(t.port, {&part, 1}, 1);
  send(s, s, pattern(6));
  EXPECT_EQ(receive(s.port, 1)[0], pattern(6));
  EXPECT_EQ(engine_->take_errors().size(), 1U);
  engine_->detach(t.port);
  const Socket again = tun("t0", "10.9.0.1/24");
  EXPECT_EQ(again.port, t.port);
}

TEST_P(EngineTest, ManyPortsTakeTurns) {
  std::vector<Socket> sockets;
  sockets.reserve(150);
  for (int i = 0; i < 150; ++i) sockets.push_back(udp());
  std::vector<int> counts(sockets.size());
  const Bytes b = pattern(20);
  for (int i = 0; i < 5; ++i)
    for (const Socket& s : sockets) send(s, s, b);
  std::size_t total = 0;
  while (total < 5 * sockets.size())
    for (const Received& r : engine_->turn(true)) {
      ++counts[r.port];
      ++total;
    }
  EXPECT_EQ(std::count(counts.begin(), counts.end(), 5), 150);
}

INSTANTIATE_TEST_SUITE_P(Modes, EngineTest, ::testing::ValuesIn(kModes),
                         [](const auto& i) { return std::string(i.param.name); });

// --- the choice ---

TEST(MakeEngineTest, NamesAndFeatures) {
  std::string why;
  EXPECT_EQ(make_engine("epoll", why)->name(), "epoll");
  EXPECT_THROW((void)make_engine("kqueue", why), std::runtime_error);
  const auto automatic = make_engine("auto", why);
  EXPECT_EQ(automatic->name() == "io_uring", why.empty()) << why;
}

TEST(MakeEngineTest, FeaturesForcedOffAreNotUsed) {
  try {
    const UringEngine plain({false, false, false, false, false});
    EXPECT_EQ(plain.features(),
              "two calls a turn, one-shot reads, one-shot receives, provided buffers");
    const UringEngine full;
    EXPECT_TRUE(plain.features() != full.features());
  } catch (const std::system_error& e) {
    GTEST_SKIP() << e.what();
  }
}

// As Docker's and Podman's default profiles do it.
void refuse_io_uring() {
  sock_filter program[] = {
      {BPF_LD | BPF_W | BPF_ABS, 0, 0, 0},
      {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_io_uring_setup},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM},
      {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
  };
  const sock_fprog p{4, program};
  test::check(::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
  test::check(::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p) == 0, "PR_SET_SECCOMP");
}

TEST(MakeEngineTest, WhereIoUringIsRefusedAutoTakesEpollAndSaysWhy) {
  const pid_t child = ::fork();
  if (child == 0) {
    refuse_io_uring();
    std::string why;
    if (make_engine("auto", why)->name() != "epoll") ::_exit(1);
    if (why.find("io_uring_setup: Operation not permitted") == std::string::npos) ::_exit(2);
    if (why.find("seccomp") == std::string::npos) ::_exit(3);
    try {
      (void)make_engine("io_uring", why);
    } catch (const std::runtime_error&) {
      ::_exit(0);
    }
    ::_exit(4);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "exit status " << WEXITSTATUS(status);
}

}  // namespace
}  // namespace espalier::ifaces
