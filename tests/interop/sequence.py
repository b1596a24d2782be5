#!/usr/bin/python3
"""Sequence numbers against a Linux kernel: 2^32 crossed in both directions, with packets that come
late over the border; without ESN, the end of all numbers.

    PC-A ─── gateway A │ espalierd ═══ {raw ESP, UDP 4500} over {IPv4, IPv6} ═══ Linux │ ─── PC-B
"""

import random

from kernel import KernelSites, sites
from lab import traffic
from lab.wait import until
from lab.wire import Capture, Injector, outer

WRAP = 1 << 32
BEFORE = 40  # packets this side of the border


def datagrams(lab, count):
    with traffic.UdpPair(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]) as pair:
        for number in range(count):
            pair.exchange(random.Random(number).randbytes(100 + number))


def at(number):
    """A kernel's SA whose last number, sent or received, is `number`."""
    high, low = number >> 32, number & 0xFFFFFFFF
    return (f"replay-oseq {low:#x} replay-oseq-hi {high:#x}", f"replay-seq {low:#x} replay-seq-hi {high:#x}")


def across(lab, suite, high):
    """From HIGH:fffffff… to the next. One packet of ours stays behind and comes late: the kernel
    takes it, once (trust A9, A10)."""
    start = ((high + 1) << 32) - BEFORE
    oseq, seq = at(start - 1)
    numbers = {"states": {"more_in": seq, "more_out": oseq}, "next_out": start, "received": start - 1}
    with lab.tunnel(suite, True, **numbers):
        injector = Injector(lab.gw_a, "eth0", lab.mac_of_right)
        datagrams(lab, BEFORE - 5)
        with Capture(lab.gw_a, "eth0") as wire:
            with lab.withheld():
                lab.pc_a.run("ping", "-c", "1", "-W", "0.1", sites.PC_B["v4"], check=False)
                (late,) = wire.wait_esp()
        datagrams(lab, BEFORE)
        assert lab.a.sa("out")["seq"] > (high + 1) << 32 and lab.a.sa("in")["seq"] > (high + 1) << 32
        assert late.seq > WRAP - BEFORE
        before = lab.sa_counts()["in"]
        for _ in range(3):
            injector.send(outer(lab.left, lab.right, late.protocol, late.esp))
        until(lambda: lab.sa_counts()["in"]["replay"] == 2, f"{lab.sa_counts()['in']}")
        received = lab.sa_counts()["in"]
        assert received["packets"] == before["packets"] + 1, (before, received)
        assert received["failed"] == 0 == received["late"], received
        assert not lab.a.grown(), lab.a.grown()
    print(f"ok: {suite} from {high}:{start & 0xFFFFFFFF:x} across 2^32")


def the_end(lab):
    """Without ESN the last number is 2^32 - 1: the kernel gets all up to it, and nothing more."""
    start = WRAP - 6
    _, seq = at(start - 1)
    with lab.tunnel(esn=False, states={"more_in": seq.split(" replay-seq-hi")[0]}, next_out=start):
        lab.pc_a.run("ping", "-q", "-c", "10", "-i", "0.01", "-W", "0.2", sites.PC_B["v4"], check=False)
        until(lambda: lab.sa_counts()["in"]["packets"] == 6, f"{lab.sa_counts()}")
        lab.a.wait_drops(seq_exhausted=4)
        received = lab.sa_counts()["in"]
        assert (received["packets"], received["failed"], received["replay"]) == (6, 0, 0), received
    print("ok: without ESN nothing after 2^32 - 1")


def main():
    options = sites.arguments(__doc__)
    with KernelSites(options) as lab:
        for suite in ("aes_gcm256", "aes256-sha256", "chacha20_poly1305"):
            across(lab, suite, 0)
        across(lab, "aes128-sha1", 5)
        the_end(lab)


if __name__ == "__main__":
    main()
