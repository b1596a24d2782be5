#!/usr/bin/python3
"""What a VTI can do beyond one tunnel: several gateways on one device, carriers, selectors, multicast.

    PC-A ─── gateway A │ vti01 ═══ west ═══ .4  │ gateway B ─── PC-B
                .3 .13 │       ═══ east ═══ .14 │
"""

import os
import socket
import struct

from lab import sites, traffic
from lab.namespace import Namespace
from lab.wait import until
from lab.wire import Capture
from marks import takes

RIP_GROUP, RIP_PORT = "224.0.0.9", 520


def carrier(namespace, device):
    return "LOWER_UP" in namespace.ip(f"link show {device}")


def counter(daemon, name):
    return daemon.status()["drops"][name]


def shared_by_two_gateways(options):
    """Seed 000's west and east: one device and mark, two gateways, and the own addresses differ. L7."""
    left, right = sites.OUTER[options.outer]
    other_left, other_right = (
        ("192.168.1.13", "192.168.1.14") if options.outer == "v4"
        else ("fd00:192:168:1::13", "fd00:192:168:1::14")
    )
    common = {"mark": "10/0xffffff", "leftsubnet": "10.1.3.0/24"}
    conns = {
        "west": {**common, "left": left, "right": right, "rightsubnet": "10.1.4.0/24"},
        "east": {**common, "left": other_left, "right": other_right, "rightsubnet": "10.1.5.0/24",
                 "leftvti": None, "rightvti": None},
    }
    length = 24 if options.outer == "v4" else 64
    with sites.Sites(options) as lab:
        for box, address in ((lab.gw_a, other_left), (lab.gw_b, other_right)):
            box.ip(f"address add {address}/{length} dev eth0" + (" nodad" if ":" in address else ""))
        lab.pc_b.ip("address add 10.1.5.2/32 dev lo")
        lab.gw_b.ip("route add 10.1.5.2 via 10.1.4.2")
        keys = lab.keygen_all(conns, "vti-shared = yes\n")
        lab.gateways(keys)
        takes(lab, "10.1.4.2", "west")
        takes(lab, "10.1.5.2", "east")
        # One goes: the device stays with the other.
        config = os.path.join(keys, "left", "espalier.conf")
        with open(config, encoding="ascii") as file:
            text = file.read()
        west, east = text.split("[conn east]")
        with open(config, "w", encoding="ascii") as file:
            file.write(west)
        lab.a.reload()
        lab.a.wait_line("conn east down")
        until(lambda: "10.1.5.0/24" not in lab.gw_a.ip("route show dev vti01"), "east's route gone")
        takes(lab, "10.1.4.2", "west")
        assert carrier(lab.gw_a, "vti01")
        mark = lab.a.mark()
        with open(config, "w", encoding="ascii") as file:
            file.write(west + "[conn east]" + east)
        lab.a.reload()
        lab.a.wait_line("conn east up", since=mark)
        takes(lab, "10.1.5.2", "east")
    print("ok: one device to two gateways")


def carrier_follows(options):
    """Up with the SAs, as routing daemons see it, unless it is to be up always."""
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        sites.add_options(os.path.join(keys, "right", "espalier.conf"), vti_carrier="always")
        lab.gateways(keys)
        assert carrier(lab.gw_a, "vti01")
        (device,) = lab.a.status()["devices"]
        assert device["carrier"] and device["remote"] == lab.right, device
        # A device without an SA, made by hand: no carrier, and what is routed there goes nowhere.
        lab.espalier("vti", "add", "vti09", "key", "9", "--control", lab.a.control)
        until(lambda: not carrier(lab.gw_a, "vti09"), "no carrier")
        assert "NO-CARRIER" in lab.gw_a.ip("link show vti09")
        lab.espalier("vti", "add", "vti08", "key", "8", "carrier-follows-sa", "no", "--control",
                     lab.a.control)
        assert carrier(lab.gw_b, "vti01")
        # The daemon has settled vti09 above; it has looked at this one as well once it says so.
        (always,) = [d for d in lab.a.status()["devices"] if d["name"] == "vti08"]
        assert always["carrier"] and carrier(lab.gw_a, "vti08"), always
    print("ok: the carrier follows the SAs")


def mark_moves(options):
    """L6: the mark of a running conn moves to another device."""
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        lab.gateways(keys)
        config = os.path.join(keys, "left", "espalier.conf")
        with open(config, encoding="ascii") as file:
            text = file.read()
        with open(config, "w", encoding="ascii") as file:
            file.write(text.replace("vti-interface = vti01", "vti-interface = vti77"))
        mark = lab.a.mark()
        lab.a.reload()
        lab.a.wait_line("reloaded", since=mark)
        assert "vti77" in lab.gw_a.links() and "vti01" not in lab.gw_a.links()
        traffic.ping(lab.pc_a, "10.1.4.2")
        traffic.ping(lab.pc_b, "10.1.3.2")
    print("ok: a mark moved to another device")


