// The control socket against clients that mean no good.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "tools/control_client.h"
#include "tools/control_server.h"

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;
using nlohmann::json;
using testing::HasSubstr;

class Control : public testing::Test {
 protected:
  void SetUp() override {
    std::array<char, 32> name{"/tmp/espalier-control-XXXXXX"};
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    directory_ = name.data();
    path_ = directory_ / "control.sock";
  }
  void TearDown() override {
    stop();
    std::filesystem::remove_all(directory_);
  }

  // Serves from a thread of its own, as the daemon's main loop does.
  void start() {
    server_.emplace(path_);
    server_->on("echo", [](const json& request) {
      return json{{"got", request.value("say", "")}};
    });
    server_->on("fail", [](const json&) -> json { throw std::runtime_error("it \xff broke"); });
    server_->on("large", [](const json&) { return json{{"text", std::string(1 << 20, 'x')}}; });
    server_->on_session("descriptor", [](const ControlRequest& request) {
      std::array<int, 2> ends{};
      if (::pipe2(ends.data(), O_CLOEXEC) != 0) throw std::runtime_error("pipe2");
      request.session.descriptor.reset(ends[0]);
      const UniqueFd other(ends[1]);
      if (::write(other.get(), "hey", 3) != 3) throw std::runtime_error("write");
      return json::object();
    });
    server_->on_session("listen", [](const ControlRequest& request) {
      request.session.listening = true;
      return json::object();
    });
    server_->on("tell", [this](const json& request) {
      for (std::uint64_t i = 0; i < request["count"].get<std::uint64_t>(); ++i)
        server_->publish({{"event", "test"}, {"number", i}, {"text", std::string(1000, 'x')}});
      return json::object();
    });
    stop_.reset(::eventfd(0, EFD_CLOEXEC));
    loop_ = std::thread([this] {
      for (;;) {
        std::array<pollfd, 2> fds{{{server_->fd(), POLLIN, 0}, {stop_.get(), POLLIN, 0}}};
        ::poll(fds.data(), fds.size(), 1000);
        if (fds[1].revents != 0) return;
        server_->serve();
      }
    });
  }
  void stop() {
    if (!loop_.joinable()) return;
    const std::uint64_t one = 1;
    ASSERT_EQ(::write(stop_.get(), &one, sizeof one), ssize_t{sizeof one});
    loop_.join();
    server_.reset();
  }

  [[nodiscard]] UniqueFd connect() const {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path_.c_str());
    UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
    const timeval patience{5, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    return fd;
  }
  static void send(const UniqueFd& fd, std::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = ::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (sent < 0) return;  // the server hung up
      text.remove_prefix(static_cast<std::size_t>(sent));
    }
  }
  // A line, or "" when the other end closed.
  static std::string receive(const UniqueFd& fd) {
    std::string line;
    for (char c = 0; ::recv(fd.get(), &c, 1, 0) == 1 && c != '\n';) line.push_back(c);
    return line;
  }
  static json answer(const UniqueFd& fd, std::string_view text) {
    send(fd, text);
    return json::parse(receive(fd), nullptr, false);
  }
  [[nodiscard]] bool answers() const { return ask(path_, {{"op", "echo"}})["ok"].get<bool>(); }

  std::filesystem::path directory_, path_;
  std::optional<ControlServer> server_;
  UniqueFd stop_;
  std::thread loop_;
};

TEST_F(Control, AnswersAQuestion) {
  start();
  const json reply = ask(path_, {{"op", "echo"}, {"say", "hello"}});
  EXPECT_EQ(reply["got"], "hello");
  EXPECT_EQ(reply["version"], 1);
}

TEST_F(Control, AnswersSeveralOnOneConnectionInOrder) {
  start();
  const UniqueFd fd = connect();
  send(fd, R"({"version":1,"op":"echo","say":"a"})"
           "\n"
           R"({"version":1,"op":"nope"})"
           "\n"
           R"({"version":1,"op":"echo","say":"c"})"
           "\n");
  EXPECT_EQ(json::parse(receive(fd))["got"], "a");
  EXPECT_FALSE(json::parse(receive(fd))["ok"].get<bool>());
  EXPECT_EQ(json::parse(receive(fd))["got"], "c");
}

TEST_F(Control, AnswersMoreThanOneTurnOfPipelinedRequests) {
  start();
  const UniqueFd fd = connect();
  std::string all;
  for (int i = 0; i < 100; ++i)
    all += R"({"version":1,"op":"echo"})"
           "\n";
  send(fd, all);
  for (int i = 0; i < 100; ++i) EXPECT_NE(receive(fd), "") << i;
}

