#!/usr/bin/python3
"""The UDP port of an IKE daemon is shared with ESP, whoever starts, ends or comes again first.

    PC-A ─── gateway A │ espalierd ═══ UDP 4500 ═══ espalierd, "IKE daemon" │ gateway B ─── PC-B

The IKE daemon is a few lines that know nothing of espalierd: bind, UDP_ENCAP, and send back whatever
has the non-ESP marker, all behind `espalier exec`. Its peer is a socket on gateway A.
"""

import os
import re
import secrets
import socket
import struct
import subprocess
import sys
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "netns"), os.path.join(HERE, "..", "seeds", "lab"),
               os.path.join(HERE, "..", "xfrm")]  # fmt: skip

from charon import Host  # noqa: E402
from lab import sites, traffic  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402
from restart import MEMORY, held, supervisors  # noqa: E402

UDP_SEGMENT, UDP_GRO, UDP_ENCAP = 103, 104, 100
SECOND = {"v4": "192.168.1.44", "v6": "fd00:192:168:1::44"}
ANY = {"v4": "0.0.0.0", "v6": "::"}
IKE_DAEMON = """
import selectors, socket, sys
chosen = selectors.DefaultSelector()
for address in sys.argv[1:]:
    six = ":" in address
    s = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    if six: s.setsockopt(41, 26, 1)
    s.bind((address, 4500))
    s.setsockopt(17, 100, 2)
    s.setsockopt(17, 104, 1)
    chosen.register(s, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in chosen.select():
        data, peer = key.fileobj.recvfrom(1 << 16)
        print("ike" if data[:4] == bytes(4) else "other", len(data), flush=True)
        key.fileobj.sendto(data, peer)
"""


def ike_message(size):
    """With the marker, and a header that says its length."""
    return bytes(4) + secrets.token_bytes(24) + struct.pack("!I", size) + secrets.token_bytes(size - 28)


class IkeDaemon:
    def __init__(self, host, *addresses):
        self.process = host.namespace.start(*host.prefix, sys.executable, "-c", IKE_DAEMON, *addresses,
                                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.first = self.process.stdout.readline().strip()
        if self.first != "ready":
            self.first += self.process.stdout.read()

    def took(self):
        return self.process.stdout.readline().split()[0]

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


class Peer:
    """What a peer's IKE sends to `address`, and gets back."""

    def __init__(self, lab, address, port=500):
        self.there = (address, 4500)
        self.socket = lab.gw_a.socket(traffic.family(address), socket.SOCK_DGRAM)
        self.socket.bind((lab.left, port))

    def exchange(self, daemon, sizes=(28, 300, 1300)):
        for size in sizes:
            message = ike_message(size)
            self.socket.sendto(message, self.there)
            seen, source = self.socket.recvfrom(1 << 16)
            assert seen == message and source[:2] == self.there, (len(seen), source)
            assert daemon.took() == "ike"

    def close(self):
        self.socket.close()


def tunnel(lab, host, keys, way, right, device=True):
    """Half a tunnel, by the command line: after a restart of its daemon again, with keys of `way`.
    Without its device where that has come back (tools/keep.h)."""
    here, there = (lab.left, right) if way == "left" else (right, lab.left)
    mine, theirs = sites.PC_A[lab.options.outer], sites.PC_B[lab.options.outer]
    if way == "right":
        mine, theirs = theirs, mine

    def try_to(*words, key=""):
        done = subprocess.run([os.path.join(lab.options.programs, "espalier"), *words, "--control",
                               host.daemon.control], input=key, capture_output=True, text=True,
                              timeout=30, check=False)
        assert done.returncode == 0 or re.search("busy|in use", done.stderr), (words, done.stderr)
        return done.returncode == 0

    def espalier(*words, key=""):
        # The kernel takes a killed ring apart in its own time, and keeps the device until then.
        until(lambda: try_to(*words, key=key), " ".join(words))

    if device:
        espalier("vti", "add", "vti01", "local", here, "remote", there, "key", "5")
    espalier("policy", "add", "dir", "out", "src", mine, "dst", theirs, "mark", "5", "reqid", "1")
    espalier("policy", "add", "dir", "in", "src", theirs, "dst", mine, "mark", "5", "reqid", "1")
    for name in ("left", "right"):
        ends = (lab.left, right) if name == "left" else (right, lab.left)
        espalier("sa", "add", "src", ends[0], "dst", ends[1], "dir", "out" if name == way else "in", "spi",
                 "0x1001" if name == "left" else "0x2002", "enc", "udp", "4500", "4500", "suite",
                 "aes_gcm128", "key", "-", "reqid", "1", "esn", "no", key=keys[name])
    host.namespace.ip("link set vti01 up")
    host.namespace.ip(f"route replace {theirs} dev vti01")


def fresh_keys():
    return {name: secrets.token_hex(20) for name in ("left", "right")}


def check(lab, daemon, peer, message):
    peer.exchange(daemon)
    traffic.ping(lab.pc_a, sites.PC_B[lab.options.outer], size=1000)
    traffic.ping(lab.pc_b, sites.PC_A[lab.options.outer])
    print("ok:", message, flush=True)


def any_order(lab, bound):
    a, b = Host(lab, lab.gw_a), Host(lab, lab.gw_b)
    keys = fresh_keys()
    tunnel(lab, a, keys, "left", lab.right)
    tunnel(lab, b, keys, "right", lab.right)
    peer = Peer(lab, lab.right)
    daemon = IkeDaemon(b, bound)
    assert daemon.first == "ready", daemon.first
    check(lab, daemon, peer, "the tunnel was there first, then the IKE daemon")

    other = IkeDaemon(b, bound)
    assert "Address already in use" in other.first, other.first
    other.process.stdout.close()
    check(lab, daemon, peer, "a second IKE daemon finds the port taken")

    daemon.kill()
    traffic.ping(lab.pc_a, sites.PC_B[lab.options.outer])
    daemon = IkeDaemon(b, bound)
    assert daemon.first == "ready", daemon.first
    check(lab, daemon, peer, "the IKE daemon dies, ESP goes on, and it comes again")

    mixed(lab, daemon)

    # A command that is soon done holds nothing.
    box = types.SimpleNamespace(box=b.namespace)
    until(lambda: any({MEMORY, "/dev/net/tun"} <= set(held(pid)) for pid in supervisors(box)),
          "the device is held")  # fmt: skip
    b.daemon.kill()
    peer.exchange(daemon)
    mark = b.daemon.mark()
    b.daemon.start_again()
    b.daemon.wait_line("sharing UDP", since=mark)
    b.daemon.wait_line("back from an espalierd before this one: 1 devices", since=mark)
    keys = fresh_keys()
    a.daemon.kill()
    a.daemon.start_again()
    tunnel(lab, a, keys, "left", lab.right)
    tunnel(lab, b, keys, "right", lab.right, device=False)
    check(lab, daemon, peer, "espalierd is killed and comes again")

    traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B[lab.options.outer], 2 << 20)
    daemon.kill()
    peer.close()
    return a, b


