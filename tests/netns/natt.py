#!/usr/bin/python3
"""ESP in UDP beside IKE, and behind a NAT.

    PC-A ─── gateway A ═══ eth0 ═══ gateway B ─── PC-B        IKE, keepalives, GSO senders at A

    client 1 ──┐                                              two clients with the same inner
    client 2 ──┴── NAT (nftables) ─────────── gateway B       addresses, and one outer address
"""

import json
import os
import shutil
import socket
import struct

from lab import sites, traffic
from lab.namespace import Namespace
from lab.wait import until
from lab.wire import UDP, Capture, Injector, ip_checksum, outer

UDP_SEGMENT = 103
UDP_GRO = 104
MARKER = bytes(4)


def take_ike_socket(daemon, local, port=4500):
    """As an IKE daemon does: a UDP socket out of the control socket."""
    request = {"version": 1, "op": "ike-socket", "local": local, "port": port}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(10)
        connection.connect(daemon.control)
        connection.sendall(json.dumps(request).encode() + b"\n")
        answer, fds, _, _ = socket.recv_fds(connection, 1 << 16, 1)
    answer = json.loads(answer)
    assert answer["ok"] and len(fds) == 1, answer
    taken = socket.socket(fileno=fds[0])
    taken.settimeout(5)
    return taken


def udp_payload(ip):
    """The payload of a datagram from port 4500, or None."""
    header = 20 if ip[0] >> 4 == 4 else 40
    if ip[9 if header == 20 else 6] != UDP:
        return None
    return ip[header + 8 :] if struct.unpack_from("!H", ip, header)[0] == 4500 else None


def ike(lab, pair):
    """N2: what has the marker is the IKE daemon's, byte for byte, and nobody's before there is one."""
    peer = lab.gw_a.socket(traffic.family(lab.left), socket.SOCK_DGRAM)
    peer.bind((lab.left, 500))
    name = peer.getsockname()[:2]
    messages = [MARKER + bytes([n % 251] * n) for n in (28, 300, 1400)]
    for message in messages:
        peer.sendto(message, (lab.right, 4500))
    lab.b.wait_drops(no_ike=3)
    lab.b.take_baseline()

    taken = take_ike_socket(lab.b, lab.right)
    for message in messages:
        peer.sendto(message, (lab.right, 4500))
        seen, source = taken.recvfrom(1 << 16)
        assert seen == message and source[:2] == name, (len(seen), source)
        taken.sendto(message, name)
        seen, source = peer.recvfrom(1 << 16)
        assert seen == message and source[:2] == (lab.right, 4500), (len(seen), source)
    pair.exchange(b"ESP as ever")
    again = take_ike_socket(lab.b, lab.right)
    peer.sendto(messages[0], (lab.right, 4500))
    assert again.recv(1 << 16) == messages[0]
    lab.b.wait_drops()
    peer.close()
    again.close()
    print("ok: N2 IKE has a socket")
    return taken


def withheld_packets(lab, pair, wire, count, size):
    wire.packets()
    with lab.withheld():
        for number in range(count):
            pair.here.sendto(bytes([number]) * size, pair.there_name)
        return [packet.esp for packet in wire.wait_esp(count)]


def mixed(lab, pair, wire, taken):
    """N6: one super-packet with ESP, IKE and a keepalive, in every order."""
    orders = ("eieik", "ieiek", "eeeik", "iieek", "ieek")
    for order in orders:
        packets = withheld_packets(lab, pair, wire, order.count("e"), 500)
        (size,) = {len(packet) for packet in packets}
        messages = [MARKER + bytes([n + 1]) * (size - 4) for n in range(order.count("i"))]
        esp, ike_messages = iter(packets), iter(messages)
        parts = {"e": lambda source=esp: next(source), "i": lambda source=ike_messages: next(source),
                 "k": lambda: b"\xff"}
        data = b"".join(parts[kind]() for kind in order)
        sender = lab.gw_a.socket(traffic.family(lab.left), socket.SOCK_DGRAM)
        sender.bind((lab.left, 4777))
        sender.setsockopt(socket.SOL_UDP, UDP_SEGMENT, size)
        sender.sendto(data, (lab.right, 4500))
        for message in messages:
            seen, source = taken.recvfrom(1 << 16)
            assert seen == message and source[:2] == (lab.left, 4777), (order, len(seen), source)
        arrived = {pair.there.recv(1 << 16)[0] for _ in packets}
        assert arrived == set(range(len(packets))), (order, arrived)
        sender.close()
        pair.exchange(b"back to the real port")
    lab.b.wait_drops()
    print("ok: N6 super-packets that mix ESP, IKE and keepalives")


