#include "tools/xfrm/server.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <new>
#include <system_error>

#include "ifaces/shared_port.h"
#include "tools/descriptors.h"

namespace espalier::tools::xfrm {
namespace {

using ifaces::UniqueFd;

constexpr int kDatagramsPerTurn = 16;
constexpr std::size_t kMaxUntold = 65536;  // devices

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

Server::Server(const std::filesystem::path& path, dataplane::Dataplane& dataplane,
               ifaces::Netlink& netlink, DevicePool& devices, const Log& log,
               std::optional<gid_t> group, Keep& keep, KeptDevices& kept)
    : log_(log),
      dataplane_(dataplane),
      listener_(path, SOCK_SEQPACKET, kMaxSessions, "XFRM socket", group),
      service_(dataplane, netlink, devices, log),
      keep_(keep),
      devices_(kept),
      buffer_(front::kMaxMessage) {
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = nullptr;  // the listener
  if (!epoll_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, listener_.fd(), &event) != 0)
    fail("epoll " + path.string());
  event.data.ptr = &addresses_;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, addresses_.fd(), &event) != 0)
    fail("epoll " + path.string());
  service_.set_keep(keep_);
  keep_.listen([this](const std::string& device, int /*queue*/) { tell_hold(device); });
}

Server::~Server() {
  keep_.listen({});
  if (std::any_of(sessions_.begin(), sessions_.end(), [](const Session& s) { return s.keeper; }))
    service_.leave();
}

void Server::serve() {
  std::array<epoll_event, kMaxSessions + 2> events{};
  const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
  bool newcomers = false;
  for (int i = 0; i < count; ++i) {
    const void* const who = events[static_cast<std::size_t>(i)].data.ptr;
    if (who == nullptr) newcomers = true;
    if (who == &addresses_ && addresses_.changed()) service_.addresses_changed();
    const auto is_it = [who](const Session& s) { return &s == who; };
    const auto session = std::find_if(sessions_.begin(), sessions_.end(), is_it);
    if (session != sessions_.end() && !survives(*session)) sessions_.erase(session);
  }
  if (newcomers) accept_all();
  Output due;
  service_.take_due(std::chrono::steady_clock::now(), due);
  publish(due.notices);
}

// Without memory for an answer a client is dropped, as it would be by a daemon that restarts.
bool Server::survives(Session& session) noexcept {
  try {
    return advance(session);
  } catch (const std::exception&) {
    return false;
  }
}

void Server::take(std::span<const dataplane::Event> events) {
  Output output;
  service_.take(events, output);
  publish(output.notices);
}

void Server::accept_all() {
  for (std::size_t i = 0; i < kMaxSessions; ++i) {
    try {
      auto caller = listener_.accept();
      if (!caller) return;
      if (caller->allowed && sessions_.size() < kMaxSessions) accept_one(std::move(*caller));
    } catch (const std::bad_alloc&) {
      continue;  // hung up on
    }
  }
}

void Server::accept_one(UnixListener::Caller caller) {
  Session& session = sessions_.emplace_back();
  session.fd = std::move(caller.fd);
  session.trusted = caller.trusted;
  if (caller.trusted) session.client.keys = Keys::with;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = &session;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, session.fd.get(), &event) != 0) sessions_.pop_back();
}

bool Server::advance(Session& session) {
  bool gone = false;
  for (int turn = 0; turn < kDatagramsPerTurn && !gone; ++turn)
    if (!flush(session, gone) || !read_one(session, gone)) break;
  if (!gone) static_cast<void>(flush(session, gone));
  return !gone && wait_for_more(session);
}

bool Server::wait_for_more(Session& session) {
  const bool idle =
      session.replies.empty() && !session.dump && !session.memory && session.untold.empty();
  epoll_event event{};
  event.events = idle ? EPOLLIN : EPOLLOUT;
  event.data.ptr = &session;
  return ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, session.fd.get(), &event) == 0;
}

