#include "tools/keep.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

namespace espalier::tools {
namespace {

using ifaces::UniqueFd;

constexpr std::uint64_t kMagic = 0x3150454b50534500;  // and the version of what follows
constexpr std::size_t kSlotBytes = 2048;
constexpr Keep::Slot kSlots = Keep::Slot{1} << 17;
constexpr std::size_t kHeaderBytes = kSlotBytes;
constexpr std::size_t kBytes = kHeaderBytes + kSlotBytes * kSlots;  // most of it is never touched
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

struct Header {
  std::uint64_t magic;
  std::uint32_t used;  // slots from this one on were never written
  std::uint32_t left;  // not 0: somebody has gone on in another memory
};
struct SlotHead {
  std::uint32_t kind;
  std::uint32_t length;
  Keep::Numbers numbers;
};
static_assert(sizeof(Header) <= kHeaderBytes && sizeof(SlotHead) == 48);
constexpr std::size_t kRoom = kSlotBytes - sizeof(SlotHead);

[[noreturn]] void fail(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

// The memory is shared with whoever holds it, and a signal may end us between any two stores.
template <class T>
T load(const std::uint8_t* at) noexcept {
  return std::atomic_ref<T>(*reinterpret_cast<T*>(const_cast<std::uint8_t*>(at))).load();
}
template <class T>
void store(std::uint8_t* at, T value) noexcept {
  std::atomic_ref<T>(*reinterpret_cast<T*>(at)).store(value);
}

constexpr std::size_t kNumbers = offsetof(SlotHead, numbers);

Keep::Numbers load_numbers(const std::uint8_t* slot) noexcept {
  const auto one = [slot](std::size_t at) { return load<std::uint64_t>(slot + kNumbers + at); };
  return {one(offsetof(Keep::Numbers, limit)), one(offsetof(Keep::Numbers, seen)),
          one(offsetof(Keep::Numbers, bytes)), one(offsetof(Keep::Numbers, packets)),
          one(offsetof(Keep::Numbers, added_ns))};
}

void store_numbers(std::uint8_t* slot, const Keep::Numbers& n) noexcept {
  const auto one = [slot](std::size_t at, std::uint64_t value) {
    store(slot + kNumbers + at, value);
  };
  one(offsetof(Keep::Numbers, limit), n.limit);
  one(offsetof(Keep::Numbers, seen), n.seen);
  one(offsetof(Keep::Numbers, bytes), n.bytes);
  one(offsetof(Keep::Numbers, packets), n.packets);
  one(offsetof(Keep::Numbers, added_ns), n.added_ns);
}

}  // namespace

// ------------------------------------------------------------------------------------- the memory

Keep::Memory::Memory() : fd_(::memfd_create("espalier", MFD_CLOEXEC | MFD_ALLOW_SEALING)) {
  if (!fd_) fail("memfd_create");
  if (::ftruncate(fd_.get(), static_cast<off_t>(kBytes)) != 0) fail("ftruncate");
  // Whoever holds it cannot take pages away under us.
  if (::fcntl(fd_.get(), F_ADD_SEALS, kSeals) != 0) fail("F_ADD_SEALS");
  map();
  store(base_ + offsetof(Header, magic), kMagic);
}

Keep::Memory::Memory(UniqueFd fd) : fd_(std::move(fd)) {
  struct stat st {};
  if (::fstat(fd_.get(), &st) != 0 || st.st_size != static_cast<off_t>(kBytes) ||
      ::fcntl(fd_.get(), F_GET_SEALS) != kSeals)
    throw std::runtime_error("what was kept is of another version, or none of ours");
  map();
  if (load<std::uint64_t>(base_ + offsetof(Header, magic)) != kMagic) {
    ::munmap(base_, kBytes);
    throw std::runtime_error("what was kept is of another version");
  }
}

void Keep::Memory::map() {
  void* const pages =
      ::mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd_.get(), /*offset=*/0);
  if (pages == MAP_FAILED) fail("mmap");
  // Best effort, as with other keys (crypto/secret.cc).
  static_cast<void>(::madvise(pages, kBytes, MADV_DONTDUMP));
  static_cast<void>(::mlock2(pages, kBytes, MLOCK_ONFAULT));
  base_ = static_cast<std::uint8_t*>(pages);
}

Keep::Memory::Memory(Memory&& other) noexcept
    : fd_(std::move(other.fd_)), base_(std::exchange(other.base_, nullptr)) {}

Keep::Memory& Keep::Memory::operator=(Memory&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(base_, other.base_);
  return *this;
}

Keep::Memory::~Memory() {
  if (base_ != nullptr) ::munmap(base_, kBytes);
}

bool Keep::Memory::is(const Memory& other) const {
  struct stat one {};
  struct stat two {};
  return ::fstat(fd_.get(), &one) == 0 && ::fstat(other.fd_.get(), &two) == 0 &&
         one.st_ino == two.st_ino && one.st_dev == two.st_dev;
}

bool Keep::Memory::left() const noexcept {
  return load<std::uint32_t>(base_ + offsetof(Header, left)) != 0;
}

void Keep::Memory::leave() noexcept {
  store(base_ + offsetof(Header, left), std::uint32_t{1});
  // Keys are not left lying about.
  crypto::wipe({base_ + kHeaderBytes, kSlotBytes * used()});
}

Keep::Slot Keep::Memory::used() const noexcept {
  return std::min(load<std::uint32_t>(base_ + offsetof(Header, used)), kSlots);
}

void Keep::Memory::set_used(Slot used) noexcept {
  store(base_ + offsetof(Header, used), used);
}

std::uint8_t* Keep::Memory::at(Slot slot) const noexcept {
  return base_ + kHeaderBytes + kSlotBytes * slot;
}

std::vector<Keep::Record> Keep::Memory::records() const {
  std::vector<Record> out;
  for (Slot slot = 0; slot < used(); ++slot) {
    const std::uint8_t* const from = at(slot);
    const auto kind = load<std::uint32_t>(from + offsetof(SlotHead, kind));
    const auto length = load<std::uint32_t>(from + offsetof(SlotHead, length));
    if (kind == 0 || kind > static_cast<std::uint32_t>(Kind::policy) || length > kRoom) continue;
    Record& record = out.emplace_back();
    record.slot = slot;
    record.kind = static_cast<Kind>(kind);
    record.bytes = crypto::SecretBytes({from + sizeof(SlotHead), length});
    record.numbers = load_numbers(from);
  }
  return out;
}

std::vector<Keep::Slot> Keep::Memory::unused(const std::vector<Record>& records) const {
  std::vector<Slot> out;
  auto next = records.begin();  // by slot
  for (Slot slot = 0; slot < used(); ++slot) {
    if (next != records.end() && next->slot == slot)
      ++next;
    else
      out.push_back(slot);
  }
  return out;
}

// ----------------------------------------------------------------------------------- the records

Keep::Keep() = default;
Keep::~Keep() = default;

Keep::Slot Keep::put(Kind kind, std::span<const std::uint8_t> bytes,
                     const Numbers& numbers) noexcept {
  if (bytes.size() > kRoom) return kNone;
  Slot slot = memory_.used();
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
  } else if (slot == kSlots) {
    return kNone;
  }
  std::uint8_t* const to = memory_.at(slot);
  store(to + offsetof(SlotHead, kind), std::uint32_t{0});
  if (slot == memory_.used()) memory_.set_used(slot + 1);
  store(to + offsetof(SlotHead, length), static_cast<std::uint32_t>(bytes.size()));
  std::copy(bytes.begin(), bytes.end(), to + sizeof(SlotHead));
  store_numbers(to, numbers);
  store(to + offsetof(SlotHead, kind), static_cast<std::uint32_t>(kind));
  return slot;
}

void Keep::set(Slot slot, const Numbers& numbers) noexcept {
  if (slot != kNone) store_numbers(memory_.at(slot), numbers);
}

void Keep::hold(const std::string& device, ifaces::UniqueFd queue) {
  const int fd = queue.get();
  holds_.insert_or_assign(device, std::move(queue));
  if (listener_) listener_(device, fd);
}

void Keep::drop(const std::string& device) noexcept {
  if (holds_.erase(device) != 0 && listener_) listener_(device, -1);
}

Keep::Numbers Keep::numbers(Slot slot) const noexcept {
  return slot == kNone ? Numbers{} : load_numbers(memory_.at(slot));
}

void Keep::erase(Slot slot) noexcept {
  if (slot == kNone) return;
  std::uint8_t* const from = memory_.at(slot);
  // Free twice it would be two owners'.
  if (load<std::uint32_t>(from + offsetof(SlotHead, kind)) == 0) return;
  store(from + offsetof(SlotHead, kind), std::uint32_t{0});
  crypto::wipe({from + sizeof(SlotHead), kRoom});
  try {
    free_.push_back(slot);
  } catch (const std::bad_alloc&) {
    // The slot is lost to us, not what is in the others.
  }
}

}  // namespace espalier::tools
