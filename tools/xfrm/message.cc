#include "tools/xfrm/message.h"

#include <cerrno>
#include <new>

#include "crypto/secret.h"

namespace espalier::tools::xfrm {
namespace {

constexpr nla_policy at_least(std::size_t bytes) {
  nla_policy policy{};
  policy.minlen = static_cast<std::uint16_t>(bytes);
  return policy;
}

const std::array<nla_policy, kMaxAttribute + 1>& lengths() {
  static const std::array<nla_policy, kMaxAttribute + 1> kLengths = [] {
    std::array<nla_policy, kMaxAttribute + 1> all{};
    all[XFRMA_ALG_AUTH] = at_least(sizeof(xfrm_algo));
    all[XFRMA_ALG_CRYPT] = at_least(sizeof(xfrm_algo));
    all[XFRMA_ALG_COMP] = at_least(sizeof(xfrm_algo));
    all[XFRMA_ALG_AEAD] = at_least(sizeof(xfrm_algo_aead));
    all[XFRMA_ALG_AUTH_TRUNC] = at_least(sizeof(xfrm_algo_auth));
    all[XFRMA_ENCAP] = at_least(sizeof(xfrm_encap_tmpl));
    all[XFRMA_TMPL] = at_least(sizeof(xfrm_user_tmpl));
    all[XFRMA_SEC_CTX] = at_least(sizeof(xfrm_user_sec_ctx));
    all[XFRMA_LTIME_VAL] = at_least(sizeof(xfrm_lifetime_cur));
    all[XFRMA_REPLAY_VAL] = at_least(sizeof(xfrm_replay_state));
    all[XFRMA_REPLAY_ESN_VAL] = at_least(sizeof(xfrm_replay_state_esn));
    all[XFRMA_SRCADDR] = at_least(sizeof(xfrm_address_t));
    all[XFRMA_COADDR] = at_least(sizeof(xfrm_address_t));
    all[XFRMA_POLICY_TYPE] = at_least(sizeof(xfrm_userpolicy_type));
    all[XFRMA_KMADDRESS] = at_least(sizeof(xfrm_user_kmaddress));
    all[XFRMA_MIGRATE] = at_least(sizeof(xfrm_user_migrate));
    all[XFRMA_MARK] = at_least(sizeof(xfrm_mark));
    all[XFRMA_PROTO] = at_least(1);
    all[XFRMA_ADDRESS_FILTER] = at_least(sizeof(xfrm_address_filter));
    all[XFRMA_OFFLOAD_DEV] = at_least(sizeof(xfrm_user_offload));
    for (const int number :
         {XFRMA_REPLAY_THRESH, XFRMA_ETIMER_THRESH, XFRMA_TFCPAD, XFRMA_SA_EXTRA_FLAGS,
          XFRMA_SET_MARK, XFRMA_SET_MARK_MASK, XFRMA_IF_ID, XFRMA_MTIMER_THRESH})
      all[static_cast<std::size_t>(number)] = at_least(sizeof(std::uint32_t));
    all[kSaDir] = at_least(1);
    return all;
  }();
  return kLengths;
}

}  // namespace

void Request::read_attributes(std::size_t fixed) {
  // libnl writes through neither, but takes no const.
  if (nlmsg_parse(header_, static_cast<int>(fixed), attributes_.data(), kMaxAttribute,
                  lengths().data()) < 0)
    throw Refused(ERANGE, "Attribute failed policy validation");
}

void Request::read_plain_attributes(std::size_t fixed) {
  if (nlmsg_parse(header_, static_cast<int>(fixed), attributes_.data(), kMaxAttribute, nullptr) < 0)
    throw Refused(EINVAL, "Attribute failed policy validation");
}

std::span<const std::uint8_t> Request::data(int attribute) const noexcept {
  const nlattr* const found = find(attribute);
  if (found == nullptr) return {};
  return {static_cast<const std::uint8_t*>(nla_data(found)),
          static_cast<std::size_t>(nla_len(found))};
}

Datagram::~Datagram() {
  crypto::wipe(bytes_);
}

void Datagram::append(std::span<const std::uint8_t> bytes) {
  if (bytes_.capacity() - bytes_.size() < bytes.size()) {
    // Not by the vector itself: it would leave a copy behind.
    std::vector<std::uint8_t> larger;
    larger.reserve(std::max(kMaxDatagram, 2 * (bytes_.size() + bytes.size())));
    larger.assign(bytes_.begin(), bytes_.end());
    crypto::wipe(bytes_);
    bytes_.swap(larger);
  }
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

void Reply::Free::operator()(nl_msg* message) const noexcept {
  crypto::wipe({reinterpret_cast<std::uint8_t*>(nlmsg_hdr(message)),
                static_cast<std::size_t>(nlmsg_hdr(message)->nlmsg_len)});
  nlmsg_free(message);
}

Reply::Reply(std::uint16_t type, To to, std::uint16_t flags, std::size_t room)
    : message_(nlmsg_alloc_size(room)) {
  if (!message_ || nlmsg_put(message_.get(), to.portid, to.seq, type, 0, flags) == nullptr)
    throw std::bad_alloc();
  // nlmsg_put() takes 0 for "choose one".
  nlmsg_hdr(message_.get())->nlmsg_pid = to.portid;
  nlmsg_hdr(message_.get())->nlmsg_seq = to.seq;
}

void Reply::append(std::span<const std::uint8_t> bytes) {
  // libnl reads it only.
  void* const data = const_cast<std::uint8_t*>(bytes.data());  // NOLINT(*-const-cast)
  if (nlmsg_append(message_.get(), data, bytes.size(), NLMSG_ALIGNTO) < 0) throw std::bad_alloc();
}

void Reply::put(int attribute, std::span<const std::uint8_t> bytes) {
  if (nla_put(message_.get(), attribute, static_cast<int>(bytes.size()), bytes.data()) < 0)
    throw std::bad_alloc();
}

std::span<const std::uint8_t> Reply::bytes() const noexcept {
  const nlmsghdr* const header = nlmsg_hdr(message_.get());
  return {reinterpret_cast<const std::uint8_t*>(header), header->nlmsg_len};
}

Datagram Reply::datagram() const {
  Datagram out;
  out.append(bytes());
  return out;
}

}  // namespace espalier::tools::xfrm