bool Server::flush(Session& session, bool& gone) {
  if (!tell_keeper(session, gone)) return false;
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
  const std::span<std::uint8_t> buffer = buffer_.bytes();
  const std::span room(reinterpret_cast<char*>(buffer.data()), buffer.size());
  std::vector<UniqueFd> descriptors;
  const ssize_t got = receive_with(session.fd.get(), room, descriptors, MSG_DONTWAIT);
  if (got <= 0) {
    gone = got == 0 || (errno != EAGAIN && errno != EINTR);
    return false;
  }
  UniqueFd descriptor;
  if (!descriptors.empty()) descriptor = std::move(descriptors.front());
  const std::span<std::uint8_t> datagram = buffer.first(static_cast<std::size_t>(got));
  front::Message message{};
  if (datagram.size() == sizeof message) {
    std::memcpy(&message, datagram.data(), sizeof message);
    if (message.header.nlmsg_len == sizeof message && message.header.nlmsg_type == front::kKeep) {
      take_keeper(session, message, std::move(descriptor));
      return true;
    }
    if (message.header.nlmsg_len == sizeof message && message.header.nlmsg_type >= front::kState &&
        message.header.nlmsg_type <= front::kBind) {
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
  } else if (message.header.nlmsg_type == front::kNatt) {
    answer.error = descriptor ? share_port(descriptor) : EBADF;
  } else {
    answer.error = may_share(message);
  }
  Datagram out;
  out.append({reinterpret_cast<const std::uint8_t*>(&answer), sizeof answer});
  session.replies.push_back(std::move(out));
}

// Without it there is no ESP in UDP for this IKE daemon: worth a line of the log.
int Server::share_port(const UniqueFd& socket) noexcept {
  std::string why;
  int error = EINVAL;
  try {
    dataplane_.share_port(socket.get());
    log_.info("sharing UDP " + ifaces::shared_endpoint(socket.get()).str() + " with an IKE daemon");
    return 0;
  } catch (const std::system_error& e) {
    error = e.code().category() == std::generic_category() ? e.code().value() : EINVAL;
    why = e.what();
  } catch (const std::exception& e) {
    why = e.what();
  }
  if (error == EBUSY) return error;  // for a moment as a rule: espalier exec tries again
  log_.error("no ESP in UDP for an IKE daemon, its port cannot be shared: " + why);
  return error;
}

int Server::may_share(const front::Message& message) noexcept {
  sockaddr_storage name{};
  std::memcpy(&name, message.name.data(), message.name.size());
  try {
    return dataplane_.may_share(ifaces::Endpoint::from(name)) ? 0 : ENOENT;
  } catch (const std::exception& e) {
    log_.error(std::string("an IKE daemon will find its port taken: ") + e.what());
    return EADDRINUSE;
  }
}

namespace {

// False: not now, or the client is gone; errno says which.
template <class Message>
bool tell(int socket, const Message& message, int descriptor) {
  const std::span bytes(reinterpret_cast<const char*>(&message), sizeof message);
  return send_with(socket, bytes, descriptor, MSG_DONTWAIT) >= 0;
}

front::Hold hold_message(const std::string& device) {
  front::Hold hold{};
  hold.header.nlmsg_len = sizeof hold;
  hold.header.nlmsg_type = front::kHold;
  device.copy(hold.device.data(), hold.device.size() - 1);
  return hold;
}

}  // namespace

void Server::take_keeper(Session& session, front::Message message, UniqueFd memory) {
  message.error = message.version != front::kVersion ? EPROTO : session.trusted ? 0 : EPERM;
  session.memory = message;
  if (message.error != 0) return;
  if (memory) take_back(std::move(memory));
  session.keeper = true;
  session.memory->groups = static_cast<std::uint32_t>(keep_.holds().size());
  for (const auto& [device, queue] : keep_.holds()) session.untold.insert(device);
}

// In its own time: one that is busy, or stopped, misses nothing.
bool Server::tell_keeper(Session& session, bool& gone) {
  const auto failed = [&gone] {
    gone = errno != EAGAIN && errno != EINTR && errno != ENOBUFS;
    return false;
  };
  if (session.memory) {
    const int memory = session.memory->error == 0 ? keep_.fd() : -1;
    if (!tell(session.fd.get(), *session.memory, memory)) return failed();
    session.memory.reset();
  }
  for (auto& untold = session.untold; !untold.empty(); untold.erase(untold.begin())) {
    const auto held = keep_.holds().find(*untold.begin());
    const int queue = held == keep_.holds().end() ? -1 : held->second.get();
    if (!tell(session.fd.get(), hold_message(*untold.begin()), queue)) return failed();
  }
  return true;
}

void Server::tell_soon(Session& session) {
  bool gone = false;
  static_cast<void>(tell_keeper(session, gone));
  // One that is gone is found so by serve().
  static_cast<void>(wait_for_more(session));
}

// Devices first, policies last: at no moment can a packet find a way in the clear.
void Server::take_back(UniqueFd memory) {
  std::vector<Keep::Record> records;
  bool moved = false;
  try {
    records = keep_.adopt(std::move(memory), [&] {
      moved = true;
      service_.put_all();
      devices_.put_all();
    });
  } catch (const std::exception& e) {
    log_.warning(std::string("nothing comes back of what an espalierd before this one had: ") +
                 e.what());
    return;
  }
  if (!moved) return;
  std::size_t devices = 0;
  std::size_t lost = 0;
  for (const Keep::Record& record : records)
    if (record.kind == Keep::Kind::device) ++(devices_.restore(record) ? devices : lost);
  Output output;
  const Service::Restored restored = service_.restore(records, output);
  publish(output.notices);
  lost += restored.lost;
  if (!records.empty())
    log_.info("back from an espalierd before this one: " + std::to_string(devices) + " devices, " +
              std::to_string(restored.states) + " states, " + std::to_string(restored.policies) +
              " policies" + (lost == 0 ? "" : "; " + std::to_string(lost) + " not"));
  front::Message message{};
  message.header.nlmsg_len = sizeof message;
  message.header.nlmsg_type = front::kKeep;
  message.version = front::kVersion;
  for (Session& session : sessions_) {
    if (!session.keeper) continue;
    if (!session.memory) session.memory = message;
    tell_soon(session);
  }
}

void Server::tell_hold(const std::string& device) {
  for (Session& session : sessions_) {
    if (!session.keeper) continue;
    session.untold.insert(device);
    tell_soon(session);
    // Nobody reads there: hung up on, which serve() notices.
    if (session.untold.size() > kMaxUntold) ::shutdown(session.fd.get(), SHUT_RDWR);
  }
}

void Server::publish(const std::vector<Notice>& notices) {
  for (const Notice& notice : notices)
    for (const Session& session : sessions_) {
      if ((session.client.groups >> (notice.group - 1) & 1U) == 0) continue;
      if (notice.keys.value_or(session.client.keys) != session.client.keys) continue;
      const std::span<const std::uint8_t> bytes = notice.message.bytes();
      // Whoever does not take it loses it.
      static_cast<void>(
          ::send(session.fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
    }
}

}  // namespace espalier::tools::xfrm
