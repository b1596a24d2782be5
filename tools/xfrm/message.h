// Netlink messages with every length checked, by libnl-3.
#pragma once

#include <linux/netlink.h>
#include <linux/xfrm.h>
#include <netlink/attr.h>
#include <netlink/msg.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace espalier::tools::xfrm {

// Attributes that kernels after our headers' have.
inline constexpr int kSaDir = 33;  // XFRMA_SA_DIR, one byte: 1 in, 2 out
inline constexpr int kMaxAttribute = 40;

// IKE daemons read into 4,096 bytes.
inline constexpr std::size_t kMaxDatagram = 3800;

// A request that is refused: an errno as the kernel's, and the text that NETLINK_EXT_ACK carries.
class Refused : public std::runtime_error {
 public:
  explicit Refused(int error, const std::string& text = {})
      : std::runtime_error(text), error_(error) {}
  [[nodiscard]] int error() const noexcept { return error_; }

 private:
  int error_;
};

// All bytes zero, those between the members as well: nothing else of our memory goes out.
template <class T>
[[nodiscard]] T zeroed() noexcept {
  static_assert(std::is_trivially_copyable_v<T>);
  T value;
  std::memset(&value, 0, sizeof value);
  return value;
}

// One message of a datagram, which must outlive it. Bytes may be anything.
class Request {
 public:
  // `header` is followed by as many bytes as it says.
  explicit Request(nlmsghdr* header) noexcept : header_(header) {}

  [[nodiscard]] const nlmsghdr& header() const noexcept { return *header_; }
  [[nodiscard]] std::span<const std::uint8_t> bytes() const noexcept {
    return {reinterpret_cast<const std::uint8_t*>(header_), header_->nlmsg_len};
  }

  // Reads the fixed part. Throws Refused.
  template <class T>
  [[nodiscard]] T fixed() const {
    static_assert(std::is_trivially_copyable_v<T>);
    T value = zeroed<T>();
    const std::span<const std::uint8_t> payload = bytes().subspan(NLMSG_HDRLEN);
    if (payload.size() < sizeof value) throw Refused(EINVAL, "Invalid header length");
    std::memcpy(&value, payload.data(), sizeof value);
    return value;
  }
  // And the attributes behind it.
  template <class T>
  [[nodiscard]] T read() {
    const T value = fixed<T>();
    read_attributes(sizeof value);
    return value;
  }
  void read_attributes(std::size_t fixed);
  // Those of NEWSPDINFO, which have numbers and lengths of their own.
  void read_plain_attributes(std::size_t fixed);

  [[nodiscard]] bool has(int attribute) const noexcept { return find(attribute) != nullptr; }
  // Empty if it is not there.
  [[nodiscard]] std::span<const std::uint8_t> data(int attribute) const noexcept;
  // read_attributes() has checked the length.
  template <class T>
  [[nodiscard]] std::optional<T> get(int attribute) const noexcept {
    const std::span<const std::uint8_t> bytes = data(attribute);
    if (bytes.size() < sizeof(T)) return std::nullopt;
    T value = zeroed<T>();
    std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
  [[nodiscard]] std::uint32_t u32(int attribute) const noexcept {
    return get<std::uint32_t>(attribute).value_or(0);
  }

 private:
  [[nodiscard]] nlattr* find(int attribute) const noexcept {
    return attributes_[static_cast<std::size_t>(attribute)];
  }

  nlmsghdr* header_;
  std::array<nlattr*, kMaxAttribute + 1> attributes_{};
};

// Bytes on their way to a client. They may hold keys: wiped when they go.
class Datagram {
 public:
  Datagram() = default;
  Datagram(Datagram&&) noexcept = default;
  Datagram& operator=(Datagram&&) noexcept = default;
  Datagram(const Datagram&) = delete;
  Datagram& operator=(const Datagram&) = delete;
  ~Datagram();

  void append(std::span<const std::uint8_t> bytes);
  [[nodiscard]] std::span<const std::uint8_t> bytes() const noexcept { return bytes_; }
  [[nodiscard]] bool empty() const noexcept { return bytes_.empty(); }

 private:
  std::vector<std::uint8_t> bytes_;
};

// A message being built; its length is a multiple of four. Throws std::bad_alloc.
class Reply {
 public:
  struct To {
    std::uint32_t portid = 0, seq = 0;
  };
  Reply(std::uint16_t type, To to, std::uint16_t flags = 0, std::size_t room = kMaxDatagram);

  void append(std::span<const std::uint8_t> bytes);
  template <class T>
  void append(const T& fixed) {
    append(bytes_of(fixed));
  }
  void put(int attribute, std::span<const std::uint8_t> bytes);
  template <class T>
  void put(int attribute, const T& value) {
    put(attribute, bytes_of(value));
  }
  [[nodiscard]] std::span<const std::uint8_t> bytes() const noexcept;
  [[nodiscard]] Datagram datagram() const;

 private:
  template <class T>
  static std::span<const std::uint8_t> bytes_of(const T& value) noexcept {
    static_assert(std::is_trivially_copyable_v<T>);
    return {reinterpret_cast<const std::uint8_t*>(&value), sizeof value};
  }
  struct Free {
    void operator()(nl_msg* message) const noexcept;
  };
  std::unique_ptr<nl_msg, Free> message_;
};

}  // namespace espalier::tools::xfrm
