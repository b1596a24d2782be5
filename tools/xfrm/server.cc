#include "tools/xfrm/server.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace espalier::tools::xfrm {
namespace {

using ifaces::UniqueFd;

constexpr int kDatagramsPerTurn = 16;
constexpr std::size_t kMaxNattSockets = 64;

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

sockaddr_un address_of(const std::filesystem::path& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string& text = path.native();
  if (text.size() >= sizeof address.sun_path)
    throw std::runtime_error("the path of the XFRM socket is too long: " + text);
  std::memcpy(address.sun_path, text.data(), text.size());
  return address;
}

template <class Call>
int with_address(Call call, int fd, const sockaddr_un& address) {
  return call(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
}

// Two daemons that start at once must not take each other's fresh socket for a stale one.
UniqueFd lock_directory(const std::filesystem::path& directory) {
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) fail("open " + directory.string());
  for (int tries = 0; ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0; ++tries) {
    if (errno != EWOULDBLOCK || tries == 100) fail("flock " + directory.string());
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return fd;
}

void clear_stale(const std::filesystem::path& path, const sockaddr_un& address) {
  struct stat st {};
  if (::lstat(path.c_str(), &st) != 0) return;
  if (!S_ISSOCK(st.st_mode)) throw std::runtime_error(path.string() + " is in the way");
  const UniqueFd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!probe) fail("socket");
  if (with_address(::connect, probe.get(), address) == 0)
    throw std::runtime_error("another espalierd serves " + path.string());
  if (errno != ECONNREFUSED) fail("connect " + path.string());
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) fail("unlink " + path.string());
}

bool may_ask(int fd) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return false;
  return peer.uid == 0 || peer.uid == ::geteuid();
}

// The first descriptor that came along; others are closed.
UniqueFd descriptor_of(msghdr& header) {
  UniqueFd out;
  for (cmsghdr* c = CMSG_FIRSTHDR(&header); c != nullptr; c = CMSG_NXTHDR(&header, c)) {
    if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      UniqueFd owned(fd);
      if (!out) out = std::move(owned);
    }
  }
  return out;
}

}  // namespace

Server::Server(const std::filesystem::path& path, dataplane::Dataplane& dataplane,
               ifaces::Netlink& netlink)
    : path_(path), service_(dataplane, netlink), buffer_(front::kMaxMessage) {
  const sockaddr_un address = address_of(path_);
  std::filesystem::path directory = path_.parent_path();
  if (directory.empty()) directory = ".";
  const UniqueFd lock = lock_directory(directory);
  clear_stale(path_, address);

  listen_.reset(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  // Before bind, so that the file never exists with another mode.
  if (!listen_ || ::fchmod(listen_.get(), S_IRUSR | S_IWUSR) != 0) fail("socket " + path_.string());
  if (with_address(::bind, listen_.get(), address) != 0) fail("bind " + path_.string());
  struct stat st {};
  if (::lstat(path_.c_str(), &st) == 0) inode_ = st.st_ino;
  if (::listen(listen_.get(), kMaxSessions) != 0) fail("listen " + path_.string());

  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;  // the listener
  if (!epoll_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listen_.get(), &event) != 0)
    fail("epoll " + path_.string());
}

Server::~Server() {
  struct stat st {};
  if (::lstat(path_.c_str(), &st) == 0 && st.st_ino == inode_) ::unlink(path_.c_str());
}

void Server::serve() {
  std::array<epoll_event, kMaxSessions + 1> events{};
  const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
  bool newcomers = false;
  for (int i = 0; i < count; ++i) {
    const void* const who = events[static_cast<std::size_t>(i)].data.ptr;
    if (who == nullptr) newcomers = true;
    const auto is_it = [who](const Session& s) { return &s == who; };
    const auto session = std::find_if(sessions_.begin(), sessions_.end(), is_it);
    if (session != sessions_.end() && !advance(*session)) sessions_.erase(session);
  }
  if (newcomers) accept_all();
  Output due;
  service_.take_due(std::chrono::steady_clock::now(), due);
  publish(due.notices);
}

void Server::take(std::span<const dataplane::Event> events) {
  Output output;
  service_.take(events, output);
  publish(output.notices);
}

