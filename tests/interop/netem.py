#!/usr/bin/python3
"""A bad wire between us and a Linux kernel: loss, reordering, duplicates, changed bits, by the kernel's
netem, and all of them at once. What the wire showed is what the counters say, to the packet.

    PC-A ─── gateway A │ espalierd ══ eth0 ══ netem ══ vec0 ══ │ Linux, XFRM │ ─── PC-B
"""

import collections
import socket

from kernel import KernelSites, sites
from lab import traffic
from lab.wait import until
from lab.wire import ESP, SO_RCVBUFFORCE, UDP, Capture
from oracle import Reader, fates

PORT = 5002
ROUNDS, BURST = 8, 100
EVERYTHING = "loss 3% duplicate 3% corrupt 3% delay 2ms 1ms"


def both_neighbours(lab):
    """No ARP to lose: what crosses the wire is ESP."""
    lab.gw_a.ip(f"neighbour replace {lab.right} dev eth0 nud permanent lladdr {lab.mac_of_right}")
    lab.kernel.ip(f"neighbour replace {lab.left} dev vec0 nud permanent lladdr {lab.gw_a.mac('eth0')}")


def to_us(lab, netem):
    """What the kernel sends goes through `netem`; nothing: not any more."""
    lab.kernel.shell(f"tc qdisc {'replace' if netem else 'del'} dev vec0 root"
                     + (f" netem limit 10000 {netem}" if netem else ""))


def to_the_kernel(lab, netem):
    """What we send goes through `netem` before the kernel sees it."""
    if netem:
        lab.kernel.shell(
            "tc qdisc add dev vec0 ingress\n"
            # Only what is still sealed: the inner packet shows up on the same device.
            "tc filter add dev vec0 parent ffff: protocol ip u32"
            f" match ip dst {lab.right} action mirred egress redirect dev ifb0\n"
            f"tc qdisc replace dev ifb0 root netem limit 10000 {netem}\n"
        )
    else:
        lab.kernel.shell("tc qdisc del dev vec0 ingress; tc qdisc del dev ifb0 root")


def make_ifb(lab):
    lab.kernel.shell("ip link add ifb0 type ifb && ip link set ifb0 up")
    lab.kernel.no_gro("ifb0")


def drained(lab):
    return "backlog 0b 0p" in lab.kernel.shell("tc -s qdisc show dev vec0 root")


def messages(lab):
    """Numbered datagrams from PC-B to PC-A: those that arrived. They go in bursts that the queues of
    the wire hold."""
    receiver = lab.pc_a.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    receiver.bind((sites.PC_A["v4"], PORT))
    receiver.setblocking(False)
    sender = lab.pc_b.socket(socket.AF_INET, socket.SOCK_DGRAM)
    arrived = []
    for number in range(ROUNDS * BURST):
        sender.sendto(b"%06d" % number * 20, (sites.PC_A["v4"], PORT))
        if number % BURST == BURST - 1:
            until(lambda: lab.sa_counts()["out"]["packets"] > number, "the kernel has sent them")
    until(lambda: drained(lab), "netem has let go of all")
    yield arrived
    try:
        while True:
            arrived.append(receiver.recv(1 << 16))
    except BlockingIOError:
        receiver.close()
        sender.close()


