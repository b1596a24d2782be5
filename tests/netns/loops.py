#!/usr/bin/python3
"""Routes that lead everything into the tunnel, the peer included.

    PC-A ─── gateway A │ vti01 ◄── 0.0.0.0/0, ::/0 ══════════ vti01 │ gateway B ─── PC-B
                       │ eth0 ──────── the tunnel's own packets ──── eth0 │
"""

import os

from lab import sites, traffic
from lab.wire import Capture


HOPS = 20


def rules(box):
    return [line for family in ("-4", "-6") for line in box.run("ip", family, "rule").splitlines()]


def change(keys, *pairs):
    for side in ("left", "right"):
        name = os.path.join(keys, side, "espalier.conf")
        with open(name, encoding="ascii") as file:
            text = file.read()
        for old, new in pairs:
            assert old in text, f"{old} in {text}"
            text = text.replace(old, new)
        with open(name, "w", encoding="ascii") as file:
            file.write(text)


def everything(options, mark):
    """leftsubnet = rightsubnet = 0.0.0.0/0,::/0 and vti-routing = yes: all goes through the tunnel,
    what the hosts say to the other gateway itself too, and only ESP crosses the wire."""
    with sites.Sites(options) as lab:
        untouched = rules(lab.gw_a)
        keys = lab.keygen()
        change(keys, (sites.LEFT_SUBNETS, "0.0.0.0/0,::/0"), (sites.RIGHT_SUBNETS, "0.0.0.0/0,::/0"),
               ("vti-routing = yes", f"vti-routing = yes\nmark-outer = {mark}"))
        lab.gateways(keys)
        with Capture(lab.gw_a, "eth0") as wire:
            for version in ("v4", "v6"):
                traffic.ping(lab.pc_a, sites.PC_B[version])
            traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 1 << 20)
            clear = [p for p in wire.packets() if inner(p)]
            assert not clear, f"in the clear: {clear[0].hex()}"
        assert not lab.a.drops()["loop"] and not lab.b.drops()["loop"]
        assert rules(lab.gw_a) != untouched
        # The connected subnet is more specific than everything: it stays outside, as it would among
        # the routes of one table.
        assert "eth0" in lab.gw_a.ip(f"route get {lab.right}")
        reload(lab)
        lab.a.stop()
        assert rules(lab.gw_a) == untouched, rules(lab.gw_a)
    print(f"ok: everything through the tunnel, mark-outer = {mark}")


def inner(ip):
    """Is it a packet between the two hosts?"""
    if ip[0] >> 4 == 6:
        return any(bytes.fromhex(net) in (ip[8:16], ip[24:32])
                   for net in ("fd00001000010003", "fd00001000010004"))
    addresses = {bytes([10, 1, 3, 2]), bytes([10, 1, 4, 2])}
    return ip[12:16] in addresses or ip[16:20] in addresses


def reload(lab):
    """A conn that changes takes its rules along, and its successor has them."""
    before = rules(lab.gw_a)
    sites.add_options(lab.a.config, replay_window=128)
    mark = lab.a.mark()
    lab.a.reload()
    lab.a.wait_line("1 new or changed", since=mark)
    assert rules(lab.gw_a) == before, rules(lab.gw_a)
    traffic.ping(lab.pc_a, sites.PC_B["v4"])


def host_to_host(options):
    """L8: the peer itself is what the tunnel is for; its address is reached through the tunnel, and
    the tunnel's packets reach it without."""
    with sites.Sites(options) as lab:
        host = "/32" if options.outer == "v4" else "/128"
        keys = lab.keygen()
        change(keys, (f"leftsubnet = {sites.LEFT_SUBNETS}", f"leftsubnet = {lab.left}{host}"),
               (f"rightsubnet = {sites.RIGHT_SUBNETS}", f"rightsubnet = {lab.right}{host}"),
               ("vti-routing = yes", "vti-routing = yes\nmark-outer = auto"))
        lab.gateways(keys)
        with Capture(lab.gw_a, "eth0") as wire:
            with traffic.UdpPair(lab.gw_a, lab.gw_b, lab.left, lab.right) as pair:
                for number in range(20):
                    pair.exchange(b"host to host %d" % number)
            seen = wire.packets()
        assert not any(b"host to host" in packet for packet in seen), "in the clear"
        assert lab.a.sa("out")["packets"] >= 20 and lab.b.sa("out")["packets"] >= 20
        assert not lab.a.drops()["loop"]
    print("ok: L8 host to host")


def into_itself(options):
    """L9: somebody has made a route to the peer into the device by hand. What we send comes back to
    us, and is dropped then; it is not sealed again and again."""
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        change(keys, (sites.LEFT_SUBNETS, "0.0.0.0/0,::/0"), (sites.RIGHT_SUBNETS, "0.0.0.0/0,::/0"),
               ("vti-routing = yes", "vti-routing = no"))
        lab.gateways(keys)
        lab.gw_a.ip("route add 10.1.4.0/24 dev vti01")
        lab.gw_b.ip("route add 10.1.3.0/24 dev vti01")
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        lab.a.take_baseline()
        sealed = lab.a.sa("out")["packets"]
        lab.gw_a.ip(f"route add {lab.right} dev vti01")
        with traffic.UdpPair(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]) as pair:
            for _ in range(10):
                pair.here.sendto(b"round and round", pair.there_name)
            lab.a.wait_drops(loop=10)
            assert lab.a.sa("out")["packets"] == sealed + 10, lab.a.sa("out")
            (device,) = lab.a.status()["devices"]
            assert device["tx_loops"] == 10, device
            lab.gw_a.ip(f"route del {lab.right} dev vti01")
            pair.exchange(b"again")
        lab.a.wait_drops(loop=10)
        print("ok: L9 a packet goes once into a loop")


def to_nowhere(ip):
    return ip[0] >> 4 == 4 and ip[16:20] == bytes([10, 9, 9, 9])


def ping_pong(options):
    """L9: each gateway thinks that a network is behind the other. The packet's TTL ends it."""
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        change(keys, (sites.LEFT_SUBNETS, "0.0.0.0/0,::/0"), (sites.RIGHT_SUBNETS, "0.0.0.0/0,::/0"),
               ("vti-routing = yes", "vti-routing = no"))
        lab.gateways(keys)
        for box in (lab.gw_a, lab.gw_b):
            box.ip("route add 10.9.9.0/24 dev vti01")
        lab.gw_a.ip("route add 10.1.4.0/24 dev vti01")
        lab.gw_b.ip("route add 10.1.3.0/24 dev vti01")
        with Capture(lab.gw_a, "vti01") as inside:
            lab.pc_a.run("ping", "-c", "1", "-t", str(HOPS), "-W", "0.1", "10.9.9.9", check=False)
            # Once a hop between the gateways, from the first, which has taken one, to the last.
            # (The kernel's own redirects and multicast reports cross as well.)
            hops = range(HOPS - 1, 0, -1)
            seen = inside.wait(to_nowhere, len(hops))
            assert [ip[8] for ip in seen] == list(hops), [ip[8] for ip in seen]
            # Whoever sends something now has seen what the last hop made of it.
            traffic.ping(lab.pc_a, sites.PC_B["v4"])
            assert not [ip for ip in inside.packets() if to_nowhere(ip)], "it goes on"
    print("ok: L9 ping-pong ends with the TTL")


def main():
    options = sites.arguments(__doc__)
    everything(options, "auto")
    everything(options, "77")
    host_to_host(options)
    into_itself(options)
    ping_pong(options)


if __name__ == "__main__":
    main()
