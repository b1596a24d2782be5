#!/usr/bin/python3
"""Path MTU: a router between the gateways takes less than they think.

    PC-A ─── gateway A ─── router ─── gateway B ─── PC-B
             192.168.1.3   1 │ 2      192.168.2.4
"""

import os
import re
import socket
import struct

from lab import sites, traffic
from lab.namespace import Namespace
from lab.wait import until
from lab.wire import Capture, Injector, esp_packet, ip_checksum, udp_checksum

ENDS = {
    "v4": ("192.168.1.3", "192.168.2.4"),
    "v6": ("fd00:192:168:1::3", "fd00:192:168:2::4"),
}
HOPS = {"v4": ("192.168.1.1", "192.168.2.1"), "v6": ("fd00:192:168:1::1", "fd00:192:168:2::1")}
ICMPV6 = 58


class Routed(sites.Sites):
    """The usual picture with a router in the middle."""

    def _cable(self):
        self.router = Namespace("router")
        self.gw_a.join("eth0", self.router, "west")
        self.gw_b.join("eth0", self.router, "east")
        self.pc_a.join("eth0", self.gw_a, "eth1")
        self.pc_b.join("eth0", self.gw_b, "eth1")
        self.left, self.right = ENDS[self.options.outer]
        for family, length in (("v4", 24), ("v6", 64)):
            nodad = " nodad" if family == "v6" else ""
            for box, device, address in (
                (self.gw_a, "eth0", ENDS[family][0]),
                (self.gw_b, "eth0", ENDS[family][1]),
                (self.router, "west", HOPS[family][0]),
                (self.router, "east", HOPS[family][1]),
                (self.gw_a, "eth1", re.sub("2$", "1", sites.PC_A[family])),
                (self.gw_b, "eth1", re.sub("2$", "1", sites.PC_B[family])),
                (self.pc_a, "eth0", sites.PC_A[family]),
                (self.pc_b, "eth0", sites.PC_B[family]),
            ):
                box.ip(f"address add {address}/{length} dev {device}{nodad}")
            for box, hop in (
                (self.gw_a, HOPS[family][0]),
                (self.gw_b, HOPS[family][1]),
                (self.pc_a, re.sub("2$", "1", sites.PC_A[family])),
                (self.pc_b, re.sub("2$", "1", sites.PC_B[family])),
            ):
                box.ip(f"{'-6 ' if family == 'v6' else ''}route add default via {hop}")

    def path_mtu(self):
        return self.a.sa("out")["path_mtu"]

    def narrow(self, mtu):
        """What the router takes towards gateway B."""
        self.router.ip(f"link set east mtu {mtu}")
        self.gw_b.ip(f"link set eth0 mtu {mtu}")


def inner_mtu(lab, path):
    """RFC 4106 §5: SPI, SN, IV, ICV 16; text in multiples of 4, two of them the trailer."""
    headers = (40 if lab.options.outer == "v6" else 20) + (8 if lab.options.encap == "udp" else 0)
    return (path - headers - 8 - 8 - 16) // 4 * 4 - 2


def told_mtu(box, address, size):
    """The number that the kernel of `box` is told about a packet of `size` bytes with DF."""
    headers = 48 if ":" in address else 28
    output = box.run(
        "ping", "-n", "-M", "do", "-c", "1", "-W", "0.2", "-s", str(size - headers), address, check=False
    )
    found = re.search(r"mtu ?= ?(\d+)", output)
    return int(found[1]) if found else None


def forget(box, family):
    """What the kernel of a host has learned itself."""
    box.ip(("-6 " if family == "v6" else "") + "route flush cache")