def merged(lab):
    """TCP goes on as before with an IKE daemon there."""
    before = lab.b.sa("in")["packets"]
    traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 4 << 20)
    assert lab.b.sa("in")["packets"] > before
    lab.b.wait_drops()


def beside_ike(options):
    with sites.Sites(options) as lab:
        lab.gateways()
        lab.b.take_baseline()
        with traffic.UdpPair(
            lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]
        ) as pair, Capture(lab.gw_a, "eth0") as wire:
            pair.exchange(b"first")
            taken = ike(lab, pair)
            mixed(lab, pair, wire, taken)
            merged(lab)
            if options.outer == "v4":
                fragments(lab, pair, wire)
            taken.close()
        lab.b.reload()
        checksums(lab)


def checksums(lab):
    """N7: over IPv4 a checksum of zero is none (RFC 768); over IPv6 it is refused, as RFC 6935 leaves
    to the receiver."""
    injector = Injector(lab.gw_a, "eth0", lab.gw_b.mac("eth0"))
    unknown = struct.pack("!II", 0x12345678, 1) + bytes(40)
    lab.b.take_baseline()
    datagram = outer(lab.left, lab.right, UDP, unknown)
    if lab.options.outer == "v4":
        assert datagram[26:28] == b"\0\0"
        injector.send(datagram)
        lab.b.wait_drops(no_spi=1)
    else:
        injector.send(datagram[:46] + b"\0\0" + datagram[48:])
        injector.send(datagram)  # the second alone is seen
        lab.b.wait_drops(no_spi=1)
    print("ok: N7 no checksum")


def fragments(lab, pair, wire):
    """N8: the kernel puts outer fragments together; what does not make one datagram leaves no trace,
    and the whole one is welcome afterwards."""
    injector = Injector(lab.gw_a, "eth0", lab.gw_b.mac("eth0"))

    def part(ip, start, end, ident, last):
        payload = ip[20 + start : 20 + end]
        flags = start // 8 | (0 if last else 0x2000)
        head = struct.pack("!HHHHBBH", 0x4500, 20 + len(payload), ident, flags, 64, UDP, 0) + ip[12:20]
        return head[:10] + struct.pack("!H", ip_checksum(head)) + head[12:] + payload

    whole, overlapped, cut = (outer(lab.left, lab.right, UDP, esp)
                              for esp in withheld_packets(lab, pair, wire, 3, 700))
    end = len(whole) - 20
    lab.b.take_baseline()
    injector.send(part(whole, 400, end, 1, True))
    injector.send(part(whole, 0, 400, 1, False))
    assert pair.there.recv(1 << 16) == bytes([0]) * 700
    forged = overlapped[:20] + bytes(len(overlapped) - 20)
    for first, second in ((overlapped, forged), (forged, overlapped)):
        injector.send(part(first, 0, 400, 2 + (first is forged), False))
        injector.send(part(second, 392, end, 2 + (first is forged), True))
    injector.send(part(cut, 0, 400, 4, False))
    pair.exchange(b"meanwhile")
    assert not pair.drain(), "put together from what does not fit"
    lab.b.wait_drops()
    for ip, number in ((overlapped, 1), (cut, 2)):
        injector.send(ip)
        assert pair.there.recv(1 << 16) == bytes([number]) * 700
    lab.b.wait_drops()
    print("ok: N8 fragments")


