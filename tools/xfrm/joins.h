// What joins policies and states. In XFRM a template names a state by reqid and by both addresses;
// who writes states by hand often leaves all reqids at 0. The data plane joins by one number alone:
// a reqid keeps its number for the first pair of addresses, further pairs get numbers of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <tuple>

#include "dataplane/types.h"

namespace espalier::tools::xfrm {

class Joins {
 public:
  struct Join {
    std::uint32_t number = 0;  // the data plane's reqid
    std::set<dataplane::SaId> states;
    std::size_t users = 0;
  };

  // The join of a template or a state, made if it is not there; it stays until put back as often.
  // Addresses in any order; an unknown one (all zero) meets every other. Without `tunnel`: of a
  // template of another mode, which no state meets: there are none.
  [[nodiscard]] Join& take(std::uint32_t reqid, const ifaces::IpAddress& one,
                           const ifaces::IpAddress& other, bool tunnel = true);
  void drop(Join& join);

 private:
  using Key = std::tuple<std::uint32_t, ifaces::IpAddress, ifaces::IpAddress, bool>;
  using Map = std::map<Key, Join>;

  [[nodiscard]] Map::iterator find(const Key& key);
  [[nodiscard]] std::uint32_t next_number();

  Map joins_;
  std::map<std::uint32_t, Map::iterator> by_number_;
  std::size_t unknown_ = 0;  // joins with an unknown address
  std::uint32_t next_ = 0;
};

}  // namespace espalier::tools::xfrm