def narrows(lab, family):
    """M2: the path drops to 1300 (1400 where 1300 would be below IPv6's least): the sender is told
    the number that fits, and TCP goes on."""
    path = 1400
    here, there = sites.PC_A[family], sites.PC_B[family]
    traffic.tcp(lab.pc_a, lab.pc_b, there, 1 << 20, timeout=20)
    lab.narrow(path)
    number = inner_mtu(lab, path)
    told = []

    def right():
        told.append(told_mtu(lab.pc_a, there, 1400))
        return told[-1] == number

    until(right, f"to be told mtu {number}")
    assert {n for n in told if n} == {number}, told
    traffic.ping(lab.pc_a, there, size=number - (48 if family == "v6" else 28))
    forget(lab.pc_a, family)
    with Capture(lab.router, "east") as wire:
        traffic.tcp(lab.pc_a, lab.pc_b, there, 1 << 20, timeout=20)
        longest = max(len(ip) for ip in wire.packets() if esp_packet(ip))
        assert path - 4 < longest <= path, longest
    traffic.tcp(lab.pc_b, lab.pc_a, here, 1 << 20, timeout=20)
    forget(lab.pc_a, family)


def fragments_inside(lab):
    """M5: what may be fragmented is, before it is protected, and nobody is told."""
    with Capture(lab.router, "east") as wire, Capture(lab.pc_b, "eth0", incoming_only=True) as arrived:
        output = lab.pc_a.run("ping", "-n", "-M", "dont", "-c", "2", "-i", "0.05", "-W", "3", "-s", "1370",
                              sites.PC_B["v4"])
        assert " 2 received" in output and "mtu" not in output, output
        sealed = [ip for ip in wire.packets() if esp_packet(ip)]
        assert len(sealed) >= 4 and max(map(len, sealed)) <= 1400, list(map(len, sealed))
        pieces = [ip for ip in arrived.packets() if ip[0] >> 4 == 4 and struct.unpack_from("!H", ip, 6)[0] & 0x3FFF]
        assert len(pieces) == 4, list(map(len, pieces))


def too_big(lab, quoted, mtu):
    """What a router would say about `quoted` (an outer packet)."""
    source, destination = HOPS[lab.options.outer][0], ENDS[lab.options.outer][0]
    if lab.options.outer == "v4":
        message = struct.pack("!BBHHH", 3, 4, 0, 0, mtu) + quoted[:548]
        message = message[:2] + struct.pack("!H", ip_checksum(message + bytes(len(message) % 2))) + message[4:]
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(message), 0, 0, 64, 1, 0)
        header += socket.inet_aton(source) + socket.inet_aton(destination)
        return header[:10] + struct.pack("!H", ip_checksum(header)) + header[12:] + message
    src, dst = (socket.inet_pton(socket.AF_INET6, a) for a in (source, destination))
    message = struct.pack("!BBHI", 2, 0, 0, mtu) + quoted[:1232]
    pseudo = src + dst + struct.pack("!II", len(message), ICMPV6)
    total = ip_checksum(pseudo + message + bytes(len(message) % 2))
    message = message[:2] + struct.pack("!H", total) + message[4:]
    return struct.pack("!IHBB", 6 << 28, len(message), ICMPV6, 64) + src + dst + message


def with_spi(lab, ip, change):
    at = esp_packet(ip).offset
    return ip[: at + 3] + bytes([ip[at + 3] ^ change]) + ip[at + 4 :]


def spoofed(lab):
    """M4, T24: who cannot show the SPI is not believed; who can does not get below the floor."""
    v4 = lab.options.outer == "v4"
    with Capture(lab.router, "west") as wire:
        traffic.ping(lab.pc_a, sites.PC_B["v4"], count=1, size=1300)
        (sent,) = [ip for ip in wire.packets() if esp_packet(ip) and len(ip) > 1300 and
                   esp_packet(ip).source == socket.inet_pton(traffic.family(lab.left), lab.left)]
    injector = Injector(lab.router, "west", lab.gw_a.mac("eth0"))

    def becomes(mtu):
        until(lambda: lab.path_mtu() == mtu, f"{mtu}, but {lab.path_mtu()}", timeout=3)

    for mtu in (1, 68, 0, 700, 65535, len(sent) - 1):
        injector.send(too_big(lab, with_spi(lab, sent, 1), mtu))
    if not v4:
        for mtu in (0, 68, 1279):  # RFC 8201 §4
            injector.send(too_big(lab, sent, mtu))
    injector.send(too_big(lab, sent, 65535))
    first = len(sent) - 2
    injector.send(too_big(lab, sent, first))  # one that counts: all before it have been read
    becomes(first)
    for mtu, wanted in ((0, 1006), (1, 576), (68, 576)) if v4 else ((1280, 1280),):
        injector.send(too_big(lab, sent, mtu))
        becomes(wanted)
    traffic.ping(lab.pc_a, sites.PC_B["v4"])
    traffic.ping(lab.pc_a, sites.PC_B["v6"], size=1232)  # 1280 bytes must always pass
    injector.close()


