// What outlives the daemon: devices, states and policies that came over sockets, with their keys
// and the sequence numbers that may have been used, in memory that others hold for us (`espalier
// exec`, tools/exec/keeper.h) and give back to the next daemon. Never on a disk.
//
// A record is written before it holds, and its numbers before they are used: wherever a daemon is
// killed, the next one finds nothing that would make it repeat a number (RFC 4106 §3.1).
//
// Thread safety: one thread. What comes back is checked as a stranger's.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "crypto/secret.h"
#include "ifaces/unique_fd.h"

namespace espalier::tools {

class Keep {
 public:
  enum class Kind : std::uint32_t { free, device, state, policy };
  using Slot = std::uint32_t;
  static constexpr Slot kNone = ~Slot{0};

  // Of a state; a policy has the time alone.
  struct Numbers {
    std::uint64_t limit = 0;     // outbound: the last that may be used
    std::uint64_t seen = 0;      // inbound: the highest
    std::uint64_t bytes = 0;     // that have passed
    std::uint64_t packets = 0;   // likewise
    std::uint64_t added_ns = 0;  // steady clock
  };
  struct Record {
    Slot slot = kNone;
    Kind kind{};
    crypto::SecretBytes bytes;
    Numbers numbers;
  };

  Keep();  // throws std::system_error
  ~Keep();
  Keep(const Keep&) = delete;
  Keep& operator=(const Keep&) = delete;

  // kNone: there is no room, or `bytes` are too many.
  [[nodiscard]] Slot put(Kind kind, std::span<const std::uint8_t> bytes,
                         const Numbers& numbers) noexcept;
  [[nodiscard]] Slot put(Kind kind, std::span<const std::uint8_t> bytes) noexcept {
    return put(kind, bytes, Numbers());
  }
  void set(Slot slot, const Numbers& numbers) noexcept;
  [[nodiscard]] Numbers numbers(Slot slot) const noexcept;
  void erase(Slot slot) noexcept;  // kNone: nothing

  // To be held by others.
  [[nodiscard]] int fd() const noexcept { return memory_.get(); }

  // Queues of devices (ifaces/tun.h, hold_tun) that others hold as well.
  using Holds = std::map<std::string, ifaces::UniqueFd>;
  void hold(const std::string& device, ifaces::UniqueFd queue);
  void drop(const std::string& device) noexcept;
  [[nodiscard]] const Holds& holds() const noexcept { return holds_; }
  // Told of each change: the descriptor is -1 if it is dropped.
  using Listener = std::function<void(const std::string& device, int queue)>;
  void listen(Listener listener) { listener_ = std::move(listener); }

  // Goes on in the memory of a daemon before us, whose records come out, each still in its slot.
  // In the order of `added_ns`. Empty, and nothing has changed: it is the one in use, or somebody
  // has gone on in it. Throws std::runtime_error if it is none of ours. `move`: called in between;
  // puts again what was put so far.
  template <class Move>
  std::vector<Record> adopt(ifaces::UniqueFd memory, Move&& move) {
    Memory next(std::move(memory));
    if (next.is(memory_) || next.left()) return {};
    std::vector<Record> found = next.records();
    std::swap(memory_, next);
    free_ = memory_.unused(found);
    move();
    next.leave();
    std::stable_sort(found.begin(), found.end(), [](const Record& one, const Record& two) {
      return one.numbers.added_ns < two.numbers.added_ns;
    });
    return found;
  }

 private:
  // One mapping, of fixed size.
  class Memory {
   public:
    Memory();
    explicit Memory(ifaces::UniqueFd fd);
    Memory(Memory&& other) noexcept;
    Memory& operator=(Memory&& other) noexcept;
    ~Memory();

    [[nodiscard]] int get() const noexcept { return fd_.get(); }
    [[nodiscard]] bool is(const Memory& other) const;
    [[nodiscard]] bool left() const noexcept;
    void leave() noexcept;
    [[nodiscard]] std::vector<Record> records() const;
    // The slots that were used and are in none of `records`.
    [[nodiscard]] std::vector<Slot> unused(const std::vector<Record>& records) const;
    [[nodiscard]] std::uint8_t* at(Slot slot) const noexcept;
    [[nodiscard]] Slot used() const noexcept;
    void set_used(Slot used) noexcept;

   private:
    void map();
    ifaces::UniqueFd fd_;
    std::uint8_t* base_ = nullptr;
  };

  Memory memory_;
  std::vector<Slot> free_;
  Holds holds_;
  Listener listener_;
};

// Whose devices are kept.
class KeptDevices {
 public:
  virtual ~KeptDevices() = default;
  // False: it cannot be made again.
  virtual bool restore(const Keep::Record& record) = 0;
  // All of them are put into the memory that is in use now.
  virtual void put_all() noexcept = 0;
};

}  // namespace espalier::tools
