// The data plane as its owner sees it: devices, policies and SAs go in, workers move the packets,
// counters come out. Both the static configuration and an IKE daemon fill the same tables.
//
// Thread safety: all calls from one thread (the control thread); the workers are inside. A
// change is visible to the workers when the call returns; what was removed is no longer in use by
// then. Errors: std::system_error (a system call, named) or std::invalid_argument (what to write
// instead); after either nothing has changed.
#pragma once

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "crypto/registry.h"
#include "dataplane/drop.h"
#include "dataplane/event.h"
#include "dataplane/explain.h"
#include "dataplane/types.h"
#include "ifaces/tun.h"

namespace espalier::dataplane {

struct Traffic {
  std::uint64_t packets = 0;
  std::uint64_t bytes = 0;  // inner packets
};

struct DeviceStatus {
  DeviceId id{};
  std::string name;
  std::uint32_t ikey = 0, okey = 0;
  ifaces::IpAddress local, remote;  // any: a wildcard
  bool carrier = true;
  Traffic rx, tx;               // rx: towards this host, as in `ip -s link`
  std::uint64_t rx_errors = 0;  // packets of its SAs that were dropped
  std::uint64_t tx_no_sa = 0;   // no policy or SA; `ip -s tunnel` calls them carrier errors
  std::uint64_t tx_loops = 0;   // … and these collisions
};

struct SaStatus {
  SaId id{};
  Direction direction{};
  Spi spi{};
  std::uint32_t reqid = 0;
  std::string name;
  Encapsulation encapsulation{};
  ifaces::Endpoint local, peer;  // the peer as it is now
  crypto::Suite suite{};
  std::string_view backend;
  bool esn = false;
  std::uint32_t window_bits = 0;
  Traffic traffic;
  std::uint64_t seq = 0;  // out: the next number; in: the highest one seen
  std::uint64_t seq_limit = 0;
  std::uint32_t path_mtu = 0;  // out: bytes of outer IP packet; 0: no limit is known
  std::array<std::uint64_t, kDropCount> drops{};  // those that can be laid to this SA
  std::optional<std::chrono::steady_clock::time_point> last_packet;
  std::chrono::steady_clock::time_point added;
  Lifetime lifetime;
  bool expired = false;  // a hard limit was reached
};

struct SaProgress {
  Traffic traffic;
  Direction direction{};
  std::uint64_t seq = 0;  // out: the next number; in: the highest one seen
};

struct PolicyStatus {
  PolicyId id{};
  PolicySpec spec;
};

class Dataplane {
 public:
  struct Options {
    std::string io = "auto";  // auto, io_uring, epoll
    unsigned workers = 1;
    bool pin = false;                                // each worker to a processor of its own
    ifaces::TunOffloads offloads{true, true, true};  // as wished; cut to what the kernel has
    bool udp_gso = true;
  };

  // Starts the workers. `registry` must outlive this.
  Dataplane(const crypto::Registry& registry, const Options& options);
  ~Dataplane();  // stops the workers, closes devices and sockets
  Dataplane(const Dataplane&) = delete;
  Dataplane& operator=(const Dataplane&) = delete;

  // For the start line of the log: "io_uring (multishot …), TUN TSO4 TSO6 USO, UDP GSO 128".
  [[nodiscard]] std::string engine() const;
  [[nodiscard]] unsigned workers() const noexcept;

  // Creates the TUN and reads from it. Refuses a second device of the same name.
  DeviceId add_device(const DeviceSpec& spec);
  void remove_device(DeviceId id);
  // Carriers (DeviceSpec::carrier_follows_sa) come up with the SA or trap that needs them. They go
  // down here, when the owner has made all the changes that belong together: an SA that is replaced
  // is no reason for routing daemons to withdraw routes.
  void settle_carriers();

  PolicyId add_policy(const PolicySpec& spec);
  void remove_policy(PolicyId id);

