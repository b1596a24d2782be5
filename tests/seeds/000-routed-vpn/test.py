#!/usr/bin/python3
"""Seed 000: a routed VPN with libreswan at both ends.

    west 192.1.2.23 ═════════ 192.1.2.45 east
     │  └ vti01 10.0.1.1   10.0.1.2 vti01 ┘ │
    net 10.1.0.1                    10.2.0.1 net

With --nat west has 10.77.0.2 and is seen as 192.1.2.23. With --outer v6 the gateways have 2001:db8::23
and ::45; libreswan's script knows no such VTI, so the device is made before, as ip-link(8) has it.
"""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from hosts import picture  # noqa: E402
from hosts.checks import only_esp, settle  # noqa: E402
from hosts.document import Document  # noqa: E402
from hosts.flow import Flow  # noqa: E402
from lab import traffic  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402

OUTER = {"v4": ("192.1.2.23", "192.1.2.45"), "v6": ("2001:db8::23", "2001:db8::45")}
LEFT, RIGHT = OUTER["v4"]
BEHIND_NAT = "10.77.0.2"
CONN = "routed-vpn"
WEST_NET, EAST_NET = "10.1.0.1", "10.2.0.1"
INNER = ("10.0.1.0/24", "10.1.0.0/16", "10.2.0.0/16")
# The document leaves open how a dead peer is noticed; this is soon.
LIVENESS = "    dpddelay=1\n    retransmit-timeout=3s\n    dpdaction=restart\n"


def configure(lab, west, east):
    (_, west_key), (_, east_key) = west.host_key(), east.host_key()
    added = f"    leftrsasigkey={west_key}\n    rightrsasigkey={east_key}\n{LIVENESS}"
    document = Document(__file__, "routed-vpn.conf")
    # libreswan 4.10 says of rsasigkey: "authby= value is unknown".
    words = {"authby=rsasigkey": "authby=rsasig"}
    if lab.options.outer == "v6":
        words |= dict(zip((f"left={LEFT}", f"right={RIGHT}"),
                          (f"{side}={end}" for side, end in zip(("left", "right"), OUTER["v6"]))))
    behind = {f"left={LEFT}": f"left={BEHIND_NAT}\n    leftid={LEFT}"} if lab.options.nat else {}
    west.configure(document.filled("west", {**words, **behind}, added))
    east.configure(document.filled("east", {**words, "leftvti=10.0.1.1/24": "rightvti=10.0.1.2/24"},
                                   added))


def device(host):
    """{rx, tx: (bytes, packets)} of vti01 by `ip -s link`."""
    lines = host.ip("-s link show vti01").splitlines()
    return {lines[at].split()[0][:2]: tuple(map(int, lines[at + 1].split()[:2])) for at in (2, 4)}


def cleartext_inside_only(west, underlay):
    """The document's tcpdump shows what is inside; the wire shows ESP."""
    watch = west.start("tcpdump", "-i", "vti01", "-n", "-l", "-c", "2", stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, text=True)  # fmt: skip
    while "listening on" not in watch.stdout.readline():
        assert watch.poll() is None, "tcpdump ended"
    before = device(west)
    traffic.ping(west, EAST_NET, count=10)
    seen = watch.communicate(timeout=10)[0]
    assert f"> {EAST_NET}: ICMP echo request" in seen, seen
    after = device(west)
    for way in ("RX", "TX"):
        grown = [now - then for now, then in zip(after[way], before[way])]
        # The kernel has a word of its own to say now and then, for IPv6 (MLD).
        assert grown[0] >= 10 * 84 and 10 <= grown[1] <= 15, (way, grown)
    assert only_esp(underlay.packets(), *INNER) >= 20


