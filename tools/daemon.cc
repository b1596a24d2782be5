#include "tools/daemon.h"

#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <functional>
#include <set>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "crypto/secret.h"
#include "tools/exec/front.h"
#include "tools/parallel.h"
#include "tools/xfrm/server.h"

namespace espalier::tools {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// IKE daemons count their reqids from 1 or from 16384; ours stay out of their way.
constexpr std::uint32_t kFirstReqid = 0x40000000;

// At a glance, and in one line: whoever wants more asks for sa-list, page by page.
constexpr std::size_t kMostSasInStatus = 1000;

constexpr seconds kPatience{2};
constexpr milliseconds kRetry{10};
constexpr seconds kWatch{5};
constexpr seconds kPaths{1};

[[noreturn]] void fail(const std::string& what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// Which backend seals each suite: "ipsec-mb (VAES + AVX-512)" if it is one for all; of another the
// suites that the first one lacks.
// It must outlive a reboot, where the control socket's folder may not.
std::filesystem::path used_keys_file(const Globals& globals) {
  constexpr std::string_view kName = "used-keys";
  if (globals.state_dir) return *globals.state_dir / kName;
  if (globals.control == Globals().control)
    return std::filesystem::path("/var/lib/espalier") / kName;
  return std::filesystem::path(globals.control).concat(".used-keys");
}

std::string crypto_summary(const crypto::Registry& registry) {
  std::vector<std::pair<std::string, std::string>> used;  // backend, suites
  for (const crypto::SuiteInfo& suite : crypto::suites()) {
    const crypto::Backend* backend = registry.backend(suite.suite);
    if (backend == nullptr) continue;
    const auto known = std::find_if(used.begin(), used.end(),
                                    [&](const auto& u) { return u.first == backend->name(); });
    if (known == used.end())
      used.emplace_back(backend->name(), suite.name);
    else
      known->second.append(" ").append(suite.name);
  }
  std::string out;
  for (const auto& [name, suites] : used) {
    const bool first = out.empty();
    out.append(first ? "" : ", ").append(name);
    for (const crypto::BackendReport& report : registry.reports())
      if (report.name == name) out += " (" + report.detail + ")";
    if (!first) out += " for " + suites;
  }
  return out;
}

}  // namespace

ifaces::UniqueFd block_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set, number);
  if (const int error = ::pthread_sigmask(SIG_BLOCK, &set, nullptr); error != 0) {
    errno = error;
    fail("pthread_sigmask");
  }
  ifaces::UniqueFd fd(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  if (!fd) fail("signalfd");
  return fd;
}

Daemon::Daemon(DaemonOptions options, Log& log)
    : options_(std::move(options)),
      log_(log),
      config_(load()),
      started_(Clock::now()),
      next_reqid_(kFirstReqid) {
  const Globals& globals = config_.globals;
  crypto::initialise();
  registry_.emplace(globals.crypto);
  if (!globals.group.empty()) group_ = group_id(globals.group);
  control_.emplace(globals.control,
                   group_);  // early: a second daemon ends here, before it touches more
  control_->on("status", [this](const nlohmann::json&) {
    return status_json(status(), std::chrono::steady_clock::now());
  });
  Prepared prepared = prepare_all(config_);

  dataplane::Dataplane::Options plane;
  plane.io = globals.io;
  plane.workers =
      globals.workers != 0 ? globals.workers : std::max(1U, std::thread::hardware_concurrency());
  plane.pin = globals.pin;
  plane.offloads = {globals.offloads.tso4, globals.offloads.tso6, globals.offloads.uso};
  plane.udp_gso = globals.offloads.gso;
  dataplane_.emplace(*registry_, plane);
  devices_.emplace(*dataplane_, netlink_, log_);
  site_.emplace(Site{*dataplane_, netlink_, *devices_, log_});
  api_.emplace(*control_, *dataplane_, *devices_, netlink_);
  UsedKeys& used_keys = api_->set_used_keys(used_keys_file(globals));
  event_log_.emplace(log_, [this](dataplane::SaId id) {
    const auto sa = dataplane_->sa(id);
    return sa ? sa->name : std::string();
  });
  add_operations();
  open_xfrm(used_keys);
  log_start();
  if (!crypto::secrets_are_locked())
    log_.warning(
        "keys may be swapped to disk: the memory for them could not be locked; give "
        "espalierd CAP_IPC_LOCK, or LimitMEMLOCK=infinity (ulimit -l unlimited)");
  open_clients(prepared);
  try {
    for (const Conn& conn : config_.conns) {
      Slot& slot = conns_.at(conn.name);
      PreparedConn one = std::move(prepared.at(conn.name));
      prepared.erase(conn.name);
      slot.running = make(conn, globals, std::move(one), started_ + kPatience);
      log_up(*slot.running);
    }
  } catch (...) {
    close_clients(prepared);
    throw;
  }
  log_clients();
  if (!config_.remarks.empty())
    log_.info(std::to_string(config_.remarks.size()) +
              " options of IKE ignored: keys come from files here (`espalier check` names them)");
  look_at_ = keepalive_at_ = watch_at_ = Clock::now();
}

