#!/usr/bin/python3
"""The life of strongSwan's tunnels: rekeys under load, trap policies, DPD, a NAT that changes its ports,
an address that moves, the end.

    PC-A ─── gateway A │ charon, vti42 ═══ [NAT] ═══ charon, vti42 │ gateway B ─── PC-B
"""

import os
import re
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "netns"), os.path.join(HERE, "..", "seeds", "lab"),
                os.path.join(HERE, "..", "seeds")]

import strongswan  # noqa: E402
from charon import Tunnels, require  # noqa: E402
from lab import sites, traffic  # noqa: E402
from lab.wait import until  # noqa: E402
from load import Load  # noqa: E402

MOVED = "192.168.1.33"


def encap(options):
    return "yes" if options.encap == "udp" else "no"


def rekeys(options):
    """Both IKE and CHILD are renewed; not a packet is lost."""
    with sites.Sites(options) as lab, Tunnels() as tunnels:
        child = "rekey_time = 6s\n    life_time = 20s\n    rand_time = 1s"
        left, right = strongswan.pair(lab, tunnels, encap(options), "rekey_time = 20s\n  over_time = 20s", child)
        left.initiate("net")
        strongswan.up(lab)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        count = 0
        end = time.monotonic() + options.seconds
        with Load(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"],
                  [at.host.daemon for at in (left, right)]) as load:
            while (begun := time.monotonic()) < end:
                asks = (left, right)[count % 2]
                mark = asks.mark()
                # Not necessarily: one that its lifetime has asked for may be under way.
                asks.swanctl("--rekey", "--child", "net", check=False)
                asks.wait_line("CHILD_SA net.* established", since=mark)
                count += 1
                # The pace is the task.
                time.sleep(max(0.0, begun + options.period - time.monotonic()))
            mark = left.mark()
            left.swanctl("--rekey", "--ike", "site")
            left.wait_line("IKE_SA site.*rekeyed", since=mark)
        renewed = len(re.findall(r"CHILD_SA net\{\d+\} established", left.text() + right.text()))
        assert renewed >= 2 * count, (renewed, count)
        print(f"ok: {count} rekeys and what the lifetimes ask for, {load}", flush=True)

        left.swanctl("--terminate", "--ike", "site")
        until(lambda: not left.host.ip("xfrm state") and not right.host.ip("xfrm state"), "no state left")
        assert not left.host.ip("xfrm policy") and not right.host.ip("xfrm policy")
        print("ok: terminated at both ends", flush=True)


def trap(options):
    """The first packet asks for the tunnel, and is not lost."""
    with sites.Sites(options) as lab, Tunnels() as tunnels:
        # Where there is IPv6 the kernel itself sends, and at once: at both ends.
        for gateway in (lab.gw_a, lab.gw_b):
            gateway.sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        left, _ = strongswan.pair(lab, tunnels, encap(options), child="start_action = trap", only_v4=True)
        until(lambda: "dir out" in left.host.ip("xfrm policy"), "the trap")
        strongswan.up_at(lab.gw_a)
        # One packet: nobody sends it again.
        traffic.ping(lab.pc_a, sites.PC_B["v4"], count=1, timeout=10)
        assert left.children() == 1
        print("ok: the first packet waits for the tunnel", flush=True)


def remember(nat, seconds):
    """A mapping is forgotten when nothing was sent for that long."""
    for timeout in ("udp_timeout", "udp_timeout_stream"):
        nat.sysctl(f"net/netfilter/nf_conntrack_{timeout}", seconds)


def nat_changes(options):
    """What comes from another port now, and is authentic, is followed; by IKE as well."""
    with sites.Sites(options) as lab, Tunnels() as tunnels:
        left, right = strongswan.pair(lab, tunnels, "yes")
        nat = ("add table ip nat; add chain ip nat post { type nat hook postrouting priority 100; }; "
               "add rule ip nat post oifname eth0 udp sport 4500 masquerade to :%s; "
               "add rule ip nat post oifname eth0 udp sport 500 masquerade to :%s")
        lab.gw_a.run("nft", nat % ("21000-21999", "22000-22999"))
        remember(lab.gw_a, 1)
        left.initiate("net")
        strongswan.up(lab)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        assert re.search(r"remote .*\[21\d\d\d\]", right.swanctl("--list-sas")), right.swanctl("--list-sas")
        lab.gw_a.run("nft", "delete table ip nat")
        lab.gw_a.run("nft", nat % ("31000-31999", "32000-32999"))

        def followed():
            time.sleep(1.5)
            traffic.ping(lab.pc_a, sites.PC_B["v4"], count=1)
            states = right.host.ip("xfrm state")
            return all(re.search(rf"{port} 31\d\d\d", states) for port in ("sport", "dport"))

        until(followed, "the new port in the states", timeout=40)
        remember(lab.gw_a, 30)
        traffic.ping(lab.pc_a, sites.PC_B["v4"], count=1)
        traffic.ping(lab.pc_b, sites.PC_A["v4"])
        print("ok: a NAT changes its ports", flush=True)


def moves(options):
    """MOBIKE: the left gateway gets another address; the tunnel goes on with the same keys."""
    with sites.Sites(options) as lab, Tunnels() as tunnels:
        for gateway in (lab.gw_a, lab.gw_b):  # else it moves there
            gateway.ip("-6 address flush dev eth0")
        left, right = strongswan.pair(lab, tunnels, encap(options), wildcard=True)
        left.initiate("net")
        strongswan.up(lab)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        spis = set(re.findall(r"spi (0x\w+)", left.host.ip("xfrm state")))
        mark = right.mark()
        lab.gw_a.sysctl("net/ipv4/conf/eth0/promote_secondaries", 1)
        lab.gw_a.ip(f"address add {MOVED}/24 dev eth0")
        lab.gw_a.ip(f"address del {lab.left}/24 dev eth0")
        right.wait_line("parsed INFORMATIONAL request .*UPD_SA_ADDR", since=mark)
        until(lambda: MOVED in right.host.ip("xfrm state"), "the new address in the peer's states")
        traffic.ping(lab.pc_a, sites.PC_B["v4"], timeout=10)
        traffic.ping(lab.pc_b, sites.PC_A["v4"])
        assert set(re.findall(r"spi (0x\w+)", left.host.ip("xfrm state"))) == spis
        print("ok: MOBIKE", flush=True)


def main():
    options = sites.arguments(__doc__, seconds=10, period=1.0)
    require()
    rekeys(options)
    trap(options)
    if options.encap == "udp":
        nat_changes(options)
    moves(options)


if __name__ == "__main__":
    main()