void Server::accept_all() {
  for (std::size_t i = 0; i < kMaxSessions; ++i) {
    UniqueFd fd(::accept4(listen_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) return;
    if (!may_ask(fd.get()) || sessions_.size() >= kMaxSessions) continue;
    Session& session = sessions_.emplace_back();
    session.fd = std::move(fd);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = &session;
    if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, session.fd.get(), &event) != 0)
      sessions_.pop_back();
  }
}

bool Server::advance(Session& session) {
  bool gone = false;
  for (int turn = 0; turn < kDatagramsPerTurn && !gone; ++turn)
    if (!flush(session, gone) || !read_one(session, gone)) break;
  if (!gone) static_cast<void>(flush(session, gone));
  return !gone && wait_for_more(session);
}

bool Server::wait_for_more(Session& session) {
  const bool idle = session.replies.empty() && !session.dump;
  epoll_event event{};
  event.events = idle ? EPOLLIN : EPOLLOUT;
  event.data.ptr = &session;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, session.fd.get(), &event) == 0;
}

bool Server::flush(Session& session, bool& gone) {
  for (int count = 0; count < kDatagramsPerTurn; ++count) {
    if (session.sent == session.replies.size()) {
      session.replies.clear();
      session.sent = 0;
      if (!session.dump) return true;
      session.replies.push_back(service_.next(*session.dump, session.client));
      if (session.dump->done) session.dump.reset();
    }
    const std::span<const std::uint8_t> bytes = session.replies[session.sent].bytes();
    if (::send(session.fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
      gone = errno != EAGAIN && errno != EINTR && errno != ENOBUFS;
      return false;
    }
    ++session.sent;
  }
  return session.replies.empty() && !session.dump;
}

bool Server::read_one(Session& session, bool& gone) {
  iovec part{buffer_.data(), buffer_.size()};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(4 * sizeof(int))> control{};
  msghdr header{};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control.data();
  header.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(session.fd.get(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got <= 0) {
    gone = got == 0 || (errno != EAGAIN && errno != EINTR);
    return false;
  }
  UniqueFd descriptor = descriptor_of(header);
  const std::span<std::uint8_t> datagram(buffer_.data(), static_cast<std::size_t>(got));
  front::Message message{};
  if (datagram.size() == sizeof message) {
    std::memcpy(&message, datagram.data(), sizeof message);
    if (message.header.nlmsg_len == sizeof message &&
        (message.header.nlmsg_type == front::kState || message.header.nlmsg_type == front::kNatt)) {
      take_message(session, message, std::move(descriptor));
      return true;
    }
  }
  Output output;
  service_.handle(session.client, datagram, output);
  session.replies = std::move(output.replies);
  session.sent = 0;
  session.dump = output.dump;
  publish(output.notices);
  return true;
}

void Server::take_message(Session& session, const front::Message& message, UniqueFd descriptor) {
  front::Message answer = message;
  answer.error = 0;
  if (message.version != front::kVersion) {
    answer.error = EPROTO;
  } else if (message.header.nlmsg_type == front::kState) {
    session.client.portid = message.portid;
    session.client.groups = message.groups;
    session.client.extended_ack = (message.flags & front::kExtAck) != 0;
    session.client.capped_ack = (message.flags & front::kCapAck) != 0;
  } else if (!descriptor) {
    answer.error = EBADF;
  } else {
    if (natt_.size() >= kMaxNattSockets) natt_.erase(natt_.begin());
    natt_.push_back(std::move(descriptor));
  }
  Datagram out;
  out.append({reinterpret_cast<const std::uint8_t*>(&answer), sizeof answer});
  session.replies.push_back(std::move(out));
}

void Server::publish(const std::vector<Notice>& notices) {
  for (const Notice& notice : notices)
    for (const Session& session : sessions_) {
      if ((session.client.groups >> (notice.group - 1) & 1U) == 0) continue;
      const std::span<const std::uint8_t> bytes = notice.message.bytes();
      // Whoever does not take it loses it.
      static_cast<void>(
          ::send(session.fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
    }
}

}  // namespace espalier::tools::xfrm
