#!/usr/bin/python3
"""espalierd is killed under a running pluto, twice: states and policies are back, the tunnel goes on
without a new negotiation, no number is used twice and nothing leaves in the clear; pluto can rekey and
end the tunnel afterwards.

With --nat ESP is in UDP, on the port that espalierd shares with pluto.

    PC ─── west │ pluto, vti01 ═══ ESP ═══ pluto, vti01 │ east ─── PC
    10.81.0.2     192.0.2.1                192.0.2.2        10.82.0.2
"""

import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "ike"), os.path.join(HERE, "..", "seeds"), os.path.join(HERE, "..", "netns")]

from hosts import picture  # noqa: E402
from hosts.checks import only_esp  # noqa: E402
from lab import traffic  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture, esp_packet  # noqa: E402
from libreswan import CONN, EAST, PC_EAST, PC_WEST, WEST, pair  # noqa: E402
from restart_charon import kept, kill  # noqa: E402

NETWORKS = ("10.81.0.0/24", "10.82.0.0/24")


def listed(host):
    """States by their SPIs, and policies, as `ip xfrm` has them."""
    states = host.run(*host.exec("ip", "xfrm", "state"))
    policies = host.run(*host.exec("ip", "xfrm", "policy"))
    return sorted(re.findall(r"spi (0x\w+)", states)), policies


def passes(pc, address):
    return " 0% packet loss" in pc.run("ping", "-c", "1", "-W", "0.3", address, check=False)


def numbers(packets):
    """Of ESP: (SPI, sequence number)."""
    return [(packet.spi, packet.seq) for packet in map(esp_packet, packets) if packet]


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        west, _, pc_west, pc_east = pair(lab)
        for host, peer in ((west, EAST), (lab.hosts[1], WEST)):
            host.ip(f"route add default via {peer}")
        until(lambda: kept(west), "it is kept")
        before = listed(west)
        assert len(before[0]) == 2, before
        with Capture(west, "eth0") as wire:
            for _ in range(2):
                kill(west)
                pc_west.run("ping", "-c", "3", "-i", "0.1", "-W", "0.1", PC_EAST, check=False)
                west.start_daemon()
                until(lambda: passes(pc_west, PC_EAST), "packets pass")
                assert listed(west) == before
                traffic.ping(pc_east, PC_WEST)
            packets = wire.packets()
        assert only_esp(packets, *NETWORKS) > 4
        seen = numbers(packets)
        assert len(seen) == len(set(seen)), "a number twice"
        west.whack("--rekey-ipsec", "--name", CONN)
        until(lambda: len(listed(west)[0]) == 2 and not set(before[0]) & set(listed(west)[0]), "a rekey", timeout=20)
        traffic.ping(pc_west, PC_EAST)
        traffic.ping(pc_east, PC_WEST)
        west.whack("--delete", "--name", CONN)
        west.wait_no_states()
        print("ok: killed twice under pluto")


if __name__ == "__main__":
    main()
