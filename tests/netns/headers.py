#!/usr/bin/python3
"""What becomes of headers: ICMP for what cannot go on, and the outer header.

    PC-A ─── gateway A ═══ ESP ═══ gateway B ─── PC-B
"""

import socket

from lab import sites, traffic
from lab.wait import until
from lab.wire import Capture

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
        for _ in range(count):
            try:
                pair.sendto(b"x", (NOWHERE["v4"], 9))
            except OSError:
                pass  # what it was told before
        pair.close()
        until(lambda: lab.a.status()["drops"]["no_policy"] >= before + count // 2, "a flood")
        errors = [ip for ip in wire.packets() if ip[0] >> 4 == 4 and ip[9] == 1]
        assert 0 < len(errors) < count // 2, len(errors)


def main():
    options = sites.arguments(__doc__)
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
