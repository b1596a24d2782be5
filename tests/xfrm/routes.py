#!/usr/bin/python3
"""Policies without mark and if_id: which packets the kernel leads into our device, and which not.

    10.1.0.0/16 ── a1 gateway A a0 ═══════════ 10.9.0.2 the peer, 10.9.0.3 another
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

from ip_xfrm import A, B, Gateway  # noqa: E402
from lab.namespace import exit_on_signals, require_root  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402
from restart import NATT  # noqa: E402

OTHER = "10.9.0.3"
FAR = "203.0.113.7"
VIRTUAL = "10.99.0.9"
TMPL = f"tmpl src {A} dst {B} proto esp reqid 1 mode tunnel"
DEVICE = "espalier0"


class Routes:
    """What the kernel of the gateway would do with a packet."""

    def __init__(self, gateway):
        self.gateway = gateway

    def of(self, packet):
        return self.gateway.box.ip(f"route get {packet}")

    def inside(self, packet):
        assert f"dev {DEVICE}" in self.of(packet), (packet, self.of(packet))

    def outside(self, packet, device="a0"):
        assert f"dev {device} " in self.of(packet), (packet, self.of(packet))


def own_esp_leaves(a, peer):
    """`ip route get` has no word for this protocol."""
    marked = os.urandom(16)
    with Capture(a.box, "a0") as wire, a.box.socket(socket.AF_INET, socket.SOCK_RAW, 50) as esp:
        esp.sendto(marked, (peer, 0))
        end = time.monotonic() + 5
        while time.monotonic() < end:
            if any(marked in packet for packet in wire.packets()):
                return True
            time.sleep(0.01)
    return False


def everything(a, is_it):
    """0.0.0.0/0 has all, but never what is the tunnel's own or an IKE daemon's, for any peer."""
    a.ip(f"xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 100 {TMPL}")
    is_it.inside("192.0.2.77")
    is_it.inside(OTHER)
    # A source that others can answer.
    assert "src 127." not in is_it.of("192.0.2.77"), is_it.of("192.0.2.77")
    assert f"src {A} " in is_it.of("192.0.2.77") or "src 10.1.0.1 " in is_it.of("192.0.2.77")
    for peer in (B, OTHER):
        assert own_esp_leaves(a, peer), peer
        is_it.outside(f"{peer} ipproto udp sport 500 dport 500")
        # Somebody else's are not ours.
        is_it.inside(f"{peer} from 10.1.0.7 iif a1 ipproto udp sport 500 dport 500")
    natt = f"{OTHER} ipproto udp sport 4500 dport 4500"
    is_it.inside(natt)
    daemon = a.box.start(*a.exec(sys.executable, "-B", "-c", NATT), stdout=subprocess.PIPE, text=True)
    assert daemon.stdout.readline(), "the port is not bound"
    until(lambda: DEVICE not in is_it.of(natt), "its port is known")
    is_it.outside(natt)
    is_it.inside(f"{OTHER} from 10.1.0.7 iif a1 ipproto udp sport 4500 dport 4500")
    daemon.terminate()
    daemon.wait()
    until(lambda: DEVICE in is_it.of(natt), "its port is anybody's")


def bypasses(a, is_it):
    """What a policy lets pass does, unless one that comes before it wants it."""
    near = "src 0.0.0.0/0 dst 10.1.0.0/16 dir out"
    a.ip(f"xfrm policy add {near} priority 50 action allow")
    is_it.outside("10.1.0.9", "a1")
    is_it.outside("10.1.0.9 from 10.1.3.4 iif a1", "a1")
    is_it.inside("10.2.0.9")
    web = "src 0.0.0.0/0 dst 10.8.0.0/16 proto tcp dport 80 dir out"
    a.ip(f"xfrm policy add {web} priority 50 action allow")
    is_it.outside("10.8.0.1 ipproto tcp dport 80 sport 1000")
    is_it.inside("10.8.0.1 ipproto tcp dport 81 sport 1000")
    a.ip(f"xfrm policy delete {web}")
    is_it.inside("10.8.0.1 ipproto tcp dport 80 sport 1000")
    # One that protects a part of it and comes first; then it only comes behind.
    part = "src 0.0.0.0/0 dst 10.1.4.0/24 dir out"
    a.ip(f"xfrm policy add {part} priority 10 {TMPL}")
    is_it.inside("10.1.4.4")
    a.ip(f"xfrm policy update {part} priority 90 {TMPL}")
    is_it.outside("10.1.4.4", "a1")
    a.ip(f"xfrm policy delete {part}")
    is_it.outside("10.1.4.4", "a1")
    a.ip(f"xfrm policy delete {near}")
    is_it.inside("10.1.0.9")


def neighbours(a, is_it):
    """A policy that goes takes no other's rule with it."""
    narrow = "src 10.1.0.0/16 dst 10.5.0.0/16 dir out"
    wide = "src 0.0.0.0/0 dst 10.5.0.0/16 dir out"
    a.ip("xfrm policy flush")
    a.ip(f"xfrm policy add {narrow} {TMPL}")
    a.ip(f"xfrm policy add {wide} {TMPL}")
    a.ip(f"xfrm policy delete {wide}")
    is_it.inside("10.5.0.1 from 10.1.0.7 iif a1")
    is_it.outside("10.5.0.1 from 10.9.0.7 iif a0")


def killed(a, is_it):
    """What a killed daemon let pass does so no more, unless it is said again."""
    a.ip("xfrm policy flush")
    # To a gateway (libreswan asks for the way to it): the next one may be another.
    a.box.ip(f"addr add {VIRTUAL}/32 dev a1")
    virtual = f"src {VIRTUAL}/32 dst 0.0.0.0/0 dir out priority 200 tmpl src {A} dst {FAR} proto esp reqid 2 mode tunnel"
    a.ip(f"xfrm policy add {virtual}")
    assert f"210:\tfrom 0.0.0.0 to {B} lookup main" in a.box.ip("rule"), a.box.ip("rule")
    a.ip(f"xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 100 {TMPL}")
    a.ip("xfrm policy add src 0.0.0.0/0 dst 10.1.0.0/16 dir out priority 50 action allow")
    is_it.outside("10.1.0.9", "a1")
    a.daemon.kill()
    a.daemon.wait()
    a.start()
    a.ip(f"xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 100 {TMPL}")
    is_it.inside("10.1.0.9")
    assert f"to {B} lookup main" not in a.box.ip("rule"), a.box.ip("rule")
    # What led in stays until it is said again: nothing of it leaves in clear.
    a.ip(f"xfrm policy add {virtual}")
    a.ip("xfrm policy flush")
    left = re.findall(r"21[0-5]:.*", a.box.ip("rule"))
    assert not left, left


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", required=True)
    options = parser.parse_args()
    require_root()
    exit_on_signals()
    with tempfile.TemporaryDirectory() as folder:
        a = Gateway(options.programs, folder, "a", A)
        b = Gateway(options.programs, folder, "b", B)
        a.box.join("a0", b.box, "b0")
        a.box.join("a1", b.box, "b1")
        a.box.ip(f"addr add {A}/24 dev a0")
        a.box.ip("addr add 10.1.0.1/16 dev a1")
        a.box.ip(f"route add default via {B} dev a0")
        b.box.ip(f"addr add {B}/24 dev b0")
        b.box.ip(f"addr add {OTHER}/24 dev b0")
        a.start()
        is_it = Routes(a)
        for what in (everything, bypasses, neighbours, killed):
            what(a, is_it)
            print(f"{what.__name__}: good")
        a.stop()


if __name__ == "__main__":
    main()
