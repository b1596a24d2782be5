// The control socket: any bytes on a connection to the real server, and behind it the real
// operations on a data plane in a network namespace of its own (without the rights for one,
// `status` alone). What is answered is lines of JSON, and a flush leaves nothing.
//
//   input: how many bytes are written at a time (1; 0: all), bytes
#include <sched.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <system_error>

#include "crypto/registry.h"
#include "tests/fuzz/input.h"
#include "tools/control_api.h"
#include "tools/control_server.h"
#include "tools/device_pool.h"
#include "tools/log.h"
#include "tools/status.h"

namespace {

using namespace espalier;
using namespace espalier::tools;
using espalier::fuzz::Input;
using espalier::fuzz::require;
using nlohmann::json;

// One for the whole run: a data plane has threads.
struct System {
  System() {
    std::array<char, 32> name{"/tmp/espalier-fuzz.XXXXXX"};
    if (::mkdtemp(name.data()) == nullptr)
      throw std::system_error(errno, std::generic_category(), "mkdtemp");
    folder = name.data();
    crypto::initialise();
    server.emplace(folder / "control.sock");
    server->on("status", [](const json&) {
      return status_json(DaemonStatus{}, std::chrono::steady_clock::now());
    });
    if (::unshare(CLONE_NEWNET) != 0) return;
    netlink.emplace();
    netlink->set_link("lo", {});
    netlink->add_address("lo", *ifaces::Prefix::parse("192.0.2.1"));
    registry.emplace("openssl");
    dataplane::Dataplane::Options options;
    options.io = "epoll";
    options.workers = 1;
    plane.emplace(*registry, options);
    devices.emplace(*plane, *netlink, log);
    api.emplace(*server, *plane, *devices, *netlink);
  }
  ~System() {
    server.reset();
    std::filesystem::remove_all(folder);
  }
  System(const System&) = delete;
  System& operator=(const System&) = delete;

  std::filesystem::path folder;
  Log log{STDERR_FILENO, LogLevel::error};
  std::optional<ControlServer> server;
  std::optional<crypto::Registry> registry;
  std::optional<dataplane::Dataplane> plane;
  std::optional<ifaces::Netlink> netlink;
  std::optional<DevicePool> devices;
  std::optional<ControlApi> api;
};

System& the_system() {
  static System made;
  return made;
}

class Client {
 public:
  explicit Client(System& system)
      : system_(system), fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)) {
    const std::string path = system.folder / "control.sock";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::memcpy(&address.sun_path[0], path.data(), path.size());
    require(::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0,
            "the server is gone");
  }

  // False: it has hung up.
  bool say(std::span<const std::uint8_t> bytes) {
    const bool sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL) >= 0;
    hear();
    return sent;
  }
  // The reply to one request, on a connection without others.
  json ask(const std::string& line) {
    heard_.clear();
    say({reinterpret_cast<const std::uint8_t*>(line.data()), line.size()});
    return json::parse(heard_, nullptr, false);
  }
  [[nodiscard]] const std::string& heard() const noexcept { return heard_; }

 private:
  // Serves until there is nothing more to hear.
  void hear() {
    for (int idle = 0; idle < 2; ++idle) {
      system_.server->serve();
      std::array<char, 4096> buffer;
      ssize_t n = 0;
      while ((n = ::recv(fd_.get(), buffer.data(), buffer.size(), 0)) > 0) {
        heard_.append(buffer.data(), static_cast<std::size_t>(n));
        idle = 0;
      }
    }
  }

  System& system_;
  ifaces::UniqueFd fd_;
  std::string heard_;
};

void check_replies(const std::string& heard) {
  for (std::size_t at = 0; at < heard.size();) {
    const std::size_t end = heard.find('\n', at);
    require(end != std::string::npos, "half a reply");
    const json reply =
        json::parse(heard.begin() + static_cast<std::ptrdiff_t>(at),
                    heard.begin() + static_cast<std::ptrdiff_t>(end), nullptr, false);
    require(reply.is_object() && reply.contains("version"), "a reply that is no JSON object");
    at = end + 1;
  }
}

// Every input meets the same daemon, so it must be the same again.
void check_flushed(System& system) {
  if (!system.api) return;
  Client client(system);
  const json flushed = client.ask(R"({"version":1,"op":"flush","what":"all"})"
                                  "\n");
  require(flushed.value("ok", false), "a flush that is refused");
  const json sas = client.ask(R"({"version":1,"op":"sa-count"})"
                              "\n");
  const json vtis = client.ask(R"({"version":1,"op":"vti-list"})"
                               "\n");
  require(sas.value("count", 1) == 0 && vtis["vtis"].empty(), "a flush that leaves something");
  system.api->take(system.plane->take_events());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  System& system = the_system();
  Input input(data, size);
  const std::size_t piece = input.byte();
  {
    Client client(system);
    bool open = true;
    while (open && !input.empty()) open = client.say(input.bytes(piece == 0 ? size : piece));
    check_replies(client.heard());
  }
  check_flushed(system);
  return 0;
}
