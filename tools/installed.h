// What was made over the control socket: SAs, policies and devices, apart from those of the conns
// in the configuration file, which their conns alone take down.
//
// Thread safety: the control thread.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "dataplane/dataplane.h"
#include "ifaces/netlink.h"
#include "tools/control_json.h"
#include "tools/device_pool.h"
#include "tools/keep.h"
#include "tools/used_keys.h"

namespace espalier::tools {

struct SaUpdateOf {
  dataplane::SaId id{};
  dataplane::SaUpdate update;
};
struct VtiRemoval {
  std::string name;
};
// One operation of a transaction, checked as far as it can be alone.
using Change = std::variant<dataplane::SaSpec, SaUpdateOf, dataplane::SaId, dataplane::PolicySpec,
                            dataplane::PolicyId, VtiSpec, VtiRemoval>;

enum class FlushKind : std::uint8_t { sa, policy, vti };

class Installed : public KeptDevices {
 public:
  Installed(dataplane::Dataplane& dataplane, DevicePool& devices, ifaces::Netlink& netlink)
      : dataplane_(dataplane), devices_(devices), netlink_(netlink) {}

  // An operation that changes something: {"op":"sa-add",…}. Throws std::invalid_argument.
  [[nodiscard]] Change parse(const nlohmann::json& op, std::span<const crypto::SecretBytes> keys);

  struct Outcome {
    std::size_t added = 0, updated = 0, deleted = 0;
    std::vector<std::uint32_t> ids;  // of SAs and policies that were added; 0 for what has none
  };
  // All of it or nothing: first what is added and updated, in order, then what is deleted. Throws
  // Refusal with the "index" of the change that cannot be; then everything is as before.
  Outcome apply(std::vector<Change> changes);

  // Devices outlive us from now on, with those who hold them.
  void set_keep(Keep& keep) noexcept { keep_ = &keep; }
  // Keys of outbound SAs are refused from now on if a daemon before us had them.
  UsedKeys& set_used_keys(std::filesystem::path file) {
    return used_keys_.emplace(std::move(file));
  }
  bool restore(const Keep::Record& record) override;
  void put_all() noexcept override;

  std::size_t flush(FlushKind kind);
  // A hard limit was reached: as XFRM does, the SA goes. Others than ours stay.
  void expired(dataplane::SaId id);

  // Throws std::invalid_argument if a request names no SA, or none that is there.
  [[nodiscard]] dataplane::SaId find_sa(Fields& fields) const;
  // What an SA was made of, without its key. Null: it is not ours.
  [[nodiscard]] const dataplane::SaSpec* spec(dataplane::SaId id) const noexcept;
  [[nodiscard]] bool owns(dataplane::PolicyId id) const noexcept { return policies_.contains(id); }
  [[nodiscard]] bool owns(const std::string& device) const noexcept {
    return vtis_.contains(device);
  }

 private:
  class Undo;
  [[nodiscard]] std::uint32_t make(Change& change, Undo& undo, Outcome& outcome);
  std::uint32_t add(dataplane::SaSpec& spec, Undo& undo);
  std::uint32_t add(const dataplane::PolicySpec& spec, Undo& undo);
  void add(const VtiSpec& spec, Undo& undo);
  void update(const SaUpdateOf& change, Undo& undo);
  void remove(dataplane::SaId id);
  void remove(dataplane::PolicyId id);

  [[nodiscard]] Change parse_sa_removal(Fields& fields) const;
  [[nodiscard]] Change parse_update(Fields& fields) const;
  [[nodiscard]] Change parse_policy_removal(Fields& fields) const;
  [[nodiscard]] Change parse_vti_removal(Fields& fields) const;

  dataplane::Dataplane& dataplane_;
  DevicePool& devices_;
  ifaces::Netlink& netlink_;
  std::map<dataplane::SaId, dataplane::SaSpec> sas_;
  std::set<dataplane::PolicyId> policies_;
  struct Vti {
    DeviceLease lease;
    std::string record;  // of what it was made
    Keep::Slot slot = Keep::kNone;
  };
  void put(Vti& vti) noexcept;
  [[nodiscard]] std::vector<UsedKeys::Name> note_keys(const std::vector<Change>& changes);
  void remove(const std::string& vti);

  std::map<std::string, Vti> vtis_;
  Keep* keep_ = nullptr;
  std::optional<UsedKeys> used_keys_;
};

}  // namespace espalier::tools
