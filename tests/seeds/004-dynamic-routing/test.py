#!/usr/bin/python3
"""Seed 004: networks behind two libreswans, told to each other by RIP over the tunnel's device.

    eth1 192.168.20.1/24 ─ left 10.0.149.110 ═══════════ 10.0.149.111 right ─ 192.168.21.1/24 eth1
                            └ vti02 192.168.10.3    192.168.10.4 vti02 ┘

With --nat left has 10.77.0.2 and is seen as 10.0.149.110. With --outer v6 the gateways have 2001:db8::110
and ::111; libreswan's script knows no such VTI, so the device is made before.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from hosts import picture  # noqa: E402
from hosts.checks import only_esp  # noqa: E402
from hosts.document import Document  # noqa: E402
from hosts.libreswan import IKEV1  # noqa: E402
from hosts.frr import Frr  # noqa: E402
from lab import traffic  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402

OUTER = {"v4": ("10.0.149.110", "10.0.149.111"), "v6": ("2001:db8::110", "2001:db8::111")}
LEFT, RIGHT = OUTER["v4"]
BEHIND_NAT = "10.77.0.2"
CONN = "tunnel1"
SECRETS = "".join(f'{left} {right} : PSK "not-a-secret"\n' for left, right in OUTER.values())
RIP_ROUTERS = bytes((224, 0, 0, 9))
SOON = 30  # seconds; RIP puts up to five before what it tells unasked


def configure(host, side, options):
    general, tunnel, rip, daemons = (
        Document(__file__, name) for name in ("ipsec.conf", "tunnel1.conf", "ripd.conf", "daemons"))
    left, right = OUTER[options.outer]
    address = {"left": BEHIND_NAT if options.nat else left, "right": right}[side]
    # libreswan 4.10 no longer has this level of debugging, and takes IKEv1 only where it is told to.
    host.write("/etc/ipsec.conf", general.filled(side, {
        "plutodebug=control": "plutodebug=none", f"listen={LEFT}": f"listen={address}\n        {IKEV1}"}))
    changes = {}
    if options.outer == "v6":
        changes = {f"left={LEFT}": f"left={left}", f"right={RIGHT}": f"right={right}"}
    if side == "right":
        changes["leftvti=192.168.10.3/24"] = "rightvti=192.168.10.4/24"
    elif options.nat:
        changes |= {f"left={LEFT}": f"left={BEHIND_NAT}\n    leftid={LEFT}"}
    host.write("/etc/ipsec.d/tunnel1.conf", tunnel.filled(side, changes))
    host.write("/etc/ipsec.d/seed.secrets", SECRETS, mode=0o600)
    router = Frr(host)
    # The document leaves RIP's timers as they are: an update every 30 s. This is its least.
    words = {"router rip\n": "router rip\n timers basic 5 180 120\n"}
    if side == "right":
        words["192.168.20.0/24"] = "192.168.21.0/24"
    router.configure("ripd.conf", rip.filled(side, words))
    return router, daemons.text


def routes(host):
    return {line.split()[0] for line in host.ip("route show proto rip").splitlines()}


def wait_routes(host, *wanted):
    until(lambda: routes(host) == set(wanted), f"routes {wanted} of {host.name}", timeout=SOON)


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        left, right = lab.libreswan("left", ["frr"]), lab.libreswan("right", ["frr"])
        if options.nat:
            lab.nat(left, f"{BEHIND_NAT}/24", right, f"{RIGHT}/24", f"{LEFT}/24")
        else:
            ends, length = OUTER[options.outer], 64 if options.outer == "v6" else 24
            lab.wire(left, "eth0", f"{ends[0]}/{length}", right, "eth0", f"{ends[1]}/{length}")
        routers = {}
        for host, net in ((left, 20), (right, 21)):
            lab.network(host, "eth1", f"192.168.{net}.1/24")
            routers[host] = configure(host, host.name, options)
            host.start_daemon()
        if options.outer == "v6":
            left.make_vti("vti02", *OUTER["v6"], 5, "192.168.10.3/24")
            right.make_vti("vti02", *reversed(OUTER["v6"]), 5, "192.168.10.4/24")
        underlay = Capture(left, "eth0")
        right.start_pluto()
        left.start_pluto()
        for host in (left, right):
            host.wait_tunnel(CONN)
        inside = Capture(right, "vti02")
        for host, (router, daemons) in routers.items():
            host.run("ifconfig", "vti02", "multicast")  # as in the document
            router.start(daemons)

        # The document's tcpdump: RIP to all routers, TTL 1, DSCP CS6.
        (rip, *_) = inside.wait(lambda ip: ip[16:20] == RIP_ROUTERS and ip[22:24] == b"\x02\x08", timeout=SOON)
        assert rip[8] == 1 and rip[1] == 0xC0, rip.hex()
        wait_routes(left, "192.168.21.0/24")
        wait_routes(right, "192.168.20.0/24")
        traffic.ping(left, "192.168.21.1")

        # A network more at the left is soon known at the right.
        lab.network(left, "eth2", "192.168.20.65/26")
        wait_routes(right, "192.168.20.0/24", "192.168.20.64/26")
        traffic.ping(right, "192.168.20.65")
        assert only_esp(underlay.packets(), "192.168.0.0/16") > 10

        # Without the tunnel there are no routes into it; with it they come back. (Without the conn:
        # a conn that is only down traps packets, for which RIP's next one is enough.)
        for host in (left, right):
            host.whack("--delete", "--name", CONN)
        wait_routes(left)
        wait_routes(right)
        for host in (right, left):
            host.run("ipsec", "auto", "--add", CONN)
        left.run("ipsec", "auto", "--up", CONN)
        wait_routes(left, "192.168.21.0/24")
        wait_routes(right, "192.168.20.0/24", "192.168.20.64/26")
        traffic.ping(right, "192.168.20.65")


if __name__ == "__main__":
    main()