def inbound(lab, netem, window=1024, at_least=()):
    """The kernel's packets through `netem`: our counters are what a slow reader of the wire finds,
    and what was accepted has arrived, whole and once. `at_least`: fates that must have occurred."""
    protocol = UDP if lab.options.encap == "udp" else ESP
    with lab.tunnel(esn=False, lines={"replay-window": str(window)}):
        both_neighbours(lab)
        reader = Reader(lab.keys.spi_out, lab.keys.keymat_out, window)
        mac = bytes.fromhex(lab.gw_a.mac("eth0").replace(":", ""))
        with Capture(lab.gw_a, "eth0", incoming_only=True) as wire:
            to_us(lab, netem)
            run = messages(lab)
            arrived = next(run)
            to_us(lab, None)
            wanted = fates(wire.frames(), mac, protocol, reader)
        until(lambda: lab.a.sa("in")["packets"] + sum(lab.a.grown().values()) == sum(wanted.values()),
              f"{wanted}, not {lab.a.sa('in')['packets']} and {lab.a.grown()}")
        accepted, forged = wanted.pop("accepted"), wanted.pop("forged", 0)
        assert lab.a.sa("in")["packets"] == accepted, (lab.a.sa("in")["packets"], accepted)
        more = collections.Counter(lab.a.grown())
        more.subtract(wanted)
        assert all(0 <= n <= forged for n in more.values()), (wanted, forged, lab.a.grown())
        for _ in run:
            pass
        known = {b"%06d" % number * 20 for number in range(ROUNDS * BURST)}
        assert len(arrived) == accepted == len(set(arrived)), (len(arrived), accepted)
        assert set(arrived) <= known, "a datagram that nobody sent"
        for fate in at_least:
            assert wanted[fate], f"no packet was {fate}: {wanted}"
        goes_on(lab)
    print(f"ok: {netem}: {accepted} of {ROUNDS * BURST} accepted, {dict(wanted)}", flush=True)
    return accepted


def goes_on(lab):
    traffic.ping(lab.pc_a, sites.PC_B["v4"], 1)


def duplicates_to_the_kernel(lab):
    """Each packet of ours twice: the kernel counts every second one as a replay."""
    with lab.tunnel():
        both_neighbours(lab)
        to_the_kernel(lab, "duplicate 100%")
        with traffic.UdpPair(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]) as pair:
            for number in range(200):
                pair.exchange(b"%d" % number)
            assert not pair.drain(), "something arrived twice"
        received = lab.sa_counts()["in"]
        assert (received["packets"], received["replay"], received["failed"]) == (200, 200, 0), received
        to_the_kernel(lab, None)
    print("ok: each of our packets twice", flush=True)


def corrupted_to_the_kernel(lab):
    """A bit of each packet of ours changed: the kernel opens none but those where it is in the
    Ethernet header, and goes on when it is over."""
    with lab.tunnel():
        both_neighbours(lab)
        traffic.ping(lab.pc_a, sites.PC_B["v4"], 1)
        to_the_kernel(lab, "corrupt 100%")
        shown = lab.pc_a.run("ping", "-q", "-c", "100", "-i", "0.002", "-W", "0.1", "-s", "1000",
                             sites.PC_B["v4"], check=False)
        assert "wrong data" not in shown, shown
        received = lab.sa_counts()["in"]
        # In UDP its checksum finds most of them first.
        assert received["packets"] < 20, received
        assert received["failed"] > 50 or lab.options.encap == "udp", received
        to_the_kernel(lab, None)
        traffic.ping(lab.pc_a, sites.PC_B["v4"], 10)
    print("ok: a bit of each of our packets changed", flush=True)


def all_at_once(lab):
    """TCP each way over a wire with everything wrong with it at once."""
    with lab.tunnel():
        both_neighbours(lab)
        to_us(lab, EVERYTHING)
        to_the_kernel(lab, EVERYTHING)
        traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 200_000)
        traffic.tcp(lab.pc_b, lab.pc_a, sites.PC_A["v6"], 200_000)
        to_us(lab, None)
        to_the_kernel(lab, None)
        wrong = set(lab.a.grown()) - {"duplicate", "late", "integrity", "no_spi"}
        assert not wrong, lab.a.grown()
    print("ok: all of it at once", flush=True)


def main():
    options = sites.arguments(__doc__)
    with KernelSites(options) as lab:
        total = ROUNDS * BURST
        assert inbound(lab, "loss 10%") < total
        assert inbound(lab, "duplicate 20%", at_least=["duplicate"]) == total
        assert inbound(lab, "corrupt 20%", at_least=["integrity"]) < total
        assert inbound(lab, "delay 5ms reorder 75% gap 5") == total
        assert inbound(lab, "delay 100ms reorder 80%", window=64, at_least=["late"]) < total
        inbound(lab, EVERYTHING, at_least=["duplicate", "integrity"])
        make_ifb(lab)
        duplicates_to_the_kernel(lab)
        corrupted_to_the_kernel(lab)
        all_at_once(lab)


if __name__ == "__main__":
    main()