Daemon::~Daemon() {
  std::vector<std::function<void()>> closes;
  for (auto& [name, slot] : conns_)
    if (slot.running)
      if (auto close = slot.running->stop()) closes.push_back(std::move(close));
  in_parallel(closes.size(), [&closes](std::size_t i) { closes[i](); });
}

// Thousands of state files, each synced several times.
void Daemon::open_clients(Prepared& prepared) const {
  std::vector<PreparedConn*> clients;
  for (auto& entry : prepared)
    if (entry.second.identity.conn.is_client) clients.push_back(&entry.second);
  try {
    in_parallel(clients.size(), [&](std::size_t i) {
      clients[i]->keeper = open_keeper(clients[i]->identity, log_);
    });
  } catch (...) {
    close_clients(prepared);
    throw;
  }
}

// Gives back what those had reserved that never came up.
void Daemon::close_clients(Prepared& prepared) {
  for (auto& entry : prepared)
    if (auto& keeper = entry.second.keeper) keeper->close(keeper->first(), keeper->received());
}

Config Daemon::load() const {
  Config config = options_.config.empty() ? Config() : load_config(options_.config);
  Globals& globals = config.globals;
  if (options_.io) globals.io = *options_.io;
  if (options_.crypto) globals.crypto = *options_.crypto;
  if (options_.log) globals.log = *options_.log;
  if (options_.workers) globals.workers = *options_.workers;
  if (options_.offloads) globals.offloads = *options_.offloads;
  if (options_.control) globals.control = *options_.control;
  if (options_.group) globals.group = *options_.group;
  log_.set_level(parse_log_level(globals.log).value_or(LogLevel::info));
  return config;
}

void Daemon::log_start() const {
  const unsigned workers = dataplane_->workers();
  log_.info(std::string("espalierd ") + ESPALIER_VERSION + ": crypto " +
            crypto_summary(*registry_) + "; engine " + dataplane_->engine() + "; " +
            std::to_string(workers) + (workers == 1 ? " worker" : " workers"));
}

void Daemon::log_up(const RunningConn& conn) {
  const std::string& name = conn.identity().conn.name;
  const std::string text = "conn " + name + " up: " + conn.summary();
  // Thousands of clients: log_clients() says how many.
  if (conn.identity().conn.is_client)
    log_.debug(text);
  else
    log_.info(text);
  api_->publish({{"event", "conn-up"}, {"conn", name}});
}

void Daemon::log_clients() const {
  std::map<std::string, std::size_t> up;
  for (const auto& [name, slot] : conns_)
    if (slot.running && slot.running->identity().conn.is_client)
      ++up[name.substr(0, name.find('/'))];
  for (const auto& [name, count] : up)
    log_.info("conn " + name + " up: " + std::to_string(count) +
              (count == 1 ? " client" : " clients"));
}

Daemon::Prepared Daemon::prepare_all(const Config& config) {
  Prepared out;
  for (const Conn& conn : config.conns) {
    Slot& slot = conns_[conn.name];
    if (slot.reqid == 0) slot.reqid = next_reqid_++;
    out.emplace(conn.name, prepare(conn, config.globals, netlink_, slot.reqid));
  }
  return out;
}