TEST_F(Control, OnlyItsOwnerMayOpenTheFile) {
  start();
  struct stat st {};
  ASSERT_EQ(::stat(path_.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600U);
}

TEST_F(Control, AnotherUserIsRefusedEvenWithTheFileOpen) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to become another user";
  start();
  ASSERT_EQ(::chmod(path_.c_str(), 0666), 0);
  ASSERT_EQ(::chmod(directory_.c_str(), 0755), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(9);
    const UniqueFd fd = connect();
    const json reply = answer(fd, R"({"version":1,"op":"echo"})"
                                  "\n");
    ::_exit(reply.is_object() && reply["ok"] == false && receive(fd).empty() ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(Control, RefusesWhatIsNoRequest) {
  start();
  for (const char* text :
       {"", "{", "[]", "null", "1", "\"status\"", "\xff\xfe", "{\"version\":1}",
        R"({"version":1,"op":7})", R"({"version":1,"op":["echo"]})", R"({"op":"echo"})",
        R"({"version":2,"op":"echo"})", R"({"version":"1","op":"echo"})",
        R"({"version":1.5,"op":"echo"})", R"({"version":1,"op":"nope"})",
        R"({"version":1,"op":"echo","say":7})", R"({"version":1,"op":"fail"})"}) {
    const UniqueFd fd = connect();
    const json reply = answer(fd, std::string(text) + "\n");
    ASSERT_TRUE(reply.is_object()) << text;
    EXPECT_EQ(reply["ok"], false) << text;
    EXPECT_EQ(reply["version"], 1) << text;
    EXPECT_FALSE(reply["error"].get<std::string>().empty()) << text;
  }
  EXPECT_TRUE(answers());
}

TEST_F(Control, StandsDeepNesting) {
  start();
  const UniqueFd fd = connect();
  EXPECT_EQ(answer(fd, std::string(60000, '[') + "\n")["ok"], false);
  std::string deep = R"({"version":1,"op":"echo","x":)";
  deep.append(30000, '[').append(30000, ']').append("}\n");
  EXPECT_EQ(answer(fd, deep)["ok"], true);
}

TEST_F(Control, TakesARequestByteByByte) {
  start();
  const UniqueFd fd = connect();
  for (const char c : std::string_view(R"({"version":1,"op":"echo","say":"slow"})"
                                       "\n"))
    send(fd, {&c, 1});
  EXPECT_EQ(json::parse(receive(fd))["got"], "slow");
}

TEST_F(Control, ForgetsHalfARequest) {
  start();
  const UniqueFd half = connect();
  send(half, R"({"version":1,"op")");
  EXPECT_TRUE(answers());
  ::shutdown(half.get(), SHUT_WR);
  EXPECT_EQ(receive(half), "");
}

TEST_F(Control, AnswersAClientThatClosedItsSendingSide) {
  start();
  const UniqueFd fd = connect();
  send(fd, R"({"version":1,"op":"large"})"
           "\n");
  ::shutdown(fd.get(), SHUT_WR);
  EXPECT_GT(receive(fd).size(), std::size_t{1} << 20);
}

TEST_F(Control, TakesTheLongestRequestAndNotOneByteMore) {
  start();
  std::string longest = R"({"version":1,"op":"echo","x":")";
  longest.append(ControlServer::kMaxRequest - longest.size() - 2, 'x').append("\"}");
  ASSERT_EQ(longest.size(), ControlServer::kMaxRequest);
  const UniqueFd fd = connect();
  EXPECT_EQ(answer(fd, longest + "\n")["ok"], true);
  longest.insert(longest.size() - 2, "x");
  EXPECT_EQ(answer(fd, longest + "\n")["ok"], false);
  EXPECT_EQ(receive(fd), "");  // and hangs up
}

TEST_F(Control, C2RefusesSixteenMebibytesWithoutKeepingThem) {
  start();
  const UniqueFd fd = connect();
  std::thread writer([&fd] { send(fd, std::string(std::size_t{16} << 20, 'x')); });
  const json reply = json::parse(receive(fd), nullptr, false);
  writer.join();
  EXPECT_THAT(reply["error"].get<std::string>(), HasSubstr("at most 1048576 bytes"));
  EXPECT_TRUE(answers());
}

TEST_F(Control, AClientThatDoesNotReadHarmsNobody) {
  start();
  const UniqueFd lazy = connect();
  std::string all;
  for (int i = 0; i < 100; ++i)
    all += R"({"version":1,"op":"large"})"
           "\n";
  send(lazy, all);
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(answers());
}

TEST_F(Control, TwoHundredIdleConnectionsLeaveRoomForOneMore) {
  start();
  std::vector<UniqueFd> idle;
  for (int i = 0; i < 200; ++i) {
    idle.push_back(connect());
    send(idle.back(), "{");
    if (i % 10 != 0) continue;
    EXPECT_TRUE(answers()) << i;
  }
  EXPECT_TRUE(answers());
  EXPECT_EQ(receive(idle.front()), "");  // the longest idle one made room
}

TEST_F(Control, RefusesASecondDaemonAndLeavesTheFirstItsSocket) {
  start();
  try {
    const ControlServer second(path_);
    ADD_FAILURE() << "two daemons on one socket";
  } catch (const std::exception& e) {
    EXPECT_THAT(e.what(), HasSubstr("already running"));
  }
  EXPECT_TRUE(answers());
}

TEST_F(Control, ReplacesTheSocketOfADeadDaemon) {
  const pid_t child = ::fork();
  if (child == 0) {
    const ControlServer dies(path_);
    ::_exit(0);  // without the destructor
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(std::filesystem::is_socket(path_));
  start();
  EXPECT_TRUE(answers());
}

TEST_F(Control, LeavesAFileThatIsNoSocketAlone) {
  std::ofstream(path_) << "precious";
  EXPECT_ANY_THROW(ControlServer{path_});
  std::string text;
  std::ifstream(path_) >> text;
  EXPECT_EQ(text, "precious");
}

TEST_F(Control, RemovesItsSocketWhenItStops) {
  start();
  stop();
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(Control, LeavesASocketThatIsNoLongerItsOwn) {
  start();
  std::filesystem::remove(path_);
  const ControlServer next(path_);
  stop();
  EXPECT_TRUE(std::filesystem::exists(path_));
}

TEST_F(Control, MakesTheDirectory) {
  path_ = directory_ / "run" / "control.sock";
  start();
  EXPECT_TRUE(answers());
}

TEST_F(Control, AReplyMayCarryADescriptor) {
  start();
  const UniqueFd fd = connect();
  send(fd, R"({"version":1,"op":"descriptor"})"
           "\n");
  std::array<char, 256> text{};
  iovec part{text.data(), text.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  ASSERT_GT(::recvmsg(fd.get(), &message, 0), 0);
  EXPECT_THAT(text.data(), HasSubstr("\"ok\":true"));
  const cmsghdr* const header = CMSG_FIRSTHDR(&message);
  ASSERT_NE(header, nullptr);
  int got = -1;
  std::memcpy(&got, CMSG_DATA(header), sizeof got);
  const UniqueFd passed(got);
  char word[4] = {};
  EXPECT_EQ(::read(passed.get(), word, 3), 3);
  EXPECT_STREQ(word, "hey");
  EXPECT_EQ(answer(fd, R"({"version":1,"op":"echo"})"
                       "\n")["ok"],
            true);
}

TEST_F(Control, C2AListenerThatDoesNotReadLosesEventsAndIsToldHowMany) {
  start();
  const UniqueFd fd = connect();
  ASSERT_EQ(answer(fd, R"({"version":1,"op":"listen"})"
                       "\n")["ok"],
            true);
  constexpr std::uint64_t kEvents = 2000;  // of a kibibyte each: more than all buffers on the way
  (void)ask(path_, {{"op", "tell"}, {"count", kEvents}});
  std::uint64_t seen = 0, lost = 0;
  while (seen + lost < kEvents) {
    const json event = json::parse(receive(fd), nullptr, false);
    ASSERT_TRUE(event.is_object()) << seen << " " << lost;
    if (event["event"] == "lost")
      lost += event["count"].get<std::uint64_t>();
    else
      EXPECT_EQ(event["number"], seen++);
  }
  EXPECT_GT(lost, 0U);
  EXPECT_GT(seen * 1100, ControlServer::kMaxBacklog);  // with what stands around the text
}

TEST_F(Control, SixteenListenAndIdleClientsDoNotPushThemOut) {
  start();
  std::vector<UniqueFd> listeners, idle;
  for (std::size_t i = 0; i < ControlServer::kMaxListeners; ++i) {
    listeners.push_back(connect());
    EXPECT_EQ(answer(listeners.back(), R"({"version":1,"op":"listen"})"
                                       "\n")["ok"],
              true);
  }
  const UniqueFd one_more = connect();
  EXPECT_EQ(answer(one_more, R"({"version":1,"op":"listen"})"
                             "\n")["ok"],
            false);
  for (int i = 0; i < 100; ++i) idle.push_back(connect());
  (void)ask(path_, {{"op", "tell"}, {"count", 1}});
  for (const UniqueFd& fd : listeners) EXPECT_THAT(receive(fd), HasSubstr("\"number\":0"));
}

TEST_F(Control, TheClientSaysWhatToDo) {
  try {
    (void)ask(path_, {{"op", "echo"}});
    ADD_FAILURE();
  } catch (const ControlError& e) {
    EXPECT_THAT(e.what(), HasSubstr("start espalierd"));
  }
}

TEST_F(Control, TheClientDoesNotWaitForEver) {
  const UniqueFd mute(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path_.c_str());
  ASSERT_EQ(::bind(mute.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(mute.get(), 1), 0);
  EXPECT_THROW((void)ask(path_, {{"op", "echo"}}, std::chrono::milliseconds(50)), ControlError);
}

}  // namespace
}  // namespace espalier::tools