def taken_away(options):
    """L11: the device is moved to another namespace, which then goes, device and all. The daemon
    says so, and a reload makes the device again."""
    with sites.Sites(options) as lab:
        lab.gateways()
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        other = Namespace("other")
        keeper = other.start("sleep", "1000")
        inside = os.fstat(other.fd).st_ino
        until(lambda: os.stat(f"/proc/{keeper.pid}/ns/net").st_ino == inside, "somebody in there")
        other.close()
        mark = lab.a.mark()
        lab.gw_a.ip(f"link set vti01 netns {keeper.pid}")
        assert "vti01" not in lab.gw_a.links()
        keeper.kill()
        keeper.wait()
        lab.a.wait_line("deleted the device vti01", since=mark)
        lab.a.reload()
        lab.a.wait_line("conn routed-vpn up", since=mark)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        traffic.ping(lab.pc_b, sites.PC_A["v4"])
    print("ok: L11 a namespace that goes, and the device with it")


def selectors(options):
    """Ranges, ports and ICMP types choose the conn; a later fragment has no ports to show."""
    common = {"leftsubnet": "10.1.3.0/24", "vti_interface": None, "mark": None, "leftvti": None,
              "rightvti": None, "rightsubnet": "10.1.4.2-10.1.4.5"}
    conns = {"any": common, "dns": common, "echo": common}
    with sites.Sites(options) as lab:
        keys = lab.keygen_all(conns)
        for side in ("left", "right"):
            config = os.path.join(keys, side, "espalier.conf")
            with open(config, encoding="ascii") as file:
                text = file.read()
            text = text.replace("[conn dns]", "[conn dns]\nrightprotoport = udp/53")
            text = text.replace("[conn echo]", "[conn echo]\nleftprotoport = icmp/0-8")
            with open(config, "w", encoding="ascii") as file:
                file.write(text)
        lab.gateways(keys)
        for pc in (lab.pc_a, lab.pc_b):
            pc.ip("link set eth0 mtu 1000")  # fragments are made here, before the tunnel
        assert "10.1.4.2/31" in lab.gw_a.ip("route show dev espalier0")

        def moved(work):
            def count():
                return {sa["conn"]: sa["packets"] for sa in lab.a.status()["sas"]
                        if sa["direction"] == "out"}

            before = count()
            work()
            return {conn for conn, packets in count().items() if packets != before[conn]}

        assert moved(lambda: traffic.ping(lab.pc_a, "10.1.4.2")) == {"echo"}
        with traffic.UdpPair(lab.pc_a, lab.pc_b, "10.1.3.2", "10.1.4.2", port=53) as pair:
            assert moved(lambda: pair.exchange(b"question")) == {"dns"}
            # The first fragment shows port 53, the others nothing.
            assert moved(lambda: pair.exchange(b"q" * 3000)) == {"dns", "any"}
        with traffic.UdpPair(lab.pc_a, lab.pc_b, "10.1.3.2", "10.1.4.2", port=54) as pair:
            assert moved(lambda: pair.exchange(b"other")) == {"any"}
        for end in (lab.a, lab.b):
            lost = {name: n for name, n in end.drops().items() if n}
            assert not lost, lost
        # Outside the range: nothing is routed, let alone sent.
        assert "10.1.4.6" not in lab.gw_a.ip("route show dev espalier0")
    print("ok: ranges, ports, types and fragments")


def drop_and_pass(options):
    """type=drop and passthrough among tunnels; nothing of either leaves in the clear."""
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        with open(os.path.join(keys, "left", "espalier.conf"), "a", encoding="ascii") as file:
            file.write("[conn never]\ntype = drop\nleftsubnet = 10.1.3.0/24\nvti-routing = no\n"
                       "rightsubnet = 10.1.4.64/26\n"
                       "[conn outside]\ntype = passthrough\nleftsubnet = 10.1.3.0/24\n"
                       "rightsubnet = 10.1.4.128/25\n")
        lab.gateways(keys)
        traffic.ping(lab.pc_a, "10.1.4.2")
        with Capture(lab.gw_a, "eth0") as wire:
            for host, name in (("10.1.4.65", "policy_discard"), ("10.1.4.129", "policy_bypass")):
                before = counter(lab.a, name)
                lab.pc_a.run("ping", "-c", "1", "-W", "1", host, check=False)
                until(lambda n=name, b=before: counter(lab.a, n) == b + 1, f"{host}: {name}")
            assert not wire.esp()
            source = socket.inet_aton("10.1.3.2")
            assert not any(packet[12:16] == source for packet in wire.packets())
        # Where a route leads by the device, what passes by goes, in the clear as it was asked for.
        lab.gw_a.ip("route add 10.1.4.128/25 via 192.168.1.4")
        lab.pc_b.ip("address add 10.1.4.129/32 dev lo")
        lab.gw_b.ip("route add 10.1.4.129 via 10.1.4.2")
        with Capture(lab.gw_a, "eth0") as wire:
            lab.pc_a.run("ping", "-c", "1", "-W", "1", "10.1.4.129", check=False)
            wire.wait(lambda packet: packet[12:16] == socket.inet_aton("10.1.3.2"))
    print("ok: conns that drop and pass by")


