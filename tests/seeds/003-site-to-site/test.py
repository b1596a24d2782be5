#!/usr/bin/python3
"""Seed 003: two networks joined by policy, IKEv1, and a gateway that masquerades all else.

    PC-A 10.1.3.2 ─ gateway A 192.168.1.3 ═══════ 192.168.1.4 gateway B ─ 10.1.4.2 PC-B
                        └ 203.0.113.1 ─ 203.0.113.2 a host of the internet

The document is for openswan; libreswan is what became of it. With --nat gateway A has 10.77.0.2 and is
seen as 192.168.1.3.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from hosts import picture  # noqa: E402
from hosts.checks import only_esp, settle  # noqa: E402
from hosts.document import Document  # noqa: E402
from hosts.libreswan import IKEV1  # noqa: E402
from lab import traffic  # noqa: E402
from lab.wire import Capture  # noqa: E402

LEFT, RIGHT = "192.168.1.3", "192.168.1.4"
PC_A, PC_B, INTERNET = "10.1.3.2", "10.1.4.2", "203.0.113.2"
CONN = "secgw-vpn"
EXEMPT = "POSTROUTING -s 10.1.3.0/24 -d 10.1.4.0/24 -j RETURN"


def configure(host, side, nat):
    general, secret, tables, kernel = (
        Document(__file__, name) for name in ("ipsec.conf", "ipsec.secret", "iptables", "sysctl.conf"))
    # What libreswan no longer knows, because it is so without being asked; and IKEv1, which it wants
    # to be asked for.
    words = {"        nat_traversal=yes\n": "", "        oe=off\n": f"        {IKEV1}\n",
             "        auto=start\n": "        auto=start\n        ikev2=no\n"}  # fmt: skip
    if nat and side == "a":
        own = picture.BEHIND_NAT.split("/")[0]
        words[f"left={LEFT}\n"] = f"left={own}\n        leftid={LEFT}\n"
    host.write("/etc/ipsec.conf", general.filled(f"gateway {side}", words))
    host.write("/etc/ipsec.secrets", secret.filled(f"gateway {side}", {}), mode=0o600)
    # "The other gateway is much the same, with 3 and 4 exchanged."
    swap = {} if side == "a" else {"10.1.3.0/24 -d 10.1.4.0/24": "10.1.4.0/24 -d 10.1.3.0/24",
                                   "-s 10.1.3.0/24 -j MASQ": "-s 10.1.4.0/24 -j MASQ"}  # fmt: skip
    host.write("/etc/sysconfig/iptables", tables.filled(f"gateway {side}", swap, "COMMIT\n"))
    host.write("/etc/sysctl.conf", kernel.filled(f"gateway {side}", {}))
    host.run("iptables-restore", "/etc/sysconfig/iptables")
    host.run("sysctl", "-p")


def sources(capture, address):
    """Where the echo requests to `address` came from."""
    wanted = bytes(map(int, address.split(".")))
    return {".".join(map(str, ip[12:16])) for ip in capture.packets()
            if ip[0] >> 4 == 4 and ip[9] == 1 and ip[20] == 8 and ip[16:20] == wanted}


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        gw_a, gw_b = lab.libreswan("gateway-a"), lab.libreswan("gateway-b")
        if options.nat:
            lab.nat(gw_a, picture.BEHIND_NAT, gw_b, f"{RIGHT}/24", f"{LEFT}/24")
        else:
            lab.wire(gw_a, "eth0", f"{LEFT}/24", gw_b, "eth0", f"{RIGHT}/24")
            gw_a.ip(f"route add default via {RIGHT}")  # where clear text would go
        pc_a = lab.network(gw_a, "eth1", "10.1.3.1/24")
        pc_b = lab.network(gw_b, "eth1", "10.1.4.1/24")
        internet = lab.network(gw_a, "eth2", "203.0.113.1/24")
        for host, side in ((gw_b, "b"), (gw_a, "a")):
            configure(host, side, options.nat)
            host.start_daemon()
        underlay, at_b, outside = Capture(gw_a, "eth0"), Capture(pc_b, "eth0"), Capture(internet, "eth0")
        for host in (gw_b, gw_a):
            host.start_pluto()
        for host in (gw_a, gw_b):
            host.wait_tunnel(CONN)
        listed = gw_a.run(*gw_a.exec("ip", "xfrm", "state"))
        assert "auth-trunc hmac(sha1)" in listed and "enc cbc(aes)" in listed, "another suite"

        settle(pc_a, PC_B)
        assert sources(at_b, PC_B) == {PC_A}
        traffic.ping(pc_b, PC_A, size=1200)
        traffic.tcp(pc_a, pc_b, PC_B, 300_000)
        traffic.ping(gw_a, PC_B)  # the gateway itself has an address in the policy, and takes it
        assert only_esp(underlay.packets(), "10.1.0.0/16") > 100

        # The internet sees the gateway's address, as before.
        outside.packets()
        traffic.ping(pc_a, INTERNET)
        assert sources(outside, INTERNET) == {"203.0.113.1"}

        # What the document was written for: without its rule the tunnel is up and nothing arrives.
        gw_a.run("iptables", "-t", "nat", "-D", *EXEMPT.split())
        assert "0 received" in pc_a.run(*f"ping -c 2 -i 0.1 -W 0.3 {PC_B}".split(), check=False)
        gw_a.run("iptables", "-t", "nat", "-I", *EXEMPT.split())
        traffic.ping(pc_a, PC_B)
        only_esp(underlay.packets(), "10.1.0.0/16")

        # espalierd dies: what the policy protects is lost, not sent in clear.
        gw_a.daemon.kill()
        gw_a.daemon.wait()
        assert "0 received" in pc_a.run(*f"ping -c 3 -i 0.05 -W 0.3 {PC_B}".split(), check=False)
        gw_a.run(*f"ping -c 3 -i 0.05 -W 0.3 {PC_B}".split(), check=False)
        assert only_esp(underlay.packets(), "10.1.0.0/16") == 0


if __name__ == "__main__":
    main()