def keepalives(options):
    """N1: one byte 0xff to the peer when nothing else was sent, and only then; what comes of it is
    nothing."""
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        for side in ("left", "right"):
            name = os.path.join(keys, side, "espalier.conf")
            with open(name, encoding="ascii") as file:
                text = file.read()
            with open(name, "w", encoding="ascii") as file:
                file.write("keepalive = 1\n" + text)
        lab.gateways(keys)
        with Capture(lab.gw_a, "eth0") as wire:
            beats = wire.wait(lambda ip: udp_payload(ip) == b"\xff", 4, timeout=8)
            assert {beat[12:16] if beat[0] >> 4 == 4 else beat[8:24] for beat in beats} == {
                socket.inet_pton(traffic.family(end), end) for end in (lab.left, lab.right)
            }
            with traffic.UdpPair(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]) as pair:
                pair.exchange(b"start")
                wire.packets()
                seen = []
                until(lambda: pair.exchange(b"busy") or seen.append(1) or len(seen) > 250,
                      "traffic for some seconds", timeout=20)
                assert not [ip for ip in wire.packets() if udp_payload(ip) == b"\xff"], "not idle"
        assert not any(lab.b.drops().values()), lab.b.drops()
    print("ok: N1 keepalives")


def other_ports(options):
    """left-port and right-port: ESP in UDP between any two ports, and nothing on 4500."""
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        for side in ("left", "right"):
            sites.add_options(os.path.join(keys, side, "espalier.conf"), left_port=4600,
                              right_port=4700)
        lab.gateways(keys)
        with Capture(lab.gw_a, "eth0") as wire:
            traffic.ping(lab.pc_a, sites.PC_B["v4"])
            ports = set()
            for ip in wire.packets():
                header = 20 if ip[0] >> 4 == 4 else 40
                if ip[9 if header == 20 else 6] == UDP:
                    ports.add(struct.unpack_from("!HH", ip, header))
        assert ports == {(4600, 4700), (4700, 4600)}, ports
        assert "4500" not in lab.gw_a.run("ss", "-Hnlu"), "a socket on 4500"
        assert not any(lab.b.drops().values()), lab.b.drops()
    print("ok: left-port and right-port")


def pinned(options):
    """R3, nat-follow = no: the peer is where the configuration says, whoever has its packets."""
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        sites.add_options(os.path.join(keys, "right", "espalier.conf"), nat_follow="no")
        lab.gateways(keys)
        lab.b.take_baseline()
        injector = Injector(lab.gw_a, "eth0", lab.gw_b.mac("eth0"))
        with traffic.UdpPair(
            lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]
        ) as pair, Capture(lab.gw_a, "eth0") as wire:
            (packet,) = withheld_packets(lab, pair, wire, 1, 100)
            injector.send(outer(lab.left, lab.right, UDP, packet, sport=4501))
            lab.b.wait_drops(wrong_peer=1)
            assert lab.b.sa("out")["peer"].endswith(":4500")
            pair.exchange(b"as before")
    print("ok: R3 a pinned peer")


