#!/usr/bin/python3
"""What becomes of headers: ICMP for what cannot go on, and the outer header.

    PC-A ─── gateway A ═══ ESP ═══ gateway B ─── PC-B
"""

import os
import socket
import struct
import time

from lab import sites, traffic
from lab.wait import until
from lab.wire import Capture, esp_packet

NOWHERE = {"v4": "10.1.6.2", "v6": "fd00:10:1:6::2"}
INSIDE_A = {"v4": "10.1.3.1", "v6": "fd00:10:1:3::1"}
# As ping shows 3/1 and ICMPv6 1/3.
UNREACHABLE = {"v4": "Destination Host Unreachable", "v6": "Destination unreachable: Address unreachable"}


def no_policy(lab, family):
    lab.gw_a.ip(f"route add {NOWHERE[family]} dev vti01")
    return lambda: lab.a.status()["drops"]["no_policy"]


def told(box, family, source):
    """`box` is told by the address that faces it that a host is unreachable."""
    output = box.run("ping", "-n", "-c", "1", "-W", "3", NOWHERE[family], check=False)
    lines = [line for line in output.splitlines() if line.startswith("From ")]
    assert len(lines) == 1 and UNREACHABLE[family] in lines[0], output
    assert lines[0].startswith(f"From {source}"), output


def unreachable(lab, family):
    """4301-8: no policy: the sender is told, forwarded or of this host, and nothing leaves."""
    counted = no_policy(lab, family)
    before = counted()
    with Capture(lab.gw_a, "eth0") as wire:
        told(lab.pc_a, family, INSIDE_A[family])
        # From its own address, by way of its own address.
        own = "10.0.1.1" if family == "v4" else INSIDE_A["v6"]
        told(lab.gw_a, family, own)
        assert not [ip for ip in wire.packets() if ip[:1] and b"\x10\x11\x12\x13" in ip]
    until(lambda: counted() >= before + 2, "two packets without a policy")


def no_answer_to_errors(lab):
    """RFC 1122 §3.2.2: an ICMP error about nothing, a multicast, and a later fragment: silence."""
    counted = lambda: lab.a.status()["drops"]["no_policy"]  # noqa: E731
    before = counted()
    with Capture(lab.pc_a, "eth0", incoming_only=True) as wire:
        sender = lab.pc_a.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        sender.sendto(b"\x03\x01\x00\x00" + bytes(32), (NOWHERE["v4"], 0))
        sender.close()
        until(lambda: counted() >= before + 1, "a packet without a policy")
        told(lab.pc_a, "v4", INSIDE_A["v4"])  # behind it: one that is answered
        errors = [ip for ip in wire.packets() if ip[0] >> 4 == 4 and ip[9] == 1]
        assert len(errors) == 1, errors