def firewall(west, east):
    """The document's rule: no IRC by way of vti01."""
    listener = west.listen(WEST_NET, 6666)

    def reaches():
        with east.socket(timeout=2) as client:
            return client.connect_ex((WEST_NET, 6666)) == 0

    assert reaches()
    west.run(*"iptables -I INPUT -j DROP -p tcp --dport 6666 -i vti01".split())
    assert not reaches()
    counted = west.run(*"iptables -L INPUT -v -n -x".split()).splitlines()[2].split()
    assert int(counted[0]) > 0, counted
    west.run(*"iptables -D INPUT 1".split())
    assert reaches()
    listener.close()


def rekey(west, east):
    """Three rekeys, of the CHILD_SA by either and of the IKE SA, under traffic. pluto that answers sends
    under the new SA before the one that asked has it (a kernel loses that): it waits for the keys."""
    before = [host.drops() for host in (west, east)]
    # Both ends start the tunnel, as in the document: at the same moment, there are two of it.
    pairs = [len(host.status()["sas"]) for host in (west, east)]
    with Flow(west, EAST_NET) as flow:
        for host, what in ((west, "--rekey-ipsec"), (east, "--rekey-ipsec"), (west, "--rekey-ike")):
            host.whack(what, "--name", CONN)
    after = [host.drops() for host in (west, east)]
    assert flow.sent > 100 and flow.lost == 0 and after == before, (flow.sent, flow.lost, before, after)
    # The old one goes when the peer has heard of the new one.
    for host, count in zip((west, east), pairs):
        until(lambda host=host, count=count: len(host.status()["sas"]) == count, "the old SAs gone")


def counters(west, east):
    """What trafficstatus says is what the SAs carried."""
    before = [host.traffic(CONN) for host in (west, east)]
    traffic.ping(west, EAST_NET, count=10)
    for host, (came, went) in zip((west, east), before):
        assert host.traffic(CONN) == (came + 840, went + 840), (host.traffic(CONN), came, went)


def liveness(west, east):
    """East dies without a word; west notices and, when east is back, has it again."""
    mark = len(west.log.lines)
    east.kill_pluto()
    west.log.wait("liveness action|retransmission timeout|retransmits", mark)
    east.start_pluto()
    west.wait_tunnel(CONN, mark)
    until(lambda: "10 received" in west.run(*f"ping -c 10 -i 0.01 -W 0.3 {EAST_NET}".split(), check=False),
          "traffic again")  # fmt: skip


def terminate(west, east, underlay):
    """Nothing goes in clear when the tunnel is gone."""
    for host in (west, east):
        host.whack("--delete", "--name", CONN)
    west.wait_no_states()
    east.wait_no_states()
    underlay.packets()
    west.run("ping", "-c", "3", "-i", "0.01", "-W", "0.2", EAST_NET, check=False)
    assert only_esp(underlay.packets(), *INNER) == 0


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        west, east = lab.libreswan("west"), lab.libreswan("east")
        if options.nat:
            lab.nat(west, f"{BEHIND_NAT}/24", east, f"{RIGHT}/24", f"{LEFT}/24")
        else:
            left, right = OUTER[options.outer]
            length = 64 if options.outer == "v6" else 24
            lab.wire(west, "eth0", f"{left}/{length}", east, "eth0", f"{right}/{length}")
        configure(lab, west, east)
        for host, net in ((west, WEST_NET), (east, EAST_NET)):
            host.ip(f"address add {net}/32 dev lo")
            host.start_daemon()
        if options.outer == "v6":
            west.make_vti("vti01", *OUTER["v6"], 5, "10.0.1.1/24")
            east.make_vti("vti01", *reversed(OUTER["v6"]), 5, "10.0.1.2/24")
        underlay = Capture(west, "eth0")
        east.start_pluto()
        west.start_pluto()
        west.wait_tunnel(CONN)
        for host in (west, east):
            host.ip("route add 10.0.0.0/8 dev vti01")  # as in the document
        settle(west, EAST_NET)
        underlay.packets()
        cleartext_inside_only(west, underlay)
        firewall(west, east)
        rekey(west, east)
        counters(west, east)
        liveness(west, east)
        terminate(west, east, underlay)


if __name__ == "__main__":
    main()
