#!/usr/bin/python3
"""strongSwan's charon on both gateways, unchanged, behind `espalier exec`: route-based, mark 42.

    PC-A ─── gateway A │ charon, vti42 ═══ ESP ═══ charon, vti42 │ gateway B ─── PC-B
"""

import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "netns"), os.path.join(HERE, "..", "seeds", "lab")]

from charon import Charon, Host, Tunnels, require  # noqa: E402
from lab import sites, traffic  # noqa: E402
from lab.wait import until  # noqa: E402

MARK = 42


def connection(here, there, me, peer, encap, more="", child=""):
    return f"""connections {{ site {{
  version = 2
  local_addrs = {here}
  remote_addrs = {there}
  proposals = aes128gcm16-prfsha256-ecp256
  encap = {encap}
  {more}
  local {{ auth = psk
    id = {me} }}
  remote {{ auth = psk
    id = {peer} }}
  children {{ net {{
    local_ts = 0.0.0.0/0,::/0
    remote_ts = 0.0.0.0/0,::/0
    esp_proposals = aes256gcm16-ecp256-esn-noesn
    mark_in = {MARK}
    mark_out = {MARK}
    {child} }} }} }} }}
secrets {{ ike-site {{ secret = not-a-secret }} }}
"""


def device(host, here, there, subnets):
    kind = "vti6" if ":" in here else "vti"
    host.ip(f"link add vti42 type {kind} local {here} remote {there} key {MARK}")
    host.namespace.ip("link set vti42 up")
    for subnet in subnets.split(","):
        host.namespace.ip(f"{'-6 ' if ':' in subnet else ''}route add {subnet} dev vti42")


def pair(lab, tunnels, encap="no", more="", child="", wildcard=False, only_v4=False):
    """`wildcard`: devices for any address of the left gateway. `only_v4`: inside."""
    a, b = Host(lab, lab.gw_a), Host(lab, lab.gw_b)
    any_address = "0.0.0.0"
    left, right = sites.LEFT_SUBNETS, sites.RIGHT_SUBNETS
    if only_v4:
        left, right = (subnets.split(",")[0] for subnets in (left, right))
    device(a, any_address if wildcard else lab.left, lab.right, right)
    device(b, lab.right, any_address if wildcard else lab.left, left)
    ignore = "install_routes = no\n  interfaces_ignore = vti42"
    left = tunnels.add(Charon(a, connection("%any" if wildcard else lab.left, lab.right, "left", "right", encap, more, child), ignore))
    right = tunnels.add(Charon(b, connection(lab.right, "%any" if wildcard else lab.left, "right", "left", encap, more, child), ignore))
    return left, right


def up_at(gateway):
    """The kernel starts a device's queue when it comes to it; until then the device loses packets."""
    until(lambda: re.search("LOWER_UP.* state (UP|UNKNOWN)", gateway.ip("link show vti42")), "vti42 up")


def up(lab):
    for gateway in (lab.gw_a, lab.gw_b):
        up_at(gateway)


def main():
    options = sites.arguments(__doc__)
    require()
    with sites.Sites(options) as lab, Tunnels() as tunnels:
        left, right = pair(lab, tunnels, "yes" if options.encap == "udp" else "no")
        left.initiate("net")
        up(lab)
        for version in ("v4", "v6"):
            traffic.ping(lab.pc_a, sites.PC_B[version])
            traffic.ping(lab.pc_b, sites.PC_A[version], size=1200)
        traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 400_001)
        print("ok: up")


if __name__ == "__main__":
    main()
