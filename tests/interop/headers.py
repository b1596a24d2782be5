#!/usr/bin/python3
"""The headers that we and a Linux kernel make and read: DSCP, ECN and DF of outer headers side by
side; ECN on the way in, by RFC 6040 §4.2; TFC padding by either.

    PC-A ─── gateway A │ espalierd ═══ {raw ESP, UDP 4500} over {IPv4, IPv6} ═══ Linux │ ─── PC-B
"""

import contextlib
import socket
import struct

from kernel import KernelSites, sites
from lab import traffic
from lab.wait import until
from lab.wire import Capture, esp_packet

PORT = 5003
NOT_ECT, ECT1, ECT0, CE = 0, 1, 2, 3
IP_MTU_DISCOVER, IP_PMTUDISC_DONT, IP_PMTUDISC_DO = 10, 0, 2
# Our rules for the outer header, and the kernel's.
RULES = (
    ({}, ""),
    ({"dscp": "no"}, "extra-flag dont-encap-dscp"),
    ({"ecn": "no"}, "flag noecn"),
    ({"df": "clear"}, "flag nopmtudisc"),
)
# RFC 6040 §4.2, figure 4, row by row of the inner mark: what the outer mark makes of it. None: drop.
RFC_6040 = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT0: NOT_ECT, ECT1: NOT_ECT, CE: None},
    ECT0: {NOT_ECT: ECT0, ECT0: ECT0, ECT1: ECT1, CE: CE},
    ECT1: {NOT_ECT: ECT1, ECT0: ECT1, ECT1: ECT1, CE: CE},
    CE: {NOT_ECT: CE, ECT0: CE, ECT1: CE, CE: CE},
}


def tos_of(ip):
    return struct.unpack_from("!H", ip)[0] >> 4 & 0xFF if ip[0] >> 4 == 6 else ip[1]


def df_of(ip):
    return ip[0] >> 4 == 4 and bool(ip[6] & 0x40)


@contextlib.contextmanager
def sender(lab, box, family, df=True):
    """send(tos): a datagram from `box` to the host behind the other gateway."""
    v6 = family == "v6"
    sending = box.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    if not v6:
        sending.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER,
                           IP_PMTUDISC_DO if df else IP_PMTUDISC_DONT)
    level, option = (socket.IPPROTO_IPV6, 67) if v6 else (socket.IPPROTO_IP, socket.IP_TOS)
    target = (sites.PC_B if box is lab.pc_a else sites.PC_A)[family]

    def send(tos):
        sending.setsockopt(level, option, tos)
        sending.sendto(b"%03d" % tos, (target, PORT))

    yield send
    sending.close()


def sealed_by(lab, box, source, family, df):
    """(traffic class, DF) of the outer headers, for each inner traffic class."""
    address = socket.inet_pton(traffic.family(source), source)

    def from_source(ip):
        packet = esp_packet(ip)
        return packet is not None and packet.source == address

    with Capture(lab.gw_a, "eth0") as wire, sender(lab, box, family, df) as send:
        for tos in range(256):
            send(tos)
        return [(tos_of(ip), df_of(ip)) for ip in wire.wait(from_source, 256)]


def same_outer_headers(lab, ours, theirs):
    """The kernel and we render the same outer header, but for ECN: we follow RFC 6040 §4.1 (the
    inner mark is copied), the kernel RFC 3168 (ECT(0) in the place of CE)."""
    with lab.tunnel(lines=ours, states={"more": theirs}):
        listeners = listen(lab)
        for family, df in (("v4", True), ("v4", False), ("v6", True)):
            we = sealed_by(lab, lab.pc_a, lab.left, family, df)
            they = sealed_by(lab, lab.pc_b, lab.right, family, df)
            assert ours or [tos for tos, _ in we] == list(range(256)), we
            wanted = [(tos & ~3 | ECT0 if tos & 3 == CE else tos, bit) for tos, bit in we]
            differ = [pair for pair in zip(they, wanted) if pair[0] != pair[1]]
            assert not differ, f"{family}, they and we (traffic class, DF): {differ[:8]}"
        for listener in listeners:
            listener.close()
    print(f"ok: outer headers as the kernel's: {ours}")


