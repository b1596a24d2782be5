#!/usr/bin/python3
"""Seed 000: a routed VPN with libreswan at both ends.

    west 192.1.2.23 ══════════════ 192.1.2.45 east
     └ vti01 10.0.1.1/24    10.0.1.2/24 vti01 ┘
       dummy 10.1.0.1            10.2.0.1 dummy

With --nat west has 10.77.0.2 and is seen as 192.1.2.23.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from hosts import picture  # noqa: E402
from hosts.document import Document  # noqa: E402
from lab import traffic  # noqa: E402

LEFT, RIGHT = "192.1.2.23", "192.1.2.45"
BEHIND_NAT = "10.77.0.2"


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        west, east = lab.libreswan("west"), lab.libreswan("east")
        if options.nat:
            lab.nat(west, f"{BEHIND_NAT}/24", east, f"{RIGHT}/24", f"{LEFT}/24")
        else:
            lab.wire(west, "eth0", f"{LEFT}/24", east, "eth0", f"{RIGHT}/24")
        (_, west_key), (_, east_key) = west.host_key(), east.host_key()
        keys = f"    leftrsasigkey={west_key}\n    rightrsasigkey={east_key}\n"
        document = Document(__file__, "routed-vpn.conf")
        west.configure(document.filled("west", {"authby=rsasigkey": "authby=rsasig"}, keys))
        east.configure(document.filled("east", {
            "authby=rsasigkey": "authby=rsasig", "leftvti=10.0.1.1/24": "rightvti=10.0.1.2/24",
        }, keys))
        for host in (west, east):
            host.start_daemon()
        east.start_pluto()
        west.start_pluto()
        west.wait_tunnel("routed-vpn")
        traffic.ping(west, "10.0.1.2")


if __name__ == "__main__":
    main()
