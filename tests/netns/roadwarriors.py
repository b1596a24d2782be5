#!/usr/bin/python3
"""Seed 000's road warriors: one device and one conn at the server for all clients, each with keys and
an address of its own. Two of three clients are behind one NAT.

    client 1 10.99.1.2 ───┐                       server 192.0.2.1
    client 2 10.99.2.2 ───┤ router 192.0.2.254 ─── vti02 10.0.1.1/24
    client 3 198.51.100.2 ┘ (masquerades 1 and 2)
"""

import os
import time

from lab import sites, traffic
from lab.daemon import Daemon
from lab.namespace import Namespace
from lab.wait import until

SERVER = "192.0.2.1"
OUTSIDE = ("10.99.1.2", "10.99.2.2", "198.51.100.2")
MASQUERADE = ("add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; };"
              " add rule ip nat post ip saddr 10.99.0.0/16 masquerade")


class Picture(sites.Sites):
    """The server in the place of gateway A; the rest is made here."""

    def _cable(self):
        self.server, self.router = self.gw_a, self.gw_b
        self.server.join("eth0", self.router, "eth9")
        self.server.ip(f"address add {SERVER}/24 dev eth0")
        self.router.ip("address add 192.0.2.254/24 dev eth9")
        self.server.ip("route add default via 192.0.2.254")
        self.clients = []
        for number, address in enumerate(OUTSIDE):
            client = Namespace(f"client-{number + 1}")
            client.join("eth0", self.router, f"eth{number}")
            gateway = address.rsplit(".", 1)[0] + ".1"
            client.ip(f"address add {address}/24 dev eth0")
            self.router.ip(f"address add {gateway}/24 dev eth{number}")
            client.ip(f"route add default via {gateway}")
            self.clients.append(client)
        self.router.run("nft", MASQUERADE)

    def keys_for(self, count, pool, leftvti):
        self.espalier(
            "keygen", "--conn", "roadwarriors", "--left", SERVER, "--right", "%any",
            "--leftsubnet", "0.0.0.0/0", "--rightaddresspool", pool, "--clients", str(count),
            "--mark", "12/0xffffff", "--vti-interface", "vti02", "--leftvti", leftvti,
            "--out", self.path("keys"),
        )
        return self.path("keys")

    def start_server(self, **options):
        config = self.path("keys", "left", "espalier.conf")
        made = Daemon(self.options.programs, self.server, config, [f"--io={self.options.io}"])
        self.daemons.append(made)
        return made.start(**options)


def received(server):
    """Packets, by all inbound SAs."""
    return sum(sa["packets"] for sa in server.status()["sas"] if sa["direction"] == "in")


def wrong_address(lab, server, keys):
    """What a client sends from an address that is not its own is not delivered: its own daemon refuses
    it, and where that has been told otherwise, the server does."""
    client, daemon = lab.clients[2], lab.daemons[3]
    client.ip("address add 10.0.1.2/32 dev vti02")
    ping = "ping -c 1 -W 1 -I 10.0.1.2 10.0.1.1".split()
    came = received(server)
    client.run(*ping, check=False)
    assert received(server) == came and not server.grown(), (came, received(server), server.grown())
    path = os.path.join(keys, "clients", "10.0.1.4", "espalier.conf")
    with open(path, encoding="ascii") as file:
        text = file.read()
    assert "rightsubnet = 10.0.1.4\n" in text, text
    with open(path, "w", encoding="ascii") as file:
        file.write(text.replace("rightsubnet = 10.0.1.4\n", "rightsubnet = 10.0.1.0/24\n"))
    daemon.stop()
    daemon.start()
    client.run("ip", "address", "replace", "10.0.1.2/32", "dev", "vti02")
    client.run(*ping, check=False)
    server.wait_drops(selector_mismatch=1)
    # Its own again, as it was.
    with open(path, "w", encoding="ascii") as file:
        file.write(text)
    daemon.stop()
    daemon.start()


def three(options):
    """Behind one NAT and not; with each other; and a client that has an address of another."""
    with Picture(options) as lab:
        keys = lab.keys_for(3, "10.0.1.0/24", "10.0.1.1/24")
        server = lab.start_server()
        assert "3 clients" in server.wait_line("conn roadwarriors up")
        inner = ("10.0.1.2", "10.0.1.3", "10.0.1.4")
        for client, address in zip(lab.clients, inner):
            config = os.path.join(keys, "clients", address, "espalier.conf")
            daemon = Daemon(options.programs, client, config, [f"--io={options.io}"])
            lab.daemons.append(daemon)
            daemon.start()
            traffic.ping(client, "10.0.1.1")
        for address in inner:
            traffic.ping(lab.server, address)
        for client in lab.clients:
            for address in inner:
                traffic.ping(client, address, count=1)
        peers = {sa["conn"]: sa["peer"] for sa in server.status()["sas"] if sa["direction"] == "out"}
        assert len(set(peers.values())) == 3, peers
        assert sum(peer.startswith("192.0.2.254:") for peer in peers.values()) == 2, peers
        assert len(server.status()["devices"]) == 1
        lost = {name: n for name, n in server.drops().items() if n}
        assert not lost, lost
        wrong_address(lab, server, keys)
        # One leaves: the others stay.
        os.remove(os.path.join(keys, "left", "roadwarriors.clients", "10.0.1.3.keys"))
        server.reload()
        server.wait_line("reloaded")
        traffic.ping(lab.clients[0], "10.0.1.1")
        assert "10.0.1.3" not in lab.server.ip("route show dev vti02")
        assert not lab.server.run("ping", "-c", "1", "-W", "1", "10.0.1.3", check=False).count(
            " 1 received")
    print("ok: three clients, two behind one NAT")


def many(options):
    """A server of many starts while one waits for it."""
    count = options.clients
    with Picture(options) as lab:
        keys = lab.keys_for(count, "10.64.0.0/16", "10.64.0.1/16")
        began = time.monotonic()
        server = lab.start_server(wait=False)
        server.wait_line(f"conn roadwarriors up: {count} clients", timeout=300)
        started = time.monotonic() - began
        with open(f"/proc/{server.pid}/status", encoding="ascii") as file:
            memory = [line.split()[1] for line in file if line.startswith("VmRSS")][0]
        last = sorted(os.listdir(os.path.join(keys, "clients")),
                      key=lambda a: [int(part) for part in a.split(".")])[-1]
        config = os.path.join(keys, "clients", last, "espalier.conf")
        daemon = Daemon(options.programs, lab.clients[0], config, [])
        lab.daemons.append(daemon)
        daemon.start()
        traffic.ping(lab.clients[0], "10.64.0.1")
        traffic.ping(lab.server, last)
        began = time.monotonic()
        server.stop(timeout=300)
        stopped = time.monotonic() - began
        until(lambda: "vti02" not in lab.server.links(), "the device is gone")
    print(f"ok: {count} clients; started in {started:.1f} s, stopped in {stopped:.1f} s, "
          f"{int(memory) // 1024} MiB")


def main():
    options = sites.arguments(__doc__, clients=300)
    three(options)
    many(options)


if __name__ == "__main__":
    main()