class Natted:
    """Two clients, each with a daemon, behind one NAT; at gateway B a device for each."""

    def __init__(self, lab):
        self.lab = lab
        self.nat = Namespace("nat")
        self.clients = [Namespace(f"client-{n}") for n in (1, 2)]
        for n, client in enumerate(self.clients):
            client.join("eth0", self.nat, f"in{n}")
            client.ip(f"address add 10.200.{n}.2/24 dev eth0")
            client.ip("address add 10.1.3.2/32 dev lo")
            self.nat.ip(f"address add 10.200.{n}.1/24 dev in{n}")
            client.ip(f"route add default via 10.200.{n}.1")
        self.nat.join("out", lab.gw_b, "nat")
        self.nat.ip("address add 192.168.9.1/24 dev out")
        lab.gw_b.ip("address add 192.168.9.2/24 dev nat")
        self.nat.run("nft", "add table ip nat")
        self.nat.run("nft", "add chain ip nat post { type nat hook postrouting priority srcnat ; }")
        self.masquerade()

    def masquerade(self, ports=""):
        """From now on, and with what was known of earlier connections forgotten."""
        self.nat.run("nft", "flush chain ip nat post")
        self.nat.run("nft", f"add rule ip nat post oifname out ip protocol udp masquerade {ports}")

    def start(self):
        conns = []
        for n, client in enumerate(self.clients):
            made = self.lab.keygen(
                conn=f"client{n}", out=f"keys-{n}", left="192.168.9.2", right="%any",
                leftsubnet="10.1.4.0/24", rightsubnet="10.1.3.2/32", mark=str(n + 1),
                vti_interface=f"vti{n}", vti_routing="no", leftvti=None, rightvti=None,
            )
            conns.append(made)
            config = os.path.join(made, "right", "espalier.conf")
            with open(config, encoding="ascii") as file:
                text = file.read()
            with open(config, "w", encoding="ascii") as file:
                file.write(text.replace("right = %any", "right = %defaultroute"))
            self.lab.daemon(client, config)
        both = self.lab.path("both")
        os.makedirs(both)
        with open(os.path.join(both, "espalier.conf"), "w", encoding="ascii") as file:
            for n, made in enumerate(conns):
                with open(os.path.join(made, "left", "espalier.conf"), encoding="ascii") as one:
                    file.write(one.read())
                for ending in ("keys", "state"):
                    shutil.copy2(os.path.join(made, "left", f"client{n}.{ending}"), both)
        server = self.lab.daemon(self.lab.gw_b, os.path.join(both, "espalier.conf")).start()
        for daemon in self.lab.daemons:
            if daemon is not server:
                daemon.start()
        for n, client in enumerate(self.clients):
            client.ip(f"route add 10.1.4.0/24 dev vti{n} src 10.1.3.2")
        return server


def behind_nat(options):
    """N5: two clients of one outer address, and of one inner address too; marks tell them apart.
    N4: the NAT gives a client another port, and the gateway follows its next packet."""
    with sites.Sites(options) as lab:
        natted = Natted(lab)
        server = natted.start()
        server.take_baseline()
        pairs = []
        for client in natted.clients:
            here = client.socket(socket.AF_INET, socket.SOCK_DGRAM)
            here.bind(("10.1.3.2", 7000))
            pairs.append(here)
        there = lab.pc_b.socket(socket.AF_INET, socket.SOCK_DGRAM)
        there.bind(("10.1.4.2", 7000))

        def talk(n):
            lab.gw_b.ip(f"route replace 10.1.3.2/32 dev vti{n}")
            pairs[n].sendto(b"client %d" % n, ("10.1.4.2", 7000))
            seen, source = there.recvfrom(100)
            assert seen == b"client %d" % n and source == ("10.1.3.2", 7000), (seen, source)
            there.sendto(b"for client %d" % n, source)
            assert pairs[n].recv(100) == b"for client %d" % n

        def peers():
            return [server.sa("out", f"client{n}")["peer"] for n in (0, 1)]

        for n in (0, 1, 0, 1):
            talk(n)
        first = peers()
        assert len(set(first)) == 2 and all(p.startswith("192.168.9.1:") for p in first), first
        print(f"ok: N5 two clients behind one NAT: {first}")

        # Other ports from now on; what the NAT knew goes with its device.
        natted.masquerade("to :20000-20999")
        natted.nat.sysctl("net/netfilter/nf_conntrack_udp_timeout", 1)
        natted.nat.sysctl("net/netfilter/nf_conntrack_udp_timeout_stream", 1)
        until(lambda: "4500" not in conntrack(natted.nat), "the mappings' end", timeout=200)
        for n in (1, 0):
            talk(n)
        moved = peers()
        assert all(20000 <= int(p.split(":")[1]) <= 20999 for p in moved), moved
        server.wait_drops()
        print(f"ok: N4 followed to {moved}")


def conntrack(box):
    """What the NAT knows of UDP; empty where /proc has no list."""
    with box.entered():
        try:
            with open("/proc/thread-self/net/nf_conntrack", encoding="ascii") as file:
                return "".join(line for line in file if " udp " in line)
        except FileNotFoundError:
            return ""


def main():
    options = sites.arguments(__doc__)
    beside_ike(options)
    keepalives(options)
    other_ports(options)
    pinned(options)
    if options.outer == "v4":
        behind_nat(options)


if __name__ == "__main__":
    main()
