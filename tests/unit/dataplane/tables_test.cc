// How policies, SAs and devices find each other: the joins of ip_vti.c and ip-xfrm(8).
#include "dataplane/tables.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

namespace espalier::dataplane {
namespace {

ifaces::IpAddress address(const std::string& text) {
  return text.empty() ? ifaces::IpAddress{} : *ifaces::IpAddress::parse(text);
}
ifaces::Prefix prefix(const char* text) {
  return *ifaces::Prefix::parse(text);
}

struct Ends {
  std::string local = "192.0.2.1", remote = "192.0.2.2";
};

class TablesTest : public testing::Test {
 protected:
  Device& device(const std::string& name, std::uint32_t ikey, const Ends& ends,
                 std::uint32_t okey = 0, std::uint32_t if_id = 0) {
    auto d = std::make_unique<Device>();
    d->id = DeviceId{next_++};
    d->spec = {name, ikey, okey == 0 ? ikey : okey, address(ends.local), address(ends.remote),
               if_id};
    Device& made = *d;
    tables_.add(std::move(d));
    return made;
  }
  PolicySpec policy(Direction direction, Mark mark, std::uint32_t reqid = 1) {
    PolicySpec s;
    s.direction = direction;
    s.selector.source = s.selector.destination = prefix("0.0.0.0/0");
    s.mark = mark;
    s.reqid = reqid;
    return s;
  }
  PolicyId add(const PolicySpec& spec) {
    const PolicyId id{next_++};
    tables_.add(std::make_unique<Policy>(id, spec));
    return id;
  }
  template <class Sa>
  Sa& fill(Sa& sa, std::uint32_t spi, const Ends& ends, std::uint32_t reqid, bool moves) {
    sa.id = SaId{next_++};
    sa.spi = Spi{spi};
    sa.reqid = reqid;
    sa.local = address(ends.local);
    sa.remote = address(ends.remote);
    sa.moves = moves;
    sa.peer = std::make_shared<Peer>(ifaces::Endpoint{sa.remote, 4500});
    return sa;
  }
  InboundSa& in(std::uint32_t spi, const Ends& ends = {}, std::uint32_t reqid = 1,
                bool moves = false) {
    auto sa = std::make_unique<InboundSa>(64, 0);
    InboundSa& made = fill(*sa, spi, ends, reqid, moves);
    made.set_local(made.local);
    return keep(std::move(sa), made);
  }
  OutboundSa& out(std::uint32_t spi, const Ends& ends = {}, std::uint32_t reqid = 1,
                  bool moves = false) {
    auto sa = std::make_unique<OutboundSa>();
    OutboundSa& made = fill(*sa, spi, ends, reqid, moves);
    return keep(std::move(sa), made);
  }
  template <class Sa>
  Sa& keep(std::unique_ptr<Sa> sa, Sa& made) {
    const std::string key = "key " + std::to_string(next_);
    tables_.add(std::move(sa), {reinterpret_cast<const std::uint8_t*>(key.data()), key.size()});
    return made;
  }
  static Device* device_of(const InboundSa& sa) { return sa.binding.load()->device; }
  static InnerKey packet(const char* source, const char* destination) {
    InnerKey key{};
    key.source = words(address(source));
    key.destination = words(address(destination));
    return key;
  }
  // What a packet from the device leaves by; null: it does not.
  static OutboundSa* sent_by(const Device& device) {
    const Policy* p = device.policies.find(packet("10.1.1.1", "10.2.2.2"));
    if (p == nullptr || p->sa.load() == nullptr) return nullptr;
    return p->compare_ends.load() && !ends_fit(device, *p->sa.load()) ? nullptr : p->sa.load();
  }

