#!/usr/bin/python3
"""Seed 000: one device of a server for all its clients; two of three are behind one NAT.

    one 10.99.1.2 ──┐                        server 1.2.3.4 ─ 10.1.0.2
    two 10.99.2.2 ──┤ router 1.2.3.254 ────── vti02
    three 5.6.7.8 ──┘ (masquerades one and two)

One and two have a VTI of their own; three has policies and nothing else, as most clients. With --outer v6
all of it is IPv6, NAT included: 2001:db8:9::4 is the server, and what is inside is IPv6 as well, because
libreswan 4.10 has no other: "host protocol IPv6 conflicts with client protocol IPv4". No client has a VTI
then: libreswan's script wants a route "via" the gateway "dev" the VTI.
"""

import ipaddress
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from hosts import picture  # noqa: E402
from hosts.certificates import Authority  # noqa: E402
from hosts.checks import only_esp  # noqa: E402
from hosts.document import Document  # noqa: E402
from hosts.flow import Flow  # noqa: E402
from lab import traffic  # noqa: E402
from lab.namespace import Namespace  # noqa: E402
from lab.wire import Capture  # noqa: E402

NAMES = ("one", "two", "three")
# The server, the router's address next to it, the clients; what the router masquerades.
OUTER = {
    "v4": ("1.2.3.4", "1.2.3.254", ("10.99.1.2", "10.99.2.2", "5.6.7.8"), "ip saddr 10.99.0.0/16", 24),
    "v6": ("2001:db8:9::4", "2001:db8:9::fe", ("fd99:1::2", "fd99:2::2", "2001:db8:5::8"),
           "ip6 saddr fd99::/16", 64),
}
CONN = "roadwarriors"
# The pool, its addresses as `ip` writes them; the network behind the server, its address there and a host;
# everything.
INNER = {
    "v4": ("10.0.1.0/24", r"10\.0\.1\.\d+", "10.1.0.0/24", "10.1.0.1/24", "10.1.0.2", "0.0.0.0/0"),
    "v6": ("2001:db8:100::/112", r"2001:db8:100::[0-9a-f]*(?=/128)", "2001:db8:1::/64", "2001:db8:1::1/64",
           "2001:db8:1::2", "::/0"),
}
CLIENT = """conn server
    {family}left=%defaultroute
    leftcert=mycert
    leftid=%fromcert
    leftsubnet={all}
    leftmodecfgclient=yes
    narrowing=yes
    right={server}
    rightid=%fromcert
    rightsubnet={all}
    authby=rsasig
    auto=start
    rekey=no
"""
VTI = """    mark=12/0xffffff
    vti-interface=vti02
    vti-routing=no
"""
FAMILY = {"v4": "", "v6": "hostaddrfamily=ipv6\n    "}


def cable(lab, server, clients):
    address, gateway, places, masqueraded, length = OUTER[lab.options.outer]
    router = Namespace("router")
    lab.boxes.append(router)
    lab.wire(server, "eth0", f"{address}/{length}", router, "eth9", f"{gateway}/{length}")
    family = "-6" if lab.options.outer == "v6" else "-4"
    server.ip(f"{family} route add default via {gateway}")
    for number, (client, place) in enumerate(zip(clients, places)):
        near = picture.neighbour(f"{place}/{length}")[0]
        lab.wire(client, "eth0", f"{place}/{length}", router, f"eth{number}", f"{near}/{length}")
        client.ip(f"{family} route add default via {near}")
    router.run("nft", "add table inet nat; add chain inet nat post { type nat hook postrouting priority 100; };"
               f" add rule inet nat post {masqueraded} oifname eth9 masquerade")  # fmt: skip


def inner(client, pattern):
    """The address that the server gave it."""
    return re.search(pattern, client.ip("-o address show"))[0]


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        server, *clients = map(lab.libreswan, ("server", *NAMES))
        cable(lab, server, clients)
        address, gateway, *_ = OUTER[options.outer]
        pool, pattern, network, server_inside, inside, everything = INNER[options.outer]
        routed = clients[:2] if options.outer == "v4" else []
        pc = lab.network(server, "eth1", server_inside)
        authority = Authority()
        for host in (server, *clients):
            authority.issue(host, "mycert")
            host.start_daemon()
        server.configure(Document(__file__, "roadwarriors.conf").filled("server", {
            "left=1.2.3.4": f"{FAMILY[options.outer]}left={address}", "0.0.0.0/0": everything,
            "10.0.1.0/24": pool, "right=%any\n": "right=%any\n    rightid=%fromcert\n"}))
        if options.outer == "v6":
            server.make_vti("vti02", address, "::", 12)
            server.ip(f"route add {pool} dev vti02")
        server.start_pluto()
        underlay = Capture(server, "eth0")
        for client in clients:
            client.configure(CLIENT.format(server=address, family=FAMILY[options.outer], all=everything)
                             + (VTI if client in routed else ""))
            client.start_pluto()
        for client in clients:
            client.wait_tunnel("server")
            for net in (network, pool) if client in routed else ():
                client.ip(f"route add {net} dev vti02 src {inner(client, pattern)}")
        device = Capture(server, "vti02")
        addresses = [inner(client, pattern) for client in clients]
        assert len(set(addresses)) == len(clients), addresses
        if options.outer == "v4":  # vti-routing=yes
            routes = server.ip("route show dev vti02")
            assert all(address in routes for address in addresses), routes
        for client, own in zip(clients, addresses):
            traffic.ping(client, inside)
            traffic.ping(pc, own)
            for other in addresses:
                traffic.ping(client, other, count=1)
        # All of it can be watched on the one device.
        seen = {str(ipaddress.ip_address(ip[16:20] if ip[0] >> 4 == 4 else ip[24:40]))
                for ip in device.packets()}  # fmt: skip
        assert {inside, *addresses} <= seen, seen
        assert [d["name"] for d in server.status()["devices"]] == ["vti02"]
        peers = [sa["peer"] for sa in server.status()["sas"] if sa["direction"] == "out"]
        natted = f"[{gateway}]:" if options.outer == "v6" else f"{gateway}:"
        assert len(set(peers)) == 3 and sum(p.startswith(natted) for p in peers) == 2, peers
        assert only_esp(underlay.packets(), pool, network) > 20
        # One leaves: the others stay.
        with Flow(clients[0], inside) as flow:
            clients[1].whack("--delete", "--name", "server")
            server.log.wait(rf'"{CONN}"\[\d+\] .*(ESP traffic information|deleting .*instance)')
        assert flow.lost == 0 and flow.sent > 1, (flow.sent, flow.lost)
        traffic.ping(clients[2], inside)


if __name__ == "__main__":
    main()
