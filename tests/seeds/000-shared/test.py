#!/usr/bin/python3
"""Seed 000: two tunnels of one gateway on one shared device.

                        ┌ 6.7.8.9 west ─ 10.6.0.2
    10.1.0.2 ─ hub 1.2.3.4
               vti01    └ 9.8.7.6 east ─ 10.9.0.2

With --nat the hub is behind a NAT.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from hosts import picture  # noqa: E402
from hosts.checks import only_esp, settle  # noqa: E402
from hosts.document import Document  # noqa: E402
from hosts.flow import Flow  # noqa: E402
from lab import traffic  # noqa: E402
from lab.wire import Capture  # noqa: E402

HUB, WEST, EAST = "1.2.3.4", "6.7.8.9", "9.8.7.6"
SUBNETS = {"west": "10.6.0.0/16", "east": "10.9.0.0/16"}
SECRETS = f'{HUB} {WEST} : PSK "west-secret"\n{HUB} {EAST} : PSK "east-secret"\n'


def configuration(who, hub_address):
    """The document's text, one `[...]` for each conn; its text, not its example, says that a shared
    device has one local address."""
    document = Document(__file__, "shared.conf")
    elided = {name: f"authby=secret\n     auto=start\n     leftid={HUB}\n     leftsubnet=10.1.0.0/16\n"
                    f"     rightsubnet={subnet}" for name, subnet in SUBNETS.items()}
    return document.filled(who, {
        "left=10.11.12.13": f"left={HUB}",
        f"right={WEST}\n     [...]": f"right={WEST}\n     {elided['west']}",
        f"right={EAST}\n     [...]": f"right={EAST}\n     {elided['east']}",
        f"left={HUB}\n": f"left={hub_address}\n",
    })


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        hub, west, east = map(lab.libreswan, ("hub", "west", "east"))
        lab.internet({hub: (f"{HUB}/24", options.nat), west: (f"{WEST}/24", False),
                      east: (f"{EAST}/24", False)})  # fmt: skip
        inside = {host: lab.network(host, "eth1", address) for host, address in
                  ((hub, "10.1.0.1/16"), (west, "10.6.0.1/16"), (east, "10.9.0.1/16"))}  # fmt: skip
        for host in (west, east, hub):
            own = picture.BEHIND_NAT.split("/")[0] if host is hub and options.nat else HUB
            host.configure(configuration(host.name, own), SECRETS)
            host.start_daemon().start_pluto()
        for conn, host in (("west", west), ("east", east)):
            hub.wait_tunnel(conn)
            host.wait_tunnel(conn)
        underlay, device = Capture(hub, "eth0"), Capture(hub, "vti01")
        pc, far = inside[hub], {"west": "10.6.0.2", "east": "10.9.0.2"}
        for address in far.values():
            settle(pc, address)
            traffic.ping(pc, address)
        seen = {ip[16:20] for ip in device.packets()}
        assert {bytes((10, 6, 0, 2)), bytes((10, 9, 0, 2))} <= seen, seen
        assert only_esp(underlay.packets(), "10.1.0.0/16", *SUBNETS.values()) >= 12
        routes = hub.ip("route show dev vti01")
        assert all(subnet in routes for subnet in SUBNETS.values()), routes
        assert [device["name"] for device in hub.status()["devices"]] == ["vti01"]
        # One of them goes: the other does not notice, and what was the first one's is not sent.
        underlay.packets()
        with Flow(pc, far["east"]) as flow:
            for host in (west, hub):
                host.whack("--delete", "--name", "west")
            # libreswan 4.10 forgets to take its route away ("ip route del … src" without an address).
            pc.run("ping", "-c", "2", "-i", "0.01", "-W", "0.2", far["west"], check=False)
        assert flow.lost == 0 and flow.sent > 5, (flow.lost, flow.sent)
        only_esp(underlay.packets(), "10.1.0.0/16", *SUBNETS.values())


if __name__ == "__main__":
    main()
