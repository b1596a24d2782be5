#!/usr/bin/python3
"""Dead peer detection: the wire between the gateways goes silent. Each IKE daemon notices; states
go, and the carrier unless a trap needs the device, nothing leaves in the clear, and with the action
`restart`, west's, the tunnel is back when the wire is. East's action is to clear.

    PC ─── west │ vti ═══ ESP ═══ vti │ east ─── PC
    10.81.0.2     192.0.2.1   192.0.2.2     10.82.0.2
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "netns"), os.path.join(HERE, "..", "seeds")]

import libreswan  # noqa: E402
from hosts import picture  # noqa: E402
from hosts.checks import only_esp, settle  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402
from libreswan import EAST, PC_EAST, PC_WEST, WEST  # noqa: E402

NETWORKS = ("10.81.0.0/24", "10.82.0.0/24")
NOTICED = 20  # seconds, with the shortest timers that the daemons take
SWANCTL = """connections {{ site {{
local_addrs = {local}
remote_addrs = {remote}
version = 2
proposals = aes128gcm16-prfsha256-ecp256
dpd_delay = 1s
keyingtries = 0
local {{
auth = psk
}}
remote {{
auth = psk
}}
children {{ net {{
local_ts = {own}
remote_ts = {other}
mark_in = 5
mark_out = 5
dpd_action = {action}
start_action = {start}
}} }} }} }}
secrets {{ ike {{ secret = "not-a-secret" }} }}
"""
SOON = "retransmit_tries = 1\nretransmit_timeout = 0.5\nretransmit_base = 1\ninstall_routes = no\n"


def charons(lab):
    west, east = lab.strongswan("west"), lab.strongswan("east")
    lab.wire(west, "eth0", f"{WEST}/24", east, "eth0", f"{EAST}/24")
    pcs = [lab.network(host, "inside", f"{net}.1/24") for host, net in ((west, "10.81.0"), (east, "10.82.0"))]
    for host, local, remote, nets, action, start in (
        (east, EAST, WEST, NETWORKS[::-1], "clear", "none"), (west, WEST, EAST, NETWORKS, "restart", "start"),
    ):  # fmt: skip
        host.start_daemon()
        host.run(*host.exec(*f"ip link add vti01 type vti local {local} remote {remote} key 5".split()))
        host.ip("link set vti01 up")
        host.ip(f"route add {nets[1]} dev vti01")
        host.charon_settings(SOON)
        host.start_swanctl(SWANCTL.format(local=local, remote=remote, own=nets[0], other=nets[1],
                                          action=action, start=start))
    return west, east, *pcs


def plutos(lab):
    return libreswan.pair(lab, {"west": "restart", "east": "clear"})


class Silence:
    """A context manager: nothing arrives at `hosts`, and who sends is not told."""

    def __init__(self, *hosts):
        self.hosts = hosts

    def __enter__(self):
        for host in self.hosts:
            host.run("nft", "add table netdev cut; add chain netdev cut in { type filter hook ingress "
                     "device eth0 priority 0; policy drop; }")  # fmt: skip

    def __exit__(self, *_):
        for host in self.hosts:
            host.run("nft", "delete table netdev cut")


def carrier(host):
    return "LOWER_UP" in host.ip("link show vti01")


def states(host):
    return host.run(*host.exec("ip", "xfrm", "state")).strip()


def trapped(host, network):
    """pluto leaves a policy that asks for the tunnel, whatever its action: the device has something to do."""
    return f"src {network} " in host.run(*host.exec("ip", "xfrm", "policy"))


def tries(pc, address):
    """Packets that nobody answers."""
    pc.run("ping", "-c", "5", "-i", "0.02", "-W", "0.1", address, check=False)


def main():
    options = picture.arguments(__doc__, daemon="charon")
    with picture.Picture(options) as lab:
        west, east, pc_west, pc_east = {"charon": charons, "pluto": plutos}[options.daemon](lab)
        settle(pc_west, PC_EAST)
        # The way on which something could leave in the clear.
        west.ip(f"route add default via {EAST}")
        east.ip(f"route add default via {WEST}")
        ends = ((west, pc_west, PC_EAST, NETWORKS[0]), (east, pc_east, PC_WEST, NETWORKS[1]))
        wires = [Capture(host, "eth0") for host in (west, east)]
        with Silence(west, east):
            for host, pc, there, own in ends:
                def dead(host=host, pc=pc, there=there, own=own):
                    tries(pc, there)
                    return not states(host) and carrier(host) == trapped(host, own)

                until(dead, f"{host.name} without states and carrier", timeout=NOTICED)
                assert options.daemon == "pluto" or not carrier(host), host.name
            for wire in wires:
                assert only_esp(wire.packets(), *NETWORKS) > 0  # those under way before it was noticed
            for (_, pc, there, _), wire in zip(ends, wires):
                tries(pc, there)
                assert only_esp(wire.packets(), *NETWORKS) == 0, "ESP without states"
            print("ok: noticed by both ends, and nothing in the clear", flush=True)
        settle(pc_west, PC_EAST)
        for host in (west, east):
            until(lambda host=host: carrier(host), f"{host.name}'s carrier")
        for wire in wires:
            assert only_esp(wire.packets(), *NETWORKS) > 0
        print("ok: back with the wire", flush=True)


if __name__ == "__main__":
    main()
