#!/usr/bin/python3
"""Seed 000: two tunnels of one gateway on one shared device.

                        ┌ 6.7.8.9 west ─ 10.6.0.2
    10.1.0.2 ─ hub 1.2.3.4
               vti01    └ 9.8.7.6 east ─ 10.9.0.2

With --nat the hub is behind a NAT. With --outer v6 the gateways have 2001:db8:1::4, 2001:db8:6::9 and
2001:db8:9::6; libreswan's script then does nothing for a VTI (its verbs end in -v6), so device and routes
are made before, as the document's words would have it: for any peer.
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

OUTER = {"v4": ("1.2.3.4", "6.7.8.9", "9.8.7.6"),
         "v6": ("2001:db8:1::4", "2001:db8:6::9", "2001:db8:9::6")}  # fmt: skip
SUBNETS = {"west": "10.6.0.0/16", "east": "10.9.0.0/16"}
SECRETS = "".join(f'{hub} {west} : PSK "west-secret"\n{hub} {east} : PSK "east-secret"\n'
                  for hub, west, east in OUTER.values())  # fmt: skip


def configuration(who, hub_address, ends):
    """The document's text, one `[...]` for each conn; its text, not its example, says that a shared
    device has one local address."""
    hub, west, east = OUTER["v4"]
    document = Document(__file__, "shared.conf")
    elided = {name: f"authby=secret\n     auto=start\n     leftid={ends[0]}\n     leftsubnet=10.1.0.0/16\n"
                    f"     rightsubnet={subnet}" for name, subnet in SUBNETS.items()}
    return document.filled(who, {
        "left=10.11.12.13": f"left={hub}",
        f"right={west}\n     [...]": f"right={ends[1]}\n     {elided['west']}",
        f"right={east}\n     [...]": f"right={ends[2]}\n     {elided['east']}",
        f"left={hub}\n": f"left={hub_address}\n",
    })


def main():
    options = picture.arguments(__doc__)
    ends = OUTER[options.outer]
    with picture.Picture(options) as lab:
        hub, west, east = map(lab.libreswan, ("hub", "west", "east"))
        length = 64 if options.outer == "v6" else 24
        lab.internet({host: (f"{end}/{length}", options.nat and host is hub)
                      for host, end in zip((hub, west, east), ends)})  # fmt: skip
        inside = {host: lab.network(host, "eth1", address) for host, address in
                  ((hub, "10.1.0.1/16"), (west, "10.6.0.1/16"), (east, "10.9.0.1/16"))}  # fmt: skip
        for host, end in zip((west, east, hub), (*ends[1:], ends[0])):
            own = picture.BEHIND_NAT.split("/")[0] if host is hub and options.nat else ends[0]
            host.configure(configuration(host.name, own, ends), SECRETS)
            host.start_daemon()
            if options.outer == "v6":
                host.make_vti("vti01", end, "::", 10)
                for net in SUBNETS.values() if host is hub else ["10.1.0.0/16"]:
                    host.ip(f"route add {net} dev vti01")
            host.start_pluto()
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
