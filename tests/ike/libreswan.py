#!/usr/bin/python3
"""The life of libreswan's tunnels: rekeys under load, both ends asking.

    PC ─── west │ pluto, vti01 ═══════ pluto, vti01 │ east ─── PC
    10.81.0.2     192.0.2.1            192.0.2.2        10.82.0.2

With --nat ESP is in UDP. By hand: --seconds 180 --period 10
"""

import os
import re
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "netns"), os.path.join(HERE, "..", "seeds")]

from hosts import picture  # noqa: E402
from hosts.checks import settle  # noqa: E402
from lab.wait import until  # noqa: E402
from load import Load  # noqa: E402

WEST, EAST = "192.0.2.1", "192.0.2.2"
PC_WEST, PC_EAST = "10.81.0.2", "10.82.0.2"
CONN = "site"
DPD = "    dpddelay=1\n    retransmit-timeout=2s\n    dpdaction={}\n"  # as soon as it can


def conn(encapsulation, auto, more):
    return f"""conn {CONN}
    left={WEST}
    right={EAST}
    leftsubnet=10.81.0.0/24
    rightsubnet=10.82.0.0/24
    authby=secret
    ikev2=insist
    encapsulation={encapsulation}
    mark=5/0xffffffff
    vti-interface=vti01
    vti-routing=yes
    auto={auto}
{more}"""


def pair(lab, dpd=None):
    """(west, east, their PCs), with a tunnel that west has asked for. `dpd`: the action of each."""
    west, east = lab.libreswan("west"), lab.libreswan("east")
    lab.wire(west, "eth0", f"{WEST}/24", east, "eth0", f"{EAST}/24")
    pcs = [lab.network(host, "inside", f"{net}.1/24") for host, net in ((west, "10.81.0"), (east, "10.82.0"))]
    for host, auto in ((east, "add"), (west, "start")):
        host.configure(conn("yes" if lab.options.nat else "no", auto,
                            DPD.format(dpd[host.name]) if dpd else ""),
                       f'{WEST} {EAST} : PSK "not-a-secret-not-a-secret"\n')
        host.start_daemon()
        host.start_pluto()
    west.wait_tunnel(CONN)
    settle(pcs[0], PC_EAST)
    return west, east, *pcs


def rekeys(options):
    """Of the CHILD_SA by either end in turn, and at last of the IKE SA."""
    with picture.Picture(options) as lab:
        west, east, pc_west, pc_east = pair(lab)
        count = 0
        end = time.monotonic() + options.seconds
        with Load(pc_west, pc_east, PC_WEST, PC_EAST, (west, east)) as load:
            while (begun := time.monotonic()) < end:
                (west, east)[count % 2].whack("--rekey-ipsec", "--name", CONN)
                count += 1
                # The pace is the task.
                time.sleep(max(0.0, begun + options.period - time.monotonic()))
            west.whack("--rekey-ike", "--name", CONN)
        renewed = sum(len(re.findall("rekeyed Child SA #", host.log.text)) for host in (west, east))
        assert renewed >= 2 * count, (renewed, count)
        for host in (west, east):
            until(lambda host=host: len(host.status()["sas"]) == 2, "one pair of SAs")
        print(f"ok: {count} rekeys, {load}", flush=True)


def main():
    options = picture.arguments(__doc__, seconds=20, period=1.0)
    rekeys(options)


if __name__ == "__main__":
    main()