DaemonStatus Daemon::status() const {
  DaemonStatus out;
  out.config = options_.config.string();
  out.engine = dataplane_->engine();
  out.workers = dataplane_->workers();
  out.crypto = registry_->reports();
  out.started = started_;
  for (const Conn& conn : config_.conns) {
    const Slot& slot = conns_.at(conn.name);
    if (slot.running) {
      out.conns.push_back(slot.running->status());
      continue;
    }
    ConnStatus failed = describe(conn);
    failed.error = slot.down ? "taken down; espalier conn up brings it up again" : slot.error;
    failed.since = slot.failed_at;
    out.conns.push_back(std::move(failed));
  }
  out.devices = dataplane_->devices();
  out.sas = dataplane_->sas(dataplane::SaId{}, kMostSasInStatus);
  out.sa_count = dataplane_->sa_count();
  out.drops = dataplane_->drops();
  return out;
}

// ------------------------------------------------------------------------------------- reload

void Daemon::reload() noexcept {
  if (options_.config.empty()) {
    log_.info("nothing to reload: started without --config");
    return;
  }
  try {
    Config next = load();
    Prepared prepared = prepare_all(next);
    take_over(std::move(next), std::move(prepared));
  } catch (const std::exception& e) {
    log_.error(std::string("not reloaded, everything runs on as before: ") + e.what());
  }
  std::set<std::string_view> names;
  for (const Conn& conn : config_.conns) names.insert(conn.name);
  std::erase_if(conns_, [&names](const auto& entry) { return !names.contains(entry.first); });
}

void Daemon::take_over(Config next, Prepared prepared) {
  note_fixed(next.globals);
  std::map<std::string, DeviceLease> holds;
  std::map<std::string, Conn> before;
  std::size_t untouched = 0;
  stop_removed(prepared);
  // All that go, before the first that comes: they may trade devices, SPIs and routes.
  for (auto entry = prepared.begin(); entry != prepared.end();) {
    const auto& [name, conn] = *entry;
    Slot& slot = conns_.at(name);
    std::unique_ptr<RunningConn>& running = slot.running;
    if (running) slot.device_gone = running->device_is_gone();
    if (running && running->identity() == conn.identity && !slot.device_gone) {
      ++untouched;
      entry = prepared.erase(entry);
      continue;
    }
    if (running) {
      if (!slot.device_gone && same_device(running->device_spec(), conn.compiled.device))
        holds[name] = running->device().share();
      before[name] = running->identity().conn;
      running.reset();
    }
    ++entry;
  }
  config_ = std::move(next);
  const Clock::time_point until = Clock::now() + kPatience;
  for (const Conn& conn : config_.conns) {
    const auto found = prepared.find(conn.name);
    if (found == prepared.end()) continue;
    const auto old = before.find(conn.name);
    start(conn, std::move(found->second), std::move(holds[conn.name]),
          old == before.end() ? nullptr : &old->second, until);
  }
  log_clients();
  log_.info("reloaded " + options_.config.string() + ": " + std::to_string(untouched) +
            " unchanged, " + std::to_string(prepared.size()) + " new or changed");
}

void Daemon::stop_removed(const Prepared& prepared) {
  for (auto& [name, slot] : conns_) {
    if (prepared.contains(name) || !slot.running) continue;
    slot.running.reset();
    log_.info("conn " + name + " down: no longer in the configuration");
    api_->publish({{"event", "conn-down"}, {"conn", name}});
  }
}

std::unique_ptr<RunningConn> Daemon::make(const Conn& conn, const Globals& globals,
                                          PreparedConn prepared, Clock::time_point until) {
  // NOLINTNEXTLINE(clang-analyzer-deadcode.DeadStores): read at the second try
  const std::uint32_t reqid = prepared.compiled.sa_out.reqid;
  for (;;) {
    try {
      return std::make_unique<RunningConn>(*site_, std::move(prepared));
    } catch (const std::system_error& e) {
      const bool busy =
          e.code() == std::errc::device_or_resource_busy || e.code() == std::errc::address_in_use;
      if (!busy || Clock::now() >= until) throw;
    }
    std::this_thread::sleep_for(kRetry);
    prepared = prepare(conn, globals, netlink_, reqid);
  }
}