def listen(lab):
    """Somebody is there for the datagrams: no ICMP comes back."""
    made = []
    for box in (lab.pc_a, lab.pc_b):
        made.append(box.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        made[-1].bind(("::", PORT))
    return made


@contextlib.contextmanager
def outer_mark(lab, mark):
    """The kernel's packets carry another ECN mark, as a congested router would set it."""
    if ":" in lab.left:
        change = f"protocol ipv6 matchall action pedit ex munge ip6 traffic_class set {mark}"
    else:
        change = (f"protocol ip matchall action pedit ex munge ip tos set {mark}"
                  " pipe action csum ip4h")
    lab.kernel.shell(f"tc qdisc add dev vec0 clsact; tc filter add dev vec0 egress {change}")
    yield
    lab.kernel.shell("tc qdisc del dev vec0 clsact")


def congestion_on_the_way_in(lab):
    """All 16 pairs of marks, and the counter of the pair that must not be delivered."""
    with lab.tunnel():
        listeners = listen(lab)
        for family in ("v4", "v6"):
            for mark in (NOT_ECT, ECT1, ECT0, CE):
                with outer_mark(lab, mark), Capture(
                    lab.gw_a, "vti01", incoming_only=True
                ) as inside, sender(lab, lab.pc_b, family) as send:
                    lab.a.take_baseline()
                    for inner in range(4):
                        send(0x48 | inner)
                    results = [RFC_6040[inner][mark] for inner in range(4)]
                    wanted = [0x48 | result for result in results if result is not None]
                    seen = [tos_of(ip) for ip in inside.wait(lambda _: True, len(wanted))]
                    assert seen == wanted, (family, mark, seen, wanted)
                    lab.a.wait_drops(**({"ecn_violation": 1} if mark == CE else {}))
        for listener in listeners:
            listener.close()
    print("ok: 16 pairs of ECN marks on the way in")


def traffic_flow_padding(lab):
    """The kernel pads every packet to 1200 bytes; each is delivered at its own length."""
    padded = {"more_out": "tfcpad 1200"}
    with lab.tunnel(states=padded):
        with Capture(lab.gw_a, "eth0", incoming_only=True) as wire:
            with traffic.UdpPair(lab.pc_b, lab.pc_a, sites.PC_B["v4"], sites.PC_A["v4"]) as pair:
                for size in range(1, 1000, 37):
                    pair.exchange(bytes(size))
            sizes = {len(packet.esp) for packet in wire.esp()}
        assert len(sizes) == 1 and sizes.pop() >= 1200, sizes
        lab.all_traffic()
        lab.both_agree()
    print("ok: TFC padding by the kernel")


def padding_by_us(lab):
    """The other way round."""
    with lab.tunnel(lines={"tfc": "1200"}):
        with Capture(lab.gw_a, "eth0") as wire:
            with traffic.UdpPair(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]) as pair:
                for size in range(1, 1000, 37):
                    pair.exchange(bytes(size))
            here = socket.inet_pton(traffic.family(lab.left), lab.left)
            sizes = {len(packet.esp) for packet in wire.esp() if packet.source == here}
        assert len(sizes) == 1 and sizes.pop() >= 1200, sizes
        lab.all_traffic()
        lab.both_agree(padded=True)
    print("ok: TFC padding by us")


def main():
    options = sites.arguments(__doc__)
    with KernelSites(options) as lab:
        traffic_flow_padding(lab)
        padding_by_us(lab)
        for ours, theirs in RULES:
            same_outer_headers(lab, ours, theirs)
        congestion_on_the_way_in(lab)


if __name__ == "__main__":
    main()