def link_changes(lab, family):
    """M6: the own link takes less for a while."""
    there = sites.PC_B[family]
    lab.gw_a.ip("link set eth0 mtu 1400")
    lab.router.ip("link set west mtu 1400")
    number = inner_mtu(lab, 1400)
    told = []

    def right():
        told.append(told_mtu(lab.pc_a, there, 1400))
        return told[-1] == number

    until(right, f"to be told mtu {number}")
    forget(lab.pc_a, family)
    traffic.tcp(lab.pc_a, lab.pc_b, there, 1 << 20, timeout=20)
    forget(lab.pc_a, family)
    lab.router.ip("link set west mtu 1500")
    lab.gw_a.ip("link set eth0 mtu 1500")
    until(lambda: lab.path_mtu() == 1500, f"{lab.path_mtu()}")
    size = lab.gw_a.mtu("vti01") - (48 if family == "v6" else 28)
    traffic.ping(lab.pc_a, there, size=size)


def device_changes(lab):
    """M6: somebody sets the device's own MTU, down and up again, while packets flow."""
    before = lab.gw_a.mtu("vti01")
    for mtu in (1300, 9000, before):
        lab.gw_a.ip(f"link set vti01 mtu {mtu}")
        traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 1 << 20, timeout=20)
        traffic.tcp(lab.pc_b, lab.pc_a, sites.PC_A["v4"], 1 << 20, timeout=20)


def large(options):
    """M7, T10: a device of 34,816 bytes on links of 40,000."""
    with Routed(options) as lab:
        for box, device in (
            (lab.gw_a, "eth0"), (lab.router, "west"), (lab.router, "east"), (lab.gw_b, "eth0"),
            (lab.gw_a, "eth1"), (lab.gw_b, "eth1"), (lab.pc_a, "eth0"), (lab.pc_b, "eth0"),
        ):
            box.ip(f"link set {device} mtu 40000")
        keys = lab.keygen()
        for side in ("left", "right"):
            sites.add_options(os.path.join(keys, side, "espalier.conf"), mtu=34816)
        lab.gateways(keys)
        assert lab.gw_a.mtu("vti01") == 34816
        traffic.ping(lab.pc_a, sites.PC_B["v4"], size=9000)  # raw sockets: the first large one
        for family, headers in (("v4", 28), ("v6", 48)):
            for box, there in ((lab.pc_a, sites.PC_B[family]), (lab.pc_b, sites.PC_A[family])):
                # Each raw socket loses the first that its buffers are too small for: one a way.
                box.run("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-s", str(34816 - headers),
                        there, check=False)
                traffic.ping(box, there, size=34816 - headers)
            traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B[family], 8 << 20, timeout=20)


def main():
    options = sites.arguments(__doc__)
    large(options)
    print("ok: M7")
    with Routed(options) as lab:
        lab.gateways()
        for family in ("v4", "v6"):
            link_changes(lab, family)
        device_changes(lab)
        print("ok: M6")
    for family in ("v4", "v6"):
        with Routed(options) as lab:
            lab.gateways()
            narrows(lab, family)
            if family == "v4":
                fragments_inside(lab)
                print("ok: M5")
    print("ok: M2")
    with Routed(options) as lab:
        lab.gateways()
        spoofed(lab)
    print("ok: M4, T24")


if __name__ == "__main__":
    main()
