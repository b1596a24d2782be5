#!/usr/bin/python3
"""Seed 002: policies and nothing else: no mark, no VTI, no route of the administrator's.

    sv1 37.17.0.2 ═══════════════════ 87.97.0.2 home, vpn.example.org
     └ 10.1.1.0/24        192.168.87.1, 192.168.88.1, 192.168.100.1 ┘ └ a host in each

With --nat sv1 has 10.77.0.2 and is seen as 37.17.0.2.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from hosts import picture  # noqa: E402
from hosts.checks import only_esp  # noqa: E402
from hosts.document import Document  # noqa: E402
from lab import traffic  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402

SERVER, HOME, BEHIND_NAT = "37.17.0.2", "87.97.0.2", "10.77.0.2"
NETWORKS = {"home-securewifi": "192.168.87.0/28", "home-lan": "192.168.88.0/24",
            "home-invitel": "192.168.100.0/24"}  # fmt: skip
# The router at home, which the document does not show: the same, seen from the other end.
CHILD = """{name} {{
local_ts = {local}
remote_ts = {remote}
esp_proposals = aes256gcm16-ecp384
}}
"""
ROUTER = """connections {{
home {{
local_addrs = {home}
version = 2
proposals = aes256-sha256-ecp384
local {{
auth = psk
id = vpn.example.org
}}
remote {{
auth = psk
}}
children {{
{children}
}}
}}
}}
secrets {{
ike {{
secret = "preshared-secret-key-goes-here"
}}
}}
"""


def inside(network, last):
    return network.split("/")[0].rsplit(".", 1)[0] + f".{last}"


def main():
    options = picture.arguments(__doc__)
    server = BEHIND_NAT if options.nat else SERVER
    with picture.Picture(options) as lab:
        sv1, home = lab.strongswan("sv1"), lab.strongswan("home")
        if options.nat:
            router = lab.nat(sv1, f"{server}/24", home, f"{HOME}/24", f"{SERVER}/24")
            router.ip(f"route add {HOME}/32 dev eth1")
            home.ip(f"route add {SERVER}/32 dev eth0")
        else:
            lab.wire(sv1, "eth0", f"{server}/24", home, "eth0", f"{HOME}/24")
            sv1.ip("route add default dev eth0")
            home.ip("route add default dev eth0")
        hosts = {name: lab.network(home, f"lan{i}", f"{inside(network, 1)}/{network.split('/')[1]}")
                 for i, (name, network) in enumerate(NETWORKS.items())}  # fmt: skip
        local = lab.network(sv1, "local", "10.1.1.1/24")
        sv1.write("/etc/hosts", f"127.0.0.1 localhost\n{HOME} vpn.example.org\n")

        children = "".join(CHILD.format(name=name, local=network, remote=f"{server}/32")
                           for name, network in NETWORKS.items())  # fmt: skip
        children += CHILD.format(name="sv1-local", local="dynamic", remote="10.1.1.0/24")
        home.start_daemon()
        home.start_swanctl(ROUTER.format(home=HOME, children=children))
        conf = Document(__file__, "swanctl.conf").filled("sv1", {"37.17.x.x": server})
        sv1.start_daemon()
        with Capture(home, "eth0") as wire:
            sv1.start_swanctl(conf)
            until(lambda: sv1.sas().count("INSTALLED") == 4, "four CHILD_SAs", timeout=20)
            assert "AES_GCM_16-256" in sv1.sas(), sv1.sas()
            for name, network in NETWORKS.items():
                traffic.ping(sv1, inside(network, 2), size=1000)
                traffic.ping(hosts[name], server)
            traffic.ping(local, HOME)
            traffic.ping(sv1, HOME)  # from 10.1.1.1, as charon's route says
            traffic.tcp(sv1, hosts["home-lan"], inside(NETWORKS["home-lan"], 2), 200_000)
            sealed = only_esp(wire.packets(), "10.1.1.0/24", *NETWORKS.values())
        assert sealed > 100, sealed
        sas = sv1.sas()
        assert ("ESP in UDP" in sas or "in-UDP" in sas or "[4500]" in sas), sas

        # Nothing of the networks leaves the host when the tunnel has gone.
        home.run("swanctl", "--terminate", "--ike", "home")
        with Capture(home, "eth0") as wire:
            sv1.run("swanctl", "--terminate", "--ike", "home", "--force", check=False)
        unload(sv1)


def unload(host):
    """Without a policy there is neither device nor rule left."""
    host.write("/etc/swanctl/conf.d/seed.conf", "")
    host.run("swanctl", "--load-conns")
    host.run("swanctl", "--terminate", "--ike", "home", "--force", check=False)
    until(lambda: "4501" not in host.ip("rule"), "the policies' rules go with the last of them")


if __name__ == "__main__":
    main()