void Daemon::start(const Conn& conn, PreparedConn prepared, DeviceLease hold, const Conn* before,
                   Clock::time_point until) {
  Slot& slot = conns_.at(conn.name);
  if (slot.down) return;
  try {
    slot.running = make(conn, config_.globals, std::move(prepared), until);
  } catch (const std::exception& e) {
    slot.error = e.what();
    slot.failed_at = Clock::now();
    log_.error("conn " + conn.name + ": " + slot.error);
  }
  if (!slot.running && before != nullptr) {
    try {
      slot.running = make(*before, config_.globals,
                          prepare(*before, config_.globals, netlink_, slot.reqid), until);
      log_.warning("conn " + conn.name + ": runs on as it was before the change");
    } catch (const std::exception& e) {
      log_.error("conn " + conn.name + ": not as before, either: " + e.what());
    }
  }
  hold.release();
  slot.device_gone = false;
  if (slot.running) log_up(*slot.running);
}

void Daemon::note_fixed(const Globals& next) const {
  const Globals& now = config_.globals;
  const auto note = [this](const char* option, bool changed) {
    if (changed) log_.warning(std::string(option) + " has changed: taken at the next start");
  };
  note("io", next.io != now.io);
  note("crypto", next.crypto != now.crypto);
  note("workers", next.workers != now.workers);
  note("pin", next.pin != now.pin);
  note("offloads", next.offloads != now.offloads);
  note("control", next.control != now.control);
  note("group", next.group != now.group);
}

// ------------------------------------------------------------------------------ control socket

void Daemon::add_operations() {
  control_->on("conn-up", [this](const nlohmann::json& request) { return conn_up(request); });
  control_->on("conn-down", [this](const nlohmann::json& request) { return conn_down(request); });
}

const Conn& Daemon::conn_of(const nlohmann::json& request) const {
  Fields fields(request);
  const std::string name = fields.text("name").value_or("");
  fields.done();
  const auto found = std::find_if(config_.conns.begin(), config_.conns.end(),
                                  [&](const Conn& conn) { return conn.name == name; });
  if (found != config_.conns.end()) return *found;
  std::string known;
  for (const Conn& conn : config_.conns) known.append(known.empty() ? "" : ", ").append(conn.name);
  throw std::invalid_argument("there is no conn '" + name + "'; the configuration has " +
                              (known.empty() ? "none" : known));
}

nlohmann::json Daemon::conn_up(const nlohmann::json& request) {
  const Conn& conn = conn_of(request);
  Slot& slot = conns_.at(conn.name);
  if (slot.running && slot.device_gone) slot.running.reset();
  if (slot.running) return {{"changed", false}};
  PreparedConn prepared = prepare(conn, config_.globals, netlink_, slot.reqid);
  slot.running = make(conn, config_.globals, std::move(prepared), Clock::now());
  slot.down = slot.device_gone = false;
  log_up(*slot.running);
  return {{"changed", true}};
}

nlohmann::json Daemon::conn_down(const nlohmann::json& request) {
  const Conn& conn = conn_of(request);
  Slot& slot = conns_.at(conn.name);
  const bool was_up = slot.running != nullptr;
  slot.running.reset();
  slot.down = true;
  slot.failed_at = Clock::now();
  if (!was_up) return {{"changed", false}};
  log_.info("conn " + conn.name + " down: by the control socket");
  api_->publish({{"event", "conn-down"}, {"conn", conn.name}});
  return {{"changed", true}};
}

// --------------------------------------------------------------------------------------- loop

void Daemon::run(const ifaces::UniqueFd& signals) {
  const ifaces::UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
  if (!epoll) fail("epoll_create1");
  for (const int fd :
       {signals.get(), control_->fd(), dataplane_->event_fd(), xfrm_ ? xfrm_->fd() : -1}) {
    if (fd < 0) continue;
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, fd, &event) != 0) fail("epoll_ctl");
  }
  for (;;) {
    const auto wait = std::chrono::ceil<milliseconds>(turn(Clock::now()) - Clock::now());
    std::array<epoll_event, 4> events{};
    const int count = ::epoll_wait(epoll.get(), events.data(), static_cast<int>(events.size()),
                                   static_cast<int>(std::max<std::int64_t>(wait.count(), 0)));
    if (count < 0 && errno != EINTR) fail("epoll_wait");
    for (int i = 0; i < count; ++i) {
      const int fd = events[static_cast<std::size_t>(i)].data.fd;
      if (fd == control_->fd())
        control_->serve();
      else if (fd == dataplane_->event_fd())
        take_events();
      else if (xfrm_ && fd == xfrm_->fd())
        xfrm_->serve();
      else if (!follow_signals(signals))
        return;
    }
  }
}

