#!/usr/bin/python3
"""Devices, marks and conns in every combination that seed configurations use.

    PC-A ─── gateway A │ vti01 mark 20 out, 21 in ═══ vti01 mark 42 │ gateway B ─── PC-B
                       │ vti02 mark 6             ═══ vti02 mark 6  │
"""

import os

from lab import sites, traffic
from lab.wait import until
from lab.wire import ESP, UDP, Capture, Injector, outer

HOSTS = ("10.1.4.65", "10.1.5.2", "10.1.6.2")  # more of them at PC-B


def packets_of(daemon):
    """Packets sent and received, by conn."""
    return {
        (sa["conn"], sa["direction"]): sa["packets"] for sa in daemon.status()["sas"]
    }


def takes(lab, host, conn, source=sites.PC_A["v4"]):
    """What PC-A sends to `host` goes through `conn`, there and back, and through no other."""
    before = packets_of(lab.a)
    with traffic.UdpPair(lab.pc_a, lab.pc_b, source, host) as pair:
        for number in range(5):
            pair.exchange(b"%d" % number)

    def moved():
        now = packets_of(lab.a)
        return {key for key in now if now[key] != before[key]}

    until(lambda: moved() == {(conn, "in"), (conn, "out")}, f"{host} through {conn}: {moved()}")


def more_hosts(lab):
    for host in HOSTS:
        lab.pc_b.ip(f"address add {host}/32 dev lo")
        lab.gw_b.ip(f"route add {host} via 10.1.4.2")


def shared(options):
    """vti-shared: one device, several conns; the most specific selector decides."""
    common = {"vti_interface": "vti01", "rightvti": None}
    conns = {
        "one": {**common, "rightvti": "10.0.1.2/24"},
        "two": {**common, "leftvti": None, "leftsubnet": "10.1.3.0/24", "rightsubnet": "10.1.5.0/24",
                "encapsulation": "no" if options.encap == "udp" else "yes"},
        "three": {**common, "leftvti": None, "leftsubnet": "10.1.3.0/24",
                  "rightsubnet": "10.1.4.64/26"},
    }
    with sites.Sites(options) as lab:
        lab.gateways(lab.keygen_all(conns, "vti-shared = yes\n"))
        more_hosts(lab)
        takes(lab, "10.1.4.2", "one")
        takes(lab, "10.1.5.2", "two")
        takes(lab, "10.1.4.65", "three")
        takes(lab, sites.PC_B["v6"], "one", sites.PC_A["v6"])
        no_policy(lab)
        wrong_encapsulation(lab)
    print("ok: three conns on one device")


def no_policy(lab):
    """What no conn has asked for is counted, and does not leave in any form."""
    lab.gw_a.ip("route add 10.1.6.0/24 dev vti01")

    def counted():
        return lab.a.status()["drops"]["no_policy"]

    before = counted()
    with Capture(lab.gw_a, "eth0") as wire, traffic.UdpPair(
        lab.pc_a, lab.pc_b, sites.PC_A["v4"], "10.1.6.2"
    ) as pair:
        for _ in range(3):
            pair.here.sendto(b"nowhere", pair.there_name)
        until(lambda: counted() >= before + 3, "three packets without a policy")
        assert not any(b"nowhere" in packet or packet[12:16] == b"\x0a\x01\x03\x02"
                       for packet in wire.packets())
        assert not wire.esp(), "it was sealed all the same"


def wrong_encapsulation(lab):
    """A conn's packets count only in the form that it was given."""
    injector = Injector(lab.gw_a, "eth0", lab.gw_b.mac("eth0"))
    lab.b.take_baseline()
    with Capture(lab.gw_a, "eth0") as wire:
        with lab.withheld():
            lab.pc_a.run("ping", "-c", "1", "-W", "0.1", "10.1.4.2", check=False)
            (packet,) = wire.wait_esp()
        other = ESP if packet.protocol == UDP else UDP
        injector.send(outer(lab.left, lab.right, other, packet.esp))
        lab.b.wait_drops(wrong_encapsulation=1)
        injector.send(outer(lab.left, lab.right, packet.protocol, packet.esp))  # now it is welcome
        lab.b.wait_drops(wrong_encapsulation=1)
        wire.wait_esp(2)  # itself, and the answer


def by_route(options):
    """Two devices with the same ends and the same selectors, for everything: routes decide, and the
    marks of the two gateways are nobody's business but their own."""
    everything = {"leftsubnet": "0.0.0.0/0", "rightsubnet": "0.0.0.0/0", "vti_routing": "no"}
    conns = {
        "one": {**everything, "mark": "20/0xffffff"},
        "two": {**everything, "mark": "6", "vti_interface": "vti02",
                "leftvti": "10.0.2.1/24", "rightvti": "10.0.2.2/24"},
    }
    with sites.Sites(options) as lab:
        keys = lab.keygen_all(conns)
        config = os.path.join(keys, "left", "espalier.conf")
        with open(config, encoding="ascii") as file:
            text = file.read()
        with open(config, "w", encoding="ascii") as file:
            file.write(text.replace("mark = 20/0xffffff", "mark-in = 21\nmark-out = 20/0xfff"))
        config = os.path.join(keys, "right", "espalier.conf")
        with open(config, encoding="ascii") as file:
            text = file.read()
        with open(config, "w", encoding="ascii") as file:
            file.write(text.replace("mark = 20/0xffffff", "mark = 42"))
        lab.gateways(keys)
        for device, conn in (("vti01", "one"), ("vti02", "two"), ("vti01", "one")):
            lab.gw_a.ip(f"route replace 10.1.4.0/24 dev {device}")
            lab.gw_b.ip(f"route replace 10.1.3.0/24 dev {device}")
            takes(lab, "10.1.4.2", conn)
        keys = {d["name"]: (d["ikey"], d["okey"]) for d in lab.a.status()["devices"]}
        assert keys == {"vti01": (21, 20), "vti02": (6, 6)}, keys
        # There by one and back by the other: each packet is its own SA's.
        lab.gw_b.ip("route replace 10.1.3.0/24 dev vti02")
        traffic.ping(lab.pc_a, "10.1.4.2")
        for end in (lab.a, lab.b):
            lost = {name: n for name, n in end.drops().items() if n}
            assert not lost, lost
    print("ok: two devices with the same ends and selectors")


def main():
    options = sites.arguments(__doc__)
    shared(options)
    by_route(options)


if __name__ == "__main__":
    main()
