// SAD, SPD and devices from the control thread's side: who owns what, and how the three are joined.
// Policies and SAs are joined by reqid, mark and if_id, policies and devices by mark and if_id, SAs
// and devices by end points (ip-xfrm(8), ip_vti.c); the joins are made here, when something
// changes, so that the workers follow pointers.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "crypto/fingerprint.h"
#include "dataplane/device.h"
#include "dataplane/id_map.h"
#include "dataplane/sa.h"
#include "dataplane/sad.h"
#include "dataplane/spd.h"

namespace espalier::dataplane {

// SAs by what they are keyed with: no two have the same key and salt. The same key with another
// salt gives other nonces (RFC 4106 §4), and is the owner's business.
struct KeyTraits {
  using Key = crypto::Fingerprint;
  static const Key& key(const SaCommon& sa) noexcept { return sa.key_name; }
  static std::uint64_t hash(const Key& k) noexcept {
    std::uint64_t word = 0;
    std::memcpy(&word, k.data(), sizeof word);
    return word;
  }
};

// Outbound: several peers may have chosen one SPI, so this finds a list.
struct SpiTraits {
  using Key = Spi;
  static Key key(const OutboundSa& sa) noexcept { return sa.spi; }
  static std::uint64_t hash(Key spi) noexcept {
    return hash_words(static_cast<std::uint32_t>(spi), 0);
  }
};

// All calls from the control thread. What remove() and its like return is out of the tables, but
// may be in a worker's hands until a grace period has passed; reclaim() is to be called after one.
class Tables {
 public:
  [[nodiscard]] const Sad& sad() const noexcept { return sad_; }

  void add(std::unique_ptr<Device> device);
  void add(std::unique_ptr<Policy> policy);
  void add(std::unique_ptr<OutboundSa> sa, std::span<const std::uint8_t> keymat);
  void add(std::unique_ptr<InboundSa> sa, std::span<const std::uint8_t> keymat);
  std::unique_ptr<Device> remove(DeviceId id);
  std::unique_ptr<Policy> remove(PolicyId id);
  std::unique_ptr<OutboundSa> remove_outbound(SaId id);
  std::unique_ptr<InboundSa> remove_inbound(SaId id);
  // An SPI without keys, and its end; either may be said twice.
  void expect(Spi spi, const ifaces::IpAddress& local);
  void expect_no_more(Spi spi, const ifaces::IpAddress& local);
  // The peer of a reqid's SAs was set to another address.
  void moved(std::uint32_t reqid, const Peer* moved_peer, const ifaces::IpAddress& peer);
  void reclaim() noexcept;

  // A device with the same end points, ikey and if_id: it could not be told from `spec` when a
  // packet arrives. Null if there is none.
  [[nodiscard]] const Device* twin(const DeviceSpec& spec) const noexcept;
  // Is there something for the device to do: an outbound SA, or a policy that traps?
  [[nodiscard]] bool serves(const Device& device) const;
  // Has serves() changed for some device since this was asked last?
  [[nodiscard]] bool serving_changed() noexcept { return std::exchange(serving_changed_, false); }

  [[nodiscard]] Device* device(std::string_view name) const noexcept;
  [[nodiscard]] OutboundSa* outbound(SaId id) const noexcept;
  // One of an SPI; the others, perhaps to other peers, by `same_spi`. Null: there is none.
  [[nodiscard]] OutboundSa* outbound(Spi spi) const noexcept { return by_spi_.find(spi); }
  [[nodiscard]] InboundSa* inbound(SaId id) const noexcept;
  [[nodiscard]] InboundSa* inbound(Spi spi, const ifaces::IpAddress& local) const noexcept;
  [[nodiscard]] bool has_key(std::span<const std::uint8_t> keymat) const;
  // What the SAs of a reqid know of their peer; null if there are none.
  [[nodiscard]] std::shared_ptr<Peer> peer(std::uint32_t reqid,
                                           const ifaces::Endpoint& given) const;

  [[nodiscard]] std::vector<Device*> all_devices() const;
  [[nodiscard]] std::vector<Policy*> all_policies() const;
  [[nodiscard]] std::vector<OutboundSa*> all_outbound() const;
  [[nodiscard]] std::vector<InboundSa*> all_inbound() const;
  [[nodiscard]] std::size_t sa_count() const noexcept { return outbound_.size() + inbound_.size(); }
  // At most `count`, the first ones behind `after`, by id.
  [[nodiscard]] std::vector<Policy*> policies_after(PolicyId after, std::size_t count) const;
  [[nodiscard]] std::vector<OutboundSa*> outbound_after(SaId after, std::size_t count) const;
  [[nodiscard]] std::vector<InboundSa*> inbound_after(SaId after, std::size_t count) const;

 private:
  // Everything that one reqid joins. The newest SA is the last.
  struct Group {
    std::vector<Policy*> policies;  // in the order in which they are asked
    std::vector<OutboundSa*> outbound;
    std::vector<InboundSa*> inbound;
  };

  Group& group(std::uint32_t reqid) { return groups_[reqid]; }
  void drop_if_empty(std::uint32_t reqid);
  void join(Group& group);
  void list_spi(OutboundSa& sa);
  void unlist_spi(const OutboundSa& sa) noexcept;
  void join_all();
  [[nodiscard]] bool note_devices(Policy& policy, const OutboundSa* sa);
  [[nodiscard]] Device* device_for(const Group& group, const InboundSa& sa) const noexcept;
  [[nodiscard]] std::unique_ptr<const Binding> bind(const Group& group, const InboundSa& sa) const;

  Sad sad_;
  std::map<DeviceId, std::unique_ptr<Device>> devices_;
  IdMap<PolicyId, Policy> policies_;
  IdMap<SaId, OutboundSa> outbound_;
  IdMap<SaId, InboundSa> inbound_;
  std::unordered_map<std::uint32_t, Group> groups_;
  std::vector<const Policy*> discards_;  // inbound: they bind every SA of their devices
  std::map<DeviceId, std::unordered_set<const Policy*>> serving_;
  bool serving_changed_ = false;
  std::vector<std::unique_ptr<const Binding>> old_bindings_;
  using Larval = std::map<std::pair<Spi, ifaces::IpAddress>, SadKey>;
  Larval larval_;
  std::vector<Larval::node_type> old_larval_;
  PtrIndex<const SaCommon, KeyTraits> keys_;
  PtrIndex<OutboundSa, SpiTraits> by_spi_;
};

}  // namespace espalier::dataplane
