#!/usr/bin/python3
"""Every suite against a Linux kernel, with and without ESN: what either seals the other opens.

    PC-A ─── gateway A │ espalierd ═══ {raw ESP, UDP 4500} over {IPv4, IPv6} ═══ Linux │ ─── PC-B
                              with {IPv4, IPv6} inside
"""

import time

from kernel import SUITES, KernelSites, sites
from lab import traffic
from lab.wait import until

# Every padding length of a 16-byte block twice, then some of the rest.
SIZES = [*range(1, 34), 63, 64, 65, 511, 512, 1000]


def all_traffic(lab):
    mtu = lab.gw_a.mtu("vti01")
    for family, headers in (("v4", 28), ("v6", 48)):
        here, there = sites.PC_A[family], sites.PC_B[family]
        largest = mtu - headers
        traffic.udp_sizes(lab.pc_a, lab.pc_b, here, there, [*SIZES, *range(largest - 20, largest + 1)])
        traffic.ping(lab.pc_b, here, size=1200)
        traffic.tcp(lab.pc_a, lab.pc_b, there, 100_001)
        traffic.tcp(lab.pc_b, lab.pc_a, here, 4303)


def both_agree(lab):
    """Packets and inner bytes on the two ends."""
    def counts():
        ours = {way: lab.a.sa(way) for way in ("in", "out")}
        theirs = lab.sa_counts()
        return (
            (ours["out"]["packets"], ours["out"]["bytes"], ours["in"]["packets"]),
            (theirs["in"]["packets"], theirs["in"]["bytes"], theirs["out"]["packets"]),
        )

    until(lambda: len(set(counts())) == 1, f"{counts()}")
    assert lab.sa_counts()["in"]["failed"] == 0 == lab.sa_counts()["in"]["replay"]


def one(lab, chosen, esn):
    config = lab.configure(chosen.esp, {"esn": "yes" if esn else "no"})
    lab.kernel.batch([*lab.states(chosen, esn), *lab.policies(), *lab.routes()])
    lab.a = lab.daemon(lab.gw_a, config).start()
    before = lab.xfrm_errors()
    all_traffic(lab)
    both_agree(lab)
    assert lab.xfrm_errors() == before, (before, lab.xfrm_errors())
    lost = {name: n for name, n in lab.a.drops().items() if n}
    assert not lost, lost
    assert lab.a.sa("out")["suite"] == chosen.esp
    lab.a.stop()
    lab.forget()


def main():
    options = sites.arguments(__doc__)
    with KernelSites(options) as lab:
        for chosen in SUITES:
            for esn in (True, False):
                start = time.monotonic()
                one(lab, chosen, esn)
                print(f"ok: {chosen.esp}, ESN {esn}: {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