def policies_only(options):
    """Seed 002: subnets behind one gateway, each a conn of its own; no mark, no device of a conn's
    own, only policies. The shared device has their routes; the SPD's order decides."""
    common = {"vti_interface": None, "mark": None, "leftvti": None, "rightvti": None,
              "leftsubnet": "10.1.3.0/24"}
    hosts = {"home-lan": "10.1.4.2", "home-wifi": "10.1.4.66", "home-guests": "10.1.4.130"}
    subnets = {"home-lan": "10.1.4.0/26", "home-wifi": "10.1.4.64/28", "home-guests": "10.1.4.128/25"}
    conns = {name: {**common, "rightsubnet": subnet} for name, subnet in subnets.items()}
    with sites.Sites(options) as lab:
        for host in ("10.1.4.66", "10.1.4.70", "10.1.4.130", "10.1.4.200"):
            lab.pc_b.ip(f"address add {host}/32 dev lo")
            lab.gw_b.ip(f"route add {host} via 10.1.4.2")
        keys = lab.keygen_all(conns)
        config = os.path.join(keys, "left", "espalier.conf")
        with open(config, encoding="ascii") as file:
            text = file.read()
        # Inside the subnets of others: the narrower one is before the wider, and a number before all.
        text += ("[conn printer]\ntype = drop\nleftsubnet = 10.1.3.0/24\nrightsubnet = 10.1.4.70/32\n"
                 "[conn camera]\ntype = passthrough\nleftsubnet = 10.1.3.0/24\n"
                 "rightsubnet = 10.1.4.200/32\n")
        with open(config, "w", encoding="ascii") as file:
            file.write(text)
        lab.gateways(keys)
        routes = lab.gw_a.ip("route show dev espalier0")
        assert all(subnet in routes for subnet in subnets.values()), routes
        for name, host in hosts.items():
            takes(lab, host, name)
        with Capture(lab.gw_a, "eth0") as wire:
            for host, name in (("10.1.4.70", "policy_discard"), ("10.1.4.200", "policy_bypass")):
                before = counter(lab.a, name)
                lab.pc_a.run("ping", "-c", "1", "-W", "1", host, check=False)
                until(lambda n=name, b=before: counter(lab.a, n) == b + 1, f"{host}: {name}")
            assert not wire.esp(), "sent by a wider policy"
        # The same order the other way round: the wide drop is told to come first.
        with open(config, "w", encoding="ascii") as file:
            file.write(text + "[conn nobody]\ntype = drop\npriority = 1\nleftsubnet = 10.1.3.0/24\n"
                       "rightsubnet = 10.1.4.0/24\nvti-routing = no\n")
        mark = lab.a.mark()
        lab.a.reload()
        lab.a.wait_line("conn nobody up", since=mark)
        before = counter(lab.a, "policy_discard")
        for host in hosts.values():
            lab.pc_a.run("ping", "-c", "1", "-W", "1", host, check=False)
        until(lambda: counter(lab.a, "policy_discard") == before + len(hosts), "all are dropped")
        with open(config, "w", encoding="ascii") as file:
            file.write(text)
        mark = lab.a.mark()
        lab.a.reload()
        lab.a.wait_line("conn nobody down", since=mark)
        for name, host in hosts.items():
            takes(lab, host, name)
    print("ok: policies alone, in their order")


def rip(options):
    """Seed 004: RIP's multicast (ttl 1, DF, tos 0xc0) crosses in both directions."""
    everything = {"leftsubnet": "0.0.0.0/0", "rightsubnet": "0.0.0.0/0", "vti_routing": "no"}
    with sites.Sites(options) as lab:
        lab.gateways(lab.keygen(**everything))
        ends = []
        for box, address in ((lab.gw_a, "10.0.1.1"), (lab.gw_b, "10.0.1.2")):
            assert "MULTICAST" in box.ip("link show vti01")
            end = box.socket(socket.AF_INET, socket.SOCK_DGRAM)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0xC0)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
            end.bind(("", RIP_PORT))
            with box.entered():
                index = socket.if_nametoindex("vti01")
            member = struct.pack("=4s4si", socket.inet_aton(RIP_GROUP), bytes(4), index)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            end.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, member)
            ends.append((end, address))
        response = bytes.fromhex("02020000" "00020000c0a81500" "ffffff0000000000" "00000001")
        for (here, address), (there, _) in (ends, ends[::-1]):
            here.sendto(response, (RIP_GROUP, RIP_PORT))
            seen, source = there.recvfrom(1 << 12)
            assert (seen, source) == (response, (address, RIP_PORT)), (seen, source)
        for end, _ in ends:
            end.close()
    print("ok: RIP both ways")


def main():
    options = sites.arguments(__doc__, only="")
    for scenario in (shared_by_two_gateways, carrier_follows, mark_moves, taken_away, selectors,
                     drop_and_pass, policies_only, rip):
        if options.only in ("", scenario.__name__):
            scenario(options)


if __name__ == "__main__":
    main()