  // Opens the outer socket that it needs, shared by the SAs of the same local end point. Refuses:
  // an SPI below 256; an inbound (SPI, local address) that exists; a key and salt that any SA has.
  // An outbound and an inbound SA of one reqid share what is known of the peer's address. Outbound,
  // a key that an SA had before goes on behind the numbers that it has used, whatever `next_seq`
  // is.
  SaId add_sa(SaSpec spec);
  void remove_sa(SaId id);
  // An SPI was given out for an SA that is being agreed upon: what comes for it waits until
  // add_sa() brings the keys, a little while and not too much of it (early_packets.h).
  void expect_sa(Spi spi, const ifaces::IpAddress& local);
  // To be called when the keys are there as well: it wakes who holds packets.
  void expect_no_more(Spi spi, const ifaces::IpAddress& local);
  // Live: no packet is lost, no number forgotten. Throws std::invalid_argument for an unknown SA.
  void update_sa(SaId id, const SaUpdate& update);
  [[nodiscard]] std::optional<SaId> find_sa(Direction direction, Spi spi,
                                            const ifaces::IpAddress& destination) const;
  // What would happen to a packet that is routed to `device`. Empty: it is none of ours.
  [[nodiscard]] std::optional<Explanation> explain(const std::string& device,
                                                   std::span<const std::uint8_t> packet) const;
  // Sends `count` dummy packets (RFC 4303 §2.6, next header 59) of `length` payload bytes under an
  // outbound SA.
  void send_dummies(SaId id, unsigned count, unsigned length);

  // While one lives, no call waits for the workers, and what was removed is freed when the
  // outermost ends: 100,000 changes cost one grace period. Not a transaction.
  class Batch {
   public:
    explicit Batch(Dataplane& dataplane);
    ~Batch();
    Batch(const Batch&) = delete;
    Batch& operator=(const Batch&) = delete;

   private:
    Dataplane& dataplane_;
  };

  // Readable when there are events to take; to be polled by the owner.
  [[nodiscard]] int event_fd() const noexcept;
  // In the order of their making, from a queue of fixed size; what did not fit is counted in
  // events_lost(). Time limits are looked at here and in next_expiry().
  [[nodiscard]] std::vector<Event> take_events();
  [[nodiscard]] std::uint64_t events_lost() const noexcept;
  // When the next time limit of an SA is due: take_events() is to be called then.
  [[nodiscard]] std::optional<std::chrono::steady_clock::time_point> next_expiry() const;
  // Outbound: numbers up to `limit` may be used from now on.
  void extend_limit(SaId id, std::uint64_t limit);

  // The part of sa() that moves with every packet; quickly.
  [[nodiscard]] std::optional<SaProgress> progress(SaId id) const;

  // The socket of an IKE daemon on the UDP port `local` (ifaces/ike_socket.h), which stays ours and
  // open as long as this lives; it may have been asked for before. Until it is, IKE's datagrams are
  // dropped (no_ike). `mark`: SO_MARK. Throws std::system_error, or std::runtime_error.
  [[nodiscard]] int ike_socket(const ifaces::Endpoint& local, std::uint32_t mark);

  // The UDP socket of an IKE daemon that has asked the kernel for UDP_ENCAP: from now on its port
  // is shared (ifaces/shared_port.h), by the SAs too that had sockets of their own there. When the
  // daemon ends, ESP goes on. The descriptor is not kept. Throws std::system_error, or
  // std::invalid_argument.
  void share_port(int fd);
  // Local ones, that SAs use or IKE daemons share.
  [[nodiscard]] std::set<std::uint16_t> udp_ports() const;
  // An IKE daemon is about to bind a UDP socket to `local`. If that port is ours and may be shared:
  // true, and ifaces::let_share() lets it in. Throws as above.
  [[nodiscard]] bool may_share(const ifaces::Endpoint& local);

  // Asks the kernel again about links that have refused a packet for its length; take_events() does
  // so when they do. To be called about once a second.
  void refresh_paths();

  // Sends one 0xFF (RFC 3948 §2.3) to every known peer of UDP SAs to which nothing was sent for
  // `idle`, an earlier one of these included.
  void send_keepalives(std::chrono::seconds idle);

  [[nodiscard]] std::vector<DeviceStatus> devices() const;
  [[nodiscard]] std::vector<PolicyStatus> policies() const;
  [[nodiscard]] std::vector<SaStatus> sas() const;
  // A page of them: at most `count`, the first ones behind `after`, by id. Who goes on behind the
  // last one gets everything that stays there meanwhile once.
  [[nodiscard]] std::vector<PolicyStatus> policies(PolicyId after, std::size_t count) const;
  [[nodiscard]] std::vector<SaStatus> sas(SaId after, std::size_t count) const;
  [[nodiscard]] std::size_t sa_count() const noexcept;
  [[nodiscard]] std::optional<SaStatus> sa(SaId id) const;
  // Totals since the start, indexed by Drop; SAs and devices that are gone included.
  [[nodiscard]] std::array<std::uint64_t, kDropCount> drops() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace espalier::dataplane
