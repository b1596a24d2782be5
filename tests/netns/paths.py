#!/usr/bin/python3
"""All kinds of traffic from host to host, through two gateways.

    PC-A ─── gateway A ═══ {raw ESP, UDP 4500} over {IPv4, IPv6} ═══ gateway B ─── PC-B
                              with {IPv4, IPv6} inside
"""

import json

from lab import sites, traffic
from lab.wait import until


def counts(daemon):
    """Packets and bytes, by SA and by device."""
    status = daemon.status()
    found = {sa["direction"]: (sa["packets"], sa["bytes"]) for sa in status["sas"]}
    (device,) = status["devices"]
    found["tx"] = device["tx_packets"], device["tx_bytes"]
    found["rx"] = device["rx_packets"], device["rx_bytes"]
    return found


def counters_are_exact(lab):
    """Ten echo requests and their replies: each layer counts ten packets of 84 bytes each way."""
    before = counts(lab.a)
    traffic.ping(lab.pc_a, sites.PC_B["v4"], count=10)
    wanted = {name: (packets + 10, size + 840) for name, (packets, size) in before.items()}
    until(lambda: counts(lab.a) == wanted, f"{wanted}, but {counts(lab.a)}")


def status_is_shown(lab):
    """What the command line prints is what the daemon says."""
    output, _ = lab.espalier("status", "--json", "--control", lab.a.control)
    shown = json.loads(output)
    assert [conn["state"] for conn in shown["conns"]] == ["up"], output
    assert [sa["spi"] for sa in shown["sas"]] == [sa["spi"] for sa in lab.a.status()["sas"]]
    output, _ = lab.espalier("status", "--control", lab.a.control)
    assert f"conn {sites.CONN}: up" in output, output


def main():
    options = sites.arguments(__doc__, mebibytes=24)
    with sites.Sites(options) as lab:
        lab.gateways()
        counters_are_exact(lab)
        status_is_shown(lab)
        mtu = lab.gw_a.mtu("vti01")
        assert mtu == lab.gw_b.mtu("vti01")
        for family, headers in (("v4", 28), ("v6", 48)):
            here, there = sites.PC_A[family], sites.PC_B[family]
            traffic.ping(lab.pc_a, there)
            traffic.ping(lab.pc_b, here, size=mtu - headers)
            traffic.udp_sizes(lab.pc_a, lab.pc_b, here, there, range(1, mtu - headers + 1))
            # Odd sizes: the last segment is short, and nothing is a multiple of anything.
            for size in (1, 1447, 65537, (options.mebibytes << 20) + 4303):
                traffic.tcp(lab.pc_a, lab.pc_b, there, size)
                traffic.tcp(lab.pc_b, lab.pc_a, here, size)
        lost = {name: n for end in (lab.a, lab.b) for name, n in end.drops().items() if n}
        assert not lost, lost
        for end in (lab.a, lab.b):
            sa = end.sa("out")
            assert sa["encapsulation"] == options.encap, sa
            assert sa["suite"] == options.esp, sa
            assert options.crypto in ("auto", sa["backend"]), sa


if __name__ == "__main__":
    main()
