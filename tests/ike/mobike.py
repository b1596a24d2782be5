#!/usr/bin/python3
"""libreswan's pluto at both ends, MOBIKE (RFC 4555): west gets another address, and the tunnel goes on with the
same keys, by XFRM_MSG_MIGRATE.

    west 10.50.1.2, then .3 ─── router ─── 192.1.2.45 east
      └ 10.1.0.1                              10.2.0.1 ┘

And back again. With --nat the router masquerades what west sends.
"""

import os
import re
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "seeds")]

from hosts import picture  # noqa: E402
from hosts.checks import only_esp, settle  # noqa: E402
from hosts.flow import Flow  # noqa: E402
from lab import traffic  # noqa: E402
from lab.namespace import Namespace  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402

FIRST, SECOND, GATEWAY, EAST = "10.50.1.2", "10.50.1.3", "10.50.1.254", "192.1.2.45"
MASQUERADED = "192.1.2.254"
WEST_NET, EAST_NET = "10.1.0.1", "10.2.0.1"
CONN = f"""conn mobike
    {{ends}}
    authby=secret
    ikev2=insist
    mobike=yes
    dpddelay=1
    retransmit-timeout=10s
    dpdaction={{action}}
    auto={{auto}}
"""
WEST_ENDS = f"""left=%defaultroute
    leftid=@west
    leftsubnet={WEST_NET}/32
    right={EAST}
    rightid=@east
    rightsubnet={EAST_NET}/32"""
EAST_ENDS = f"""left={EAST}
    leftid=@east
    leftsubnet={EAST_NET}/32
    right=%any
    rightid=@west
    rightsubnet={WEST_NET}/32"""
SECRET = '@west @east : PSK "no-secret-that-anybody-has"\n'


def cable(lab, west, east):
    router = Namespace("router")
    lab.boxes.append(router)
    lab.wire(west, "eth0", f"{FIRST}/24", router, "west", f"{GATEWAY}/24")
    lab.wire(east, "eth0", f"{EAST}/24", router, "east", f"{MASQUERADED}/24")
    west.ip(f"route add default via {GATEWAY}")
    east.ip(f"route add default via {MASQUERADED}")
    if lab.options.nat:
        lab.masquerade(router, "east")


def states(host):
    """{SPI: (source, destination)}"""
    listed = host.run(*host.exec("ip", "xfrm", "state"))
    return {spi: ends for *ends, spi in re.findall(r"^src (\S+) dst (\S+)\n\tproto esp spi (\w+)", listed, re.M)}


def numbers(host):
    return {sa["spi"]: sa["seq"] for sa in host.status()["sas"]}


def move(west, old, new):
    west.ip(f"address del {old}/24 dev eth0")
    west.ip(f"address add {new}/24 dev eth0")
    west.ip(f"route add default via {GATEWAY}")


def other_drops(west, east):
    """Packets that were dropped for another reason than that there was no address to send them from, or
    that the peer has moved and west's IKE does not know it yet: for a kernel too there is no SA then."""
    return [sum(n for name, n in host.drops().items() if name not in known)
            for host, known in ((west, ("send_failed", "no_spi")), (east, ("send_failed",)))]


def goes_on(west, east, old, new, seen_as):
    spis, used, dropped = set(states(west)), numbers(west), other_drops(west, east)
    mark, counted = len(west.log.lines), west.traffic("mobike")
    with Flow(west, EAST_NET) as flow:
        move(west, old, new)
        for host, address in ((west, new), (east, seen_as)):
            until(lambda: all(address in ends for ends in states(host).values()),
                  f"{address} in the states of {host.name}", timeout=30)
        before = len(flow.answered)
        until(lambda: len(flow.answered) > before + 20, "answers", timeout=20)
    assert set(states(west)) == spis, (spis, states(west))
    assert "established Child SA" not in "\n".join(west.log.lines[mark:]), "a new CHILD_SA"
    assert other_drops(west, east) == dropped, (west.drops(), east.drops())
    for spi, seq in numbers(west).items():
        assert seq > used[spi], (spi, used[spi], seq)
    assert all(now > then for now, then in zip(west.traffic("mobike"), counted)), (counted, west.traffic("mobike"))
    traffic.ping(east, WEST_NET, count=10)
    traffic.tcp(west, east, EAST_NET, 200_001)


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        west, east = lab.libreswan("west"), lab.libreswan("east")
        cable(lab, west, east)
        for host, ends, auto, action, net in (
            (west, WEST_ENDS, "start", "restart", WEST_NET), (east, EAST_ENDS, "add", "clear", EAST_NET),
        ):  # fmt: skip
            host.ip(f"address add {net}/32 dev lo")
            host.configure(CONN.format(ends=ends, auto=auto, action=action), SECRET)
            host.start_daemon()
        east.start_pluto()
        west.start_pluto()
        west.wait_tunnel("mobike")
        settle(west, EAST_NET)
        with Capture(east, "eth0") as wire:
            for old, new in ((FIRST, SECOND), (SECOND, FIRST)):
                goes_on(west, east, old, new, MASQUERADED if options.nat else new)
            assert only_esp(wire.packets(), f"{WEST_NET}/32", f"{EAST_NET}/32") > 100


if __name__ == "__main__":
    main()
