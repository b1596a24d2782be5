#!/usr/bin/python3
"""Seed 000: one device of a server for all its clients; two of three are behind one NAT.

    one 10.99.1.2 ──┐                        server 1.2.3.4 ─ 10.1.0.2
    two 10.99.2.2 ──┤ router 1.2.3.254 ────── vti02
    three 5.6.7.8 ──┘ (masquerades one and two)
"""

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

SERVER = "1.2.3.4"
CLIENTS = {"one": "10.99.1.2", "two": "10.99.2.2", "three": "5.6.7.8"}
CONN = "roadwarriors"
INSIDE = "10.1.0.2"
CLIENT = """conn server
    left=%defaultroute
    leftcert=mycert
    leftid=%fromcert
    leftsubnet=0.0.0.0/0
    leftmodecfgclient=yes
    narrowing=yes
    right=1.2.3.4
    rightid=%fromcert
    rightsubnet=0.0.0.0/0
    authby=rsasig
    auto=start
    rekey=no
    mark=12/0xffffff
    vti-interface=vti02
    vti-routing=no
"""


def cable(lab, server, clients):
    router = Namespace("router")
    lab.boxes.append(router)
    lab.wire(server, "eth0", f"{SERVER}/24", router, "eth9", "1.2.3.254/24")
    server.ip("route add default via 1.2.3.254")
    for number, (client, address) in enumerate(zip(clients, CLIENTS.values())):
        gateway = address.rsplit(".", 1)[0] + ".254"
        lab.wire(client, "eth0", f"{address}/24", router, f"eth{number}", f"{gateway}/24")
        client.ip(f"route add default via {gateway}")
    router.run("nft", "add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; };"
               " add rule ip nat post ip saddr 10.99.0.0/16 masquerade")  # fmt: skip


def inner(client):
    """The address that the server gave it."""
    return re.search(r"10\.0\.1\.\d+", client.ip("-4 -o address show"))[0]


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        server, *clients = map(lab.libreswan, ("server", *CLIENTS))
        cable(lab, server, clients)
        pc = lab.network(server, "eth1", "10.1.0.1/24")
        authority = Authority()
        for host in (server, *clients):
            authority.issue(host, "mycert")
            host.start_daemon()
        server.configure(Document(__file__, "roadwarriors.conf").filled(
            "server", {"right=%any\n": "right=%any\n    rightid=%fromcert\n"}))
        server.start_pluto()
        underlay = Capture(server, "eth0")
        for client in clients:
            client.configure(CLIENT)
            client.start_pluto()
        for client in clients:
            client.wait_tunnel("server")
            client.ip(f"route add 10.1.0.0/24 dev vti02 src {inner(client)}")
            client.ip(f"route add 10.0.1.0/24 dev vti02 src {inner(client)}")
        device = Capture(server, "vti02")
        addresses = [inner(client) for client in clients]
        assert len(set(addresses)) == len(clients), addresses
        routes = server.ip("route show dev vti02")
        assert all(address in routes for address in addresses), routes
        for client, address in zip(clients, addresses):
            traffic.ping(client, INSIDE)
            traffic.ping(pc, address)
            for other in addresses:
                traffic.ping(client, other, count=1)
        # All of it can be watched on the one device.
        seen = {".".join(map(str, ip[16:20])) for ip in device.packets()}
        assert {INSIDE, *addresses} <= seen, seen
        assert [d["name"] for d in server.status()["devices"]] == ["vti02"]
        peers = [sa["peer"] for sa in server.status()["sas"] if sa["direction"] == "out"]
        assert len(set(peers)) == 3 and sum(p.startswith("1.2.3.254:") for p in peers) == 2, peers
        assert only_esp(underlay.packets(), "10.0.1.0/24", "10.1.0.0/24") > 20
        # One leaves: the others stay.
        with Flow(clients[0], INSIDE) as flow:
            clients[1].whack("--delete", "--name", "server")
            server.log.wait(rf'"{CONN}"\[\d+\] .*(ESP traffic information|deleting .*instance)')
        assert flow.lost == 0 and flow.sent > 1, (flow.sent, flow.lost)
        traffic.ping(clients[2], INSIDE)


if __name__ == "__main__":
    main()