def mixed(lab, daemon):
    """Super-packets of IKE alone arrive as single datagrams, also where ESP comes along in them."""
    size = 400
    sender = lab.gw_a.socket(traffic.family(lab.left), socket.SOCK_DGRAM)
    sender.bind((lab.left, 4777))
    sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
    for order in ("iii", "eie", "iee", "ieki", "eii"):
        messages = [ike_message(size - 4) for _ in range(order.count("i"))]
        rest = iter(messages)
        parts = {"i": lambda source=rest: next(source), "k": lambda: secrets.token_bytes(size),
                 "e": lambda: b"\1\2\3\4" + secrets.token_bytes(size - 4)}
        sender.sendto(b"".join(parts[kind]() for kind in order), (lab.right, 4500))
        for message in messages:
            seen, _ = sender.recvfrom(1 << 16)
            assert seen == message, (order, len(seen))
            assert daemon.took() == "ike", order
    sender.close()
    print("ok: super-packets that mix ESP and IKE", flush=True)


def second_address(lab):
    """A socket without an address, and an SA at the second address of the host: what is sent comes
    from there. Then a socket for each address, as libreswan has them."""
    version = lab.options.outer
    length = "24" if version == "v4" else "64 nodad"
    second = SECOND[version]
    lab.gw_b.ip(f"address add {second}/{length.split()[0]} dev eth0 {' '.join(length.split()[1:])}")
    a, b = Host(lab, lab.gw_a), Host(lab, lab.gw_b)
    daemon = IkeDaemon(b, ANY[version])
    keys = fresh_keys()
    tunnel(lab, a, keys, "left", second)
    tunnel(lab, b, keys, "right", second)
    with Capture(lab.gw_a, "eth0") as wire:
        traffic.ping(lab.pc_a, sites.PC_B[version])
        sources = {socket.inet_ntop(traffic.family(second), packet.source) for packet in wire.wait_esp(6)}
    assert sources == {lab.left, second}, sources
    daemon.kill()
    print("ok: sent from the SA's address", flush=True)

    daemon = IkeDaemon(b, lab.right, second)
    assert daemon.first == "ready", daemon.first
    for address, port in ((lab.right, 500), (second, 501)):
        peer = Peer(lab, address, port)
        check(lab, daemon, peer, f"a socket for each address: {address}")
        peer.close()
    daemon.kill()
    traffic.ping(lab.pc_a, sites.PC_B[version])

    def port_is_free():
        with lab.gw_b.entered(), socket.socket(traffic.family(second), socket.SOCK_DGRAM) as probe:
            try:
                probe.bind((lab.right, 4500))
                return True
            except OSError:
                return False

    until(port_is_free, "the port that nobody uses is the host's again")
    print("ok: given back")


def main():
    options = sites.arguments(__doc__)
    version = options.outer
    with sites.Sites(options) as lab:
        any_order(lab, ANY[version])
    with sites.Sites(options) as lab:
        any_order(lab, lab.right)
    with sites.Sites(options) as lab:
        second_address(lab)


if __name__ == "__main__":
    main()