def rate_limited(lab):
    """A flood is answered by no more than a burst and one a millisecond."""
    count = 2000
    with Capture(lab.pc_a, "eth0", incoming_only=True) as wire:
        pair = lab.pc_a.socket(socket.AF_INET, socket.SOCK_DGRAM)
        before = lab.a.status()["drops"]["no_policy"]

        def flooded():
            for _ in range(count // 4):  # the device's queue holds 500
                try:
                    pair.sendto(b"x", (NOWHERE["v4"], 9))
                except OSError:
                    pass  # what it was told before
            return lab.a.status()["drops"]["no_policy"] >= before + count

        start = time.monotonic()
        until(flooded, "a flood")
        allowed = 60 + (time.monotonic() - start) * 1000
        pair.close()
        errors = [ip for ip in wire.packets() if ip[0] >> 4 == 4 and ip[9] == 1]
        assert 0 < len(errors) <= min(allowed, count - 1), (len(errors), allowed)


class Conn:
    """Gateways whose conn has more lines."""

    def __init__(self, options, **lines):
        self.lab = sites.Sites(options)
        keys = self.lab.keygen()
        for side in ("left", "right"):
            sites.add_options(os.path.join(keys, side, "espalier.conf"), **lines)
        self.keys = keys

    def __enter__(self):
        self.lab.__enter__().gateways(self.keys)
        return self.lab

    def __exit__(self, *error):
        return self.lab.__exit__(*error)


class Outer:
    """The fields of an outer header."""

    def __init__(self, ip):
        self.length = len(ip)
        if ip[0] >> 4 == 4:
            self.tos, self.ttl, self.df = ip[1], ip[8], ip[6] & 0x40 != 0
        else:
            first, self.ttl, self.df = struct.unpack_from("!I", ip)[0], ip[7], None
            self.tos, self.label = first >> 20 & 0xFF, first & 0xFFFFF


def ping_seen(lab, *words, to=sites.PC_B["v4"]):
    """The outer header of one echo request from PC-A."""
    spi = int(lab.a.sa("out")["spi"], 0)
    with Capture(lab.gw_a, "eth0") as wire:
        output = lab.pc_a.run("ping", "-n", "-c", "1", "-W", "3", *words, to)
        assert " 1 received" in output, output
        (found,) = [ip for ip in wire.packets() if esp_packet(ip) and esp_packet(ip).spi == spi]
        return Outer(found)


def is_v4(options):
    return options.outer == "v4"


def copied(options):
    """X4: by default DSCP, ECN and DF are those of the inner packet."""
    with Conn(options) as lab:
        for tos in (0, 1, 2, 3, 0xB8, 0xBB):
            assert ping_seen(lab, "-Q", str(tos)).tos == tos
            assert ping_seen(lab, "-Q", str(tos), to=sites.PC_B["v6"]).tos == tos
        if is_v4(options):
            assert ping_seen(lab, "-M", "do").df and not ping_seen(lab, "-M", "dont").df
            assert ping_seen(lab, to=sites.PC_B["v6"]).df
        assert ping_seen(lab).ttl == 64


def by_rule(options):
    """X4: DSCP set, ECN compatibility mode, DF set, hop limit; TFC padding of equal length."""
    with Conn(options, dscp=46, ecn="no", df="set", hop_limit=33, tfc=1000, flow_label="copy") as lab:
        lengths = set()
        for tos in (0, 3, 0x28):
            for size in (1, 56, 700):
                for mode in ("do", "dont"):
                    seen = ping_seen(lab, "-Q", str(tos), "-s", str(size), "-M", mode)
                    assert (seen.tos, seen.ttl) == (46 << 2, 33) and seen.df in (True, None), vars(seen)
                    lengths.add(seen.length)
        assert len(lengths) == 1 and min(lengths) > 1000
        # A dummy is one of them to who looks on.
        with Capture(lab.gw_a, "eth0") as wire:
            lab.a.ask({"op": "sa-dummy", "id": lab.a.sa_id("out"), "length": 10})
            (dummy,) = wire.wait(lambda ip: esp_packet(ip))
        dummy = Outer(dummy)
        assert (dummy.tos, dummy.ttl) == (46 << 2, 33) and dummy.df in (True, None), vars(dummy)
        assert {dummy.length} == lengths, (dummy.length, lengths)
        longer = ping_seen(lab, "-s", "1200")
        assert longer.length > 1200
        if not is_v4(options):
            seen = ping_seen(lab, "-F", "0xabcde", to=sites.PC_B["v6"])
            assert seen.label == 0xABCDE, hex(seen.label)
            # One without a label gets that of the outer flow (RFC 6438 §3), the same each time.
            lab.pc_a.sysctl("net/ipv6/auto_flowlabels", 0)
            labels = {ping_seen(lab, to=sites.PC_B["v6"]).label for _ in range(3)}
            assert len(labels) == 1 and labels != {0}, labels
        traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 300000)


def by_libreswan(options):
    """X4: libreswan's words: nothing copied outwards, all DSCP inwards, no DF."""
    with Conn(options, encap_dscp="no", decap_dscp="yes", nopmtudisc="yes") as lab:
        with Capture(lab.pc_b, "eth0", incoming_only=True) as inside:
            seen = ping_seen(lab, "-Q", "0x2a", "-M", "do")
            assert seen.tos == 2 and seen.df in (False, None), vars(seen)
            (arrived,) = inside.wait(lambda ip: ip[0] >> 4 == 4 and ip[9] == 1)
            assert arrived[1] == 2, arrived[1]
        traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 300000)


def mss(options):
    """The MSS of both SYNs is lowered, and their checksums stay right: the connection comes up."""

    def announced(ip):
        at = (ip[0] & 15) * 4 if ip[0] >> 4 == 4 else 40
        if ip[9 if ip[0] >> 4 == 4 else 6] != 6 or not ip[at + 13] & 2:
            return None
        assert ip[at + 20 : at + 22] == b"\x02\x04", ip
        return struct.unpack_from("!H", ip, at + 22)[0]

    with Conn(options, mss_clamp=1000) as lab:
        for family in ("v4", "v6"):
            with Capture(lab.pc_a, "eth0", incoming_only=True) as a, Capture(
                lab.pc_b, "eth0", incoming_only=True
            ) as b:
                traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B[family], 100000)
                for wire in (a, b):
                    values = [announced(ip) for ip in wire.packets()]
                    assert [v for v in values if v] == [1000], values


def main():
    options = sites.arguments(__doc__)
    icmp(options)
    copied(options)
    by_rule(options)
    by_libreswan(options)
    print("ok: X4, outer headers and TFC padding")
    mss(options)
    print("ok: MSS")


def icmp(options):
    with sites.Sites(options) as lab:
        lab.gateways()
        for family in ("v4", "v6"):
            unreachable(lab, family)
        no_answer_to_errors(lab)
        rate_limited(lab)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        print("ok: ICMP errors for what has no policy")


if __name__ == "__main__":
    main()