  Tables tables_;
  std::uint32_t next_ = 1;
};

TEST_F(TablesTest, OkeyChoosesTheOutboundPolicyAndIkeyTheInboundOne) {
  Device& d = device("vti01", 20, {}, 21);
  add(policy(Direction::out, {21, 0xffffffff}));
  add(policy(Direction::in, {20, 0xffffffff}));
  const OutboundSa& o = out(256);
  const InboundSa& i = in(256);
  EXPECT_EQ(sent_by(d), &o);
  EXPECT_EQ(device_of(i), &d);
}

TEST_F(TablesTest, KeysTheOtherWayRoundMatchNothing) {
  Device& d = device("vti01", 20, {}, 21);
  add(policy(Direction::out, {20, 0xffffffff}));
  add(policy(Direction::in, {21, 0xffffffff}));
  out(256);
  EXPECT_EQ(sent_by(d), nullptr);
  EXPECT_EQ(device_of(in(256)), nullptr);
}

TEST_F(TablesTest, MasksAndTheMarkZero) {
  Device& wide = device("vti01", 0x01000005, {});
  Device& zero = device("vti02", 0, {});
  add(policy(Direction::in, {5, 0xffffff}, 1));
  add(policy(Direction::in, {0, 0xffffffff}, 2));
  add(policy(Direction::in, {0, 0}, 3));
  EXPECT_EQ(device_of(in(256, {}, 1)), &wide);  // seed 000: 12/0xffffff
  EXPECT_EQ(device_of(in(257, {}, 2)), &zero);
  EXPECT_EQ(device_of(in(258, {}, 3)), &zero);  // any key will do: the one of that value
}

// A kernel VTI's lookup: both ends, the remote one, the local one, a wildcard.
TEST_F(TablesTest, TheOrderOfDevices) {
  add(policy(Direction::in, {5, 0xffffffff}));
  const InboundSa& i = in(256);
  Device& fallback = device("vti0", 5, {"", ""});
  EXPECT_EQ(device_of(i), &fallback);
  Device& local = device("vti1", 5, {"192.0.2.1", ""});
  EXPECT_EQ(device_of(i), &local);
  Device& remote = device("vti2", 5, {"", "192.0.2.2"});
  EXPECT_EQ(device_of(i), &remote);
  Device& both = device("vti3", 5, {});
  EXPECT_EQ(device_of(i), &both);
  device("vti4", 5, {"192.0.2.9", "192.0.2.2"});
  device("vti5", 5, {"192.0.2.1", "192.0.2.9"});
  EXPECT_EQ(device_of(i), &both);
  for (const auto& [gone, next] :
       {std::pair{both.id, &remote}, {remote.id, &local}, {local.id, &fallback}}) {
    const auto removed = tables_.remove(gone);
    EXPECT_EQ(device_of(i), next);
  }
}

TEST_F(TablesTest, SeveralDevicesWithTheSameEndsAreToldApartByTheirKeys) {
  Device& five = device("vti05", 5, {});
  Device& six = device("vti06", 6, {});
  for (const std::uint32_t mark : {5U, 6U}) {
    add(policy(Direction::out, {mark, 0xffffffff}, mark));
    add(policy(Direction::in, {mark, 0xffffffff}, mark));
  }
  const OutboundSa &o5 = out(256, {}, 5), &o6 = out(257, {}, 6);
  EXPECT_EQ(device_of(in(300, {}, 5)), &five);
  EXPECT_EQ(device_of(in(301, {}, 6)), &six);
  EXPECT_EQ(sent_by(five), &o5);
  EXPECT_EQ(sent_by(six), &o6);
}

TEST_F(TablesTest, ABindingThatExistsIsFound) {
  const Device& d = device("vti01", 5, {"192.0.2.1", ""});
  DeviceSpec spec = d.spec;
  spec.name = "vti02";
  EXPECT_EQ(tables_.twin(spec), &d);
  spec.remote = ifaces::IpAddress::any(ifaces::Family::v4);  // as good as none
  EXPECT_EQ(tables_.twin(spec), &d);
  for (const auto& change :
       {+[](DeviceSpec& s) { s.ikey = 6; }, +[](DeviceSpec& s) { s.if_id = 1; },
        +[](DeviceSpec& s) { s.local = address("192.0.2.7"); },
        +[](DeviceSpec& s) { s.remote = address("192.0.2.7"); }}) {
    DeviceSpec other = spec;
    change(other);
    EXPECT_EQ(tables_.twin(other), nullptr);
  }
}

TEST_F(TablesTest, InterfaceIdsMustBeEqualEverywhere) {
  Device& d = device("ipsec1", 0, {}, 0, 42);
  PolicySpec o = policy(Direction::out, {}), i = policy(Direction::in, {});
  add(o);
  add(i);
  out(256);
  const InboundSa& other = in(256);
  EXPECT_EQ(sent_by(d), nullptr);
  EXPECT_EQ(device_of(other), nullptr);
  o.if_id = i.if_id = 42;
  add(o);
  add(i);
  EXPECT_EQ(sent_by(d), nullptr);  // the policy is found, the SA has another
  EXPECT_EQ(device_of(other), nullptr);
  auto sa = std::make_unique<OutboundSa>();
  OutboundSa& mine = fill(*sa, 257, {}, 1, false);
  mine.if_id = 42;
  keep(std::move(sa), mine);
  EXPECT_EQ(sent_by(d), &mine);
  auto inbound = std::make_unique<InboundSa>(64, 0);
  InboundSa& mine_in = fill(*inbound, 257, {}, 1, false);
  mine_in.if_id = 42;
  keep(std::move(inbound), mine_in);
  EXPECT_EQ(device_of(mine_in), &d);
}

TEST_F(TablesTest, TheMarkOfAnSaIsHeldAgainstIkeyAndPolicy) {
  Device& d = device("vti01", 5, {});
  add(policy(Direction::out, {5, 0xffffffff}));
  add(policy(Direction::in, {5, 0xffffffff}));
  const auto with = [&](std::uint32_t spi, Mark mark) -> InboundSa& {
    auto sa = std::make_unique<InboundSa>(64, 0);
    InboundSa& made = fill(*sa, spi, {}, 1, false);
    made.mark = mark;
    return keep(std::move(sa), made);
  };
  EXPECT_EQ(device_of(with(256, {5, 0xff})), &d);
  EXPECT_EQ(device_of(with(257, {6, 0xff})), nullptr);
  const OutboundSa& good = out(300);
  auto sa = std::make_unique<OutboundSa>();
  OutboundSa& newer = fill(*sa, 301, {}, 1, false);
  newer.mark = {6, 0xffffffff};
  keep(std::move(sa), newer);
  EXPECT_EQ(sent_by(d), &good);  // not the newest, which is for another mark
}

TEST_F(TablesTest, AnSaOfOtherEndsIsNotUsed) {
  Device& d = device("vti01", 5, {});
  Device& wildcard = device("vti02", 5, {"", ""});
  add(policy(Direction::out, {5, 0xffffffff}));
  const OutboundSa& other = out(256, {"192.0.2.1", "192.0.2.9"});
  EXPECT_EQ(sent_by(d), nullptr);
  EXPECT_EQ(sent_by(wildcard), &other);
  const OutboundSa& right = out(257);
  EXPECT_EQ(sent_by(d), &right);
  const OutboundSa& moves = out(258, {"192.0.2.1", "192.0.2.9"}, 1, true);
  EXPECT_EQ(sent_by(d), &moves);
}

TEST_F(TablesTest, TheSameInboundSpiAtTwoLocalAddresses) {
  device("vti01", 5, {"", ""});
  add(policy(Direction::in, {5, 0xffffffff}));
  const InboundSa& one = in(256, {"192.0.2.1", "192.0.2.2"});
  const InboundSa& two = in(256, {"192.0.2.3", "192.0.2.2"});
  EXPECT_EQ(tables_.inbound(Spi{256}, address("192.0.2.1")), &one);
  EXPECT_EQ(tables_.inbound(Spi{256}, address("192.0.2.3")), &two);
}

TEST_F(TablesTest, TheSameOutboundSpiToTwoPeers) {
  Device& west = device("vti01", 5, {});
  Device& east = device("vti02", 6, {"192.0.2.1", "192.0.2.3"});
  add(policy(Direction::out, {5, 0xffffffff}, 1));
  add(policy(Direction::out, {6, 0xffffffff}, 2));
  const OutboundSa& to_west = out(256, {}, 1);
  const OutboundSa& to_east = out(256, {"192.0.2.1", "192.0.2.3"}, 2);
  EXPECT_EQ(sent_by(west), &to_west);
  EXPECT_EQ(sent_by(east), &to_east);
}

// L6: a mark that moves to another TUN takes its policies and SAs along.
TEST_F(TablesTest, L6AMarkMovesToAnotherDevice) {
  Device& first = device("vti01", 5, {});
  add(policy(Direction::out, {5, 0xffffffff}));
  add(policy(Direction::in, {5, 0xffffffff}));
  const OutboundSa& o = out(256);
  const InboundSa& i = in(256);
  EXPECT_EQ(device_of(i), &first);
  const std::unique_ptr<Device> removed = tables_.remove(first.id);
  EXPECT_EQ(device_of(i), nullptr);
  Device& second = device("vti02", 5, {});
  EXPECT_EQ(device_of(i), &second);
  EXPECT_EQ(sent_by(second), &o);
}

// L6: thousands of marks.
TEST_F(TablesTest, L6ThousandsOfMarks) {
  constexpr std::uint32_t kMarks = 10000;
  std::vector<Device*> devices;
  std::vector<InboundSa*> sas;
  for (std::uint32_t mark = 1; mark <= kMarks; ++mark) {
    devices.push_back(&device("vti" + std::to_string(mark), mark, {}));
    add(policy(Direction::in, {mark, 0xffffffff}, mark));
    sas.push_back(&in(1000 + mark, {}, mark));
  }
  for (std::uint32_t i = 0; i < kMarks; ++i) ASSERT_EQ(device_of(*sas[i]), devices[i]);
}

// RFC 4301 §4.4.1: of inbound policies too the first in order decides, whosever it is.
TEST_F(TablesTest, ADiscardPolicyBindsEverySaOfItsDevices) {
  Device& d = device("vti01", 5, {});
  add(policy(Direction::in, {5, 0xffffffff}));
  const InboundSa& i = in(256);
  const auto verdict = [&i](const char* source) {
    for (const Binding::Rule& rule : i.binding.load()->selectors)
      if (rule.selector.matches(packet(source, "10.1.1.1"))) return rule.allow;
    return false;
  };
  PolicySpec discard = policy(Direction::in, {}, 0);
  discard.selector.source = prefix("10.9.0.0/16");
  discard.action = PolicyAction::discard;
  const PolicyId id = add(discard);
  EXPECT_EQ(device_of(i), &d);
  EXPECT_FALSE(verdict("10.9.1.1"));  // as high, and longer
  EXPECT_TRUE(verdict("10.8.1.1"));
  tables_.remove(id);
  EXPECT_TRUE(verdict("10.9.1.1"));
  discard.priority = 1;
  add(discard);
  EXPECT_TRUE(verdict("10.9.1.1"));  // behind the one that protects
}

TEST_F(TablesTest, ADeviceServesWhileItHasAnSaOrATrap) {
  Device& d = device("vti01", 5, {});
  EXPECT_FALSE(tables_.serves(d));
  const PolicyId id = add(policy(Direction::out, {5, 0xffffffff}));
  EXPECT_FALSE(tables_.serves(d));
  const SaId sa = out(256).id;
  EXPECT_TRUE(tables_.serves(d));
  EXPECT_TRUE(tables_.serving_changed());
  EXPECT_FALSE(tables_.serving_changed());
  tables_.remove_outbound(sa);
  EXPECT_FALSE(tables_.serves(d));
  out(257, {"192.0.2.1", "192.0.2.9"});  // of other ends
  EXPECT_FALSE(tables_.serves(d));
  tables_.remove(id);
  PolicySpec trap = policy(Direction::out, {5, 0xffffffff}, 9);
  trap.trap = true;
  const PolicyId trap_id = add(trap);
  EXPECT_TRUE(tables_.serves(d));
  tables_.remove(trap_id);
  EXPECT_FALSE(tables_.serves(d));
}

// An IKE daemon has the next SA before its peer has, and changes over by the policy.
TEST_F(TablesTest, APolicyThatNamesAnSpiWaitsForIt) {
  Device& d = device("vti01", 5, {});
  PolicySpec spec = policy(Direction::out, {5, 0xffffffff});
  spec.spi = Spi{0x100};
  const PolicyId first = add(spec);
  const OutboundSa& now = out(0x100);
  const OutboundSa& next = out(0x200);
  EXPECT_EQ(sent_by(d), &now);
  spec.spi = Spi{0x200};
  add(spec);
  static_cast<void>(tables_.remove(first));
  EXPECT_EQ(sent_by(d), &next);
  static_cast<void>(tables_.remove_outbound(next.id));
  EXPECT_EQ(sent_by(d), nullptr);
}

}  // namespace
}  // namespace espalier::dataplane
