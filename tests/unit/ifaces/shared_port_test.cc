#include "ifaces/shared_port.h"

#include <netinet/udp.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <optional>
#include <system_error>
#include <vector>

#include "ifaces/esp_socket.h"
#include "tests/unit/ifaces/sandbox.h"

namespace espalier::ifaces {
namespace {

using Bytes = std::vector<std::uint8_t>;

constexpr unsigned kWorkers = 2;
constexpr std::uint16_t kPort = 4500;

void put32(Bytes& bytes, std::size_t at, std::uint32_t value) {
  const std::uint32_t be = htonl(value);
  std::memcpy(&bytes[at], &be, sizeof be);
}

Bytes esp(std::uint32_t spi) {
  Bytes bytes(60, 0x55);
  put32(bytes, 0, spi);
  return bytes;
}

// `said`: what its header says; its own length as a rule.
Bytes ike(std::size_t length, std::optional<std::size_t> said = {}) {
  Bytes bytes(4 + length);
  put32(bytes, 4 + 24, static_cast<std::uint32_t>(said.value_or(length)));
  return bytes;
}

// The parameter: what the IKE daemon binds, the port that its peers send to.
struct Where {
  const char* bound;
  const char* sent_to;
};

class SharedPortTest : public test::SandboxTest, public ::testing::WithParamInterface<Where> {
 protected:
  [[nodiscard]] Endpoint bound() const { return {*IpAddress::parse(GetParam().bound), kPort}; }
  [[nodiscard]] IpAddress peer() const { return *IpAddress::parse(GetParam().sent_to); }

  // As a daemon does that knows of nothing.
  [[nodiscard]] UniqueFd daemon(bool shares = false) const {
    const bool v6 = bound().address.family == Family::v6;
    UniqueFd fd(::socket(v6 ? AF_INET6 : AF_INET, SOCK_DGRAM, 0));
    const int on = 1;
    if (v6) ::setsockopt(fd.get(), SOL_IPV6, IPV6_V6ONLY, &on, sizeof on);
    if (shares) let_share(fd.get());
    sockaddr_storage name{};
    const socklen_t length = bound().to(name);
    test::check(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&name), length) == 0, "bind");
    return fd;
  }

  void open_workers() {
    OuterOptions options;
    options.shared = true;
    for (unsigned w = 0; w < kWorkers; ++w)
      workers_.push_back(open_udp(bound(), {w, kWorkers}, options));
    sender_ = open_udp_sender(bound(), workers_, true, options);
    port_.emplace(kWorkers);
    port_->attach(workers_.front().get());
    for (unsigned w = 0; w < kWorkers; ++w) port_->set_worker(w, workers_[w].get());
  }
  void adopt(const UniqueFd& fd) {
    let_share(fd.get());
    if (workers_.empty()) open_workers();
    // The map of an espalierd that has ended goes in the kernel's own time.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    for (;;) try {
        return port_->set_ike(fd.get());
      } catch (const std::system_error& e) {
        if (e.code().value() != EBUSY || std::chrono::steady_clock::now() > deadline) throw;
      }
  }
  void end_of_espalierd() {
    port_.reset();
    workers_.clear();
    sender_ = {};
  }

  // From 16 ports, so that no hash hits the right one each time. Who got it: "ike", "w0", …
  void expect(const Bytes& sent, const std::string& who, const UniqueFd& ike_fd) {
    for (int i = 0; i < 16; ++i) {
      const UniqueFd from = open_udp({peer(), 0}, {}, {});
      sockaddr_storage name{};
      const socklen_t length = Endpoint{peer(), kPort}.to(name);
      ASSERT_EQ(::sendto(from.get(), sent.data(), sent.size(), 0,
                         reinterpret_cast<const sockaddr*>(&name), length),
                static_cast<ssize_t>(sent.size()));
      EXPECT_EQ(receiver(ike_fd), who);
    }
  }
  std::string receiver(const UniqueFd& ike_fd) {
    std::string who;
    const auto look = [&](const UniqueFd& fd, const std::string& name) {
      std::array<std::uint8_t, 2048> bytes{};
      while (fd && ::recv(fd.get(), bytes.data(), bytes.size(), MSG_DONTWAIT) >= 0) who += name;
    };
    look(ike_fd, "ike");
    look(sender_, "sender");
    for (std::size_t w = 0; w < workers_.size(); ++w) look(workers_[w], "w" + std::to_string(w));
    return who;
  }
  void expect_all(const UniqueFd& ike_fd) {
    expect(ike(300), "ike", ike_fd);
    expect(ike(28), "ike", ike_fd);
    expect(esp(0x1000), "w0", ike_fd);
    expect(esp(0x1001), "w1", ike_fd);
    expect({0xff}, "w0", ike_fd);
  }

  std::vector<UniqueFd> workers_;
  UniqueFd sender_;
  std::optional<SharedPort> port_;
};

TEST_P(SharedPortTest, EachGetsItsOwn) {
  const UniqueFd fd = daemon();
  adopt(fd);
  expect_all(fd);
  EXPECT_TRUE(port_->has_ike());
  EXPECT_TRUE(port_->is_ike(fd.get()));
  EXPECT_FALSE(port_->is_ike(workers_.front().get()));
}

TEST_P(SharedPortTest, ARunThatStartsWithIkeIsCutUpByAWorker) {
  const UniqueFd fd = daemon();
  adopt(fd);
  expect(ike(300, 100), "w0", fd);
  expect(ike(300, 400), "w0", fd);
  expect(Bytes(20), "w0", fd);  // no length in it
}

TEST_P(SharedPortTest, TheDaemonRestarts) {
  UniqueFd fd = daemon();
  adopt(fd);
  fd = {};
  EXPECT_FALSE(port_->has_ike());
  expect(esp(0x1001), "w1", fd);
  expect(esp(0x1000), "w0", fd);
  EXPECT_THROW(daemon(), std::runtime_error) << "the port is taken";
  fd = daemon(true);
  expect(esp(0x1001), "w1", fd);
  adopt(fd);
  expect_all(fd);
}

TEST_P(SharedPortTest, EspalierdRestarts) {
  const UniqueFd fd = daemon();
  adopt(fd);
  end_of_espalierd();
  expect(ike(300), "ike", fd);
  adopt(fd);
  expect_all(fd);
}

TEST_P(SharedPortTest, EspalierdWasThereFirst) {
  open_workers();
  const UniqueFd fd = daemon(true);
  adopt(fd);
  expect_all(fd);
}

TEST_P(SharedPortTest, SaysWhereItIsBound) {
  EXPECT_EQ(shared_endpoint(daemon().get()), bound());
  const UniqueFd unbound(::socket(AF_INET, SOCK_DGRAM, 0));
  EXPECT_THROW(static_cast<void>(shared_endpoint(unbound.get())), std::invalid_argument);
  const UniqueFd raw(::socket(AF_INET, SOCK_RAW, IPPROTO_ESP));
  EXPECT_THROW(static_cast<void>(shared_endpoint(raw.get())), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(All, SharedPortTest,
                         ::testing::Values(Where{"0.0.0.0", "127.0.0.1"},
                                           Where{"127.0.0.1", "127.0.0.1"}, Where{"::", "::1"},
                                           Where{"::1", "::1"}));

}  // namespace
}  // namespace espalier::ifaces