bool Daemon::follow_signals(const ifaces::UniqueFd& signals) {
  signalfd_siginfo info{};
  while (::read(signals.get(), &info, sizeof info) == ssize_t{sizeof info}) {
    if (info.ssi_signo != SIGHUP) {
      log_.info(info.ssi_signo == SIGINT ? "stopping on SIGINT" : "stopping on SIGTERM");
      return false;
    }
    reload();
  }
  return true;
}

void Daemon::open_xfrm(UsedKeys& used_keys) {
  const std::filesystem::path path = front::socket_path(config_.globals.control);
  try {
    keep_.emplace();
    xfrm_ = std::make_unique<xfrm::Server>(path, *dataplane_, netlink_, *devices_, log_, group_,
                                           *keep_, api_->set_keep(*keep_));
    xfrm_->set_used_keys(used_keys);
    api_->set_xfrm(xfrm_.get());
  } catch (const std::exception& e) {
    log_.warning(std::string("espalier exec will not find this daemon: ") + e.what());
  }
}

void Daemon::take_events() {
  const std::vector<dataplane::Event> events = dataplane_->take_events();
  // Before the others: they remove what has expired.
  for (const dataplane::Event& event : events) event_log_->tell(event, Clock::now());
  api_->take(events);
  if (const std::uint64_t lost = dataplane_->events_lost(); lost != events_lost_)
    api_->publish({{"event", "lost"}, {"count", lost - std::exchange(events_lost_, lost)}});
  if (xfrm_) xfrm_->take(events);
}

void Daemon::watch_devices() {
  for (const std::string& device : devices_->take_gone()) {
    log_.warning("device " + device + ": somebody has deleted it");
    api_->publish({{"event", "device-gone"}, {"device", device}});
  }
  for (auto& [name, slot] : conns_) {
    if (!slot.running || slot.device_gone) continue;
    const std::string& device = slot.running->device_spec().name;
    slot.device_gone = slot.running->device_is_gone();
    if (slot.device_gone)
      log_.error(std::string("conn ")
                     .append(name)
                     .append(": somebody has deleted the device ")
                     .append(device)
                     .append("; reload (SIGHUP) to make it again"));
  }
}

Daemon::Clock::time_point Daemon::turn(Clock::time_point now) {
  dataplane_->settle_carriers();
  if (now >= look_at_) {
    bool busy = false;
    for (auto& [name, slot] : conns_) {
      if (!slot.running) continue;
      slot.running->look(now);
      busy = busy || slot.running->busy();
    }
    look_at_ = now + (busy ? kBusyLook : kIdleLook);
  }
  Clock::time_point next = look_at_;
  if (const seconds idle(config_.globals.keepalive_s); idle > seconds(0)) {
    if (now >= keepalive_at_) {
      dataplane_->send_keepalives(idle);
      keepalive_at_ = now + std::max(seconds(1), idle / 10);
    }
    next = std::min(next, keepalive_at_);
  }
  if (now >= paths_at_) {
    dataplane_->refresh_paths();
    paths_at_ = now + kPaths;
  }
  next = std::min(next, paths_at_);
  if (now >= watch_at_) {
    watch_devices();
    watch_at_ = now + kWatch;
  }
  next = std::min(next, watch_at_);
  if (const auto expiry = dataplane_->next_expiry()) {
    if (now >= *expiry) take_events();
    next = std::min(next, dataplane_->next_expiry().value_or(next));
  }
  if (const auto deadline = xfrm_ ? xfrm_->deadline() : std::nullopt) {
    if (now >= *deadline) xfrm_->serve();
    next = std::min(next, xfrm_->deadline().value_or(next));
  }
  if (const auto deadline = control_->deadline()) {
    if (now >= *deadline) control_->serve();
    next = std::min(next, control_->deadline().value_or(next));
  }
  return next;
}

}  // namespace espalier::tools
