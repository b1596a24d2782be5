#!/usr/bin/python3
"""Somebody on the wire sends gateway B what it must not take, while traffic runs.

    PC-A ─── gateway A ═════════ eth0 ═════════ gateway B ─── PC-B
                                  ▲
                  damaged, cut, foreign and repeated packets
"""

import struct
import time

from lab import sites, traffic
from lab.wire import ESP, UDP, Capture, Injector, outer

SHORTEST = 8 + 8 + 4 + 16  # ESP header, IV, the least that is padded, ICV


class Attack:
    """Injects and, after every packet, lets one good one cross: the damage shows at once."""

    def __init__(self, lab, pair, injector):
        self.lab, self.pair, self.injector = lab, pair, injector
        self.protocol = UDP if lab.options.encap == "udp" else ESP
        self.good = 0

    def cross(self):
        self.good += 1
        self.pair.exchange(b"good %d" % self.good)

    def put(self, esp, source=None, sport=4500):
        source = source or self.lab.left
        self.injector.send(outer(source, self.lab.right, self.protocol, esp, sport=sport))

    def send(self, esp, **sender):
        self.put(esp, **sender)
        self.cross()

    def expect(self, what, **counters):
        self.lab.b.wait_drops(**{name: n for name, n in counters.items() if n})
        self.lab.b.take_baseline()
        print(f"ok: {what}: {counters or 'no drop'}")


def withhold(lab, pair, wire, count):
    """`count` good packets that gateway B has never seen, each with its own text."""
    wire.packets()
    with lab.withheld():
        packets = []
        for number in range(count):
            pair.here.sendto(b"withheld %d" % number + bytes(number), pair.there_name)
            packets += wire.wait_esp()
    return packets


def flip_every_byte(attack, packet):
    for at in range(len(packet.esp)):
        bad = bytearray(packet.esp)
        bad[at] ^= 1 << (at % 8)  # a changed sequence number is one that never was
        attack.send(bytes(bad))
    attack.expect("a bit changed in every byte", no_spi=4, integrity=len(packet.esp) - 4)


def cut_to_every_length(attack, packet):
    attack.send(b"")  # nothing at all is a failed receive, and no packet
    lengths = range(1, len(packet.esp))
    for length in lengths:
        attack.send(packet.esp[:length])
    # One byte in a datagram is a keepalive, whatever it says (RFC 3948 §2.3).
    short = SHORTEST - 2 if attack.protocol == UDP else SHORTEST - 1
    attack.expect("cut to every length", too_short=short, integrity=len(packet.esp) - SHORTEST)


def lengthen(attack, packet):
    for more in range(1, 20):
        attack.send(packet.esp + bytes(more))
    attack.expect("lengthened", integrity=19)


def foreign(attack, packet):
    for spi in (1, 255, 256, 0x01010101, 0xFFFFFFFF):
        attack.send(struct.pack("!I", spi) + packet.esp[4:])
    attack.expect("of no SA", no_spi=5)
    if attack.protocol == UDP:
        for data in (b"\xff", b"\x00", b"\xff" * 3):
            attack.send(data)
        for length in (4, 8, 28, 200):
            attack.send(bytes(4) + bytes(range(length)))
        attack.expect("keepalives and IKE", too_short=1, no_ike=4)


def forged_sender(attack, lab, packet):
    """Neither a damaged nor a repeated packet shows where the peer is; without UDP nothing does."""
    bad = bytearray(packet.esp)
    bad[-1] ^= 1
    other = "192.168.1.77" if lab.options.outer == "v4" else "fd00:192:168:1::77"
    peer = lab.b.sa("out")["peer"]
    for source, port in ((other, 4500), (lab.left, 4501), (other, 4501)):
        attack.send(bytes(bad), source=source, sport=port)
        assert lab.b.sa("out")["peer"] == peer, "a forged packet moved the peer"
    if attack.protocol == UDP:
        attack.expect("from elsewhere and damaged", integrity=3)
    else:
        attack.send(packet.esp, source=other)
        attack.expect("from elsewhere", integrity=1, wrong_peer=3)


def replay(attack, packets, what):
    for packet in packets:
        attack.send(packet.esp)
    attack.expect(what, duplicate=len(packets))


def deliver_late(attack, lab, pair, packets):
    """After all of that the withheld packets are still welcome, in any order, once."""
    for packet in reversed(packets):
        attack.put(packet.esp)
    arrived = {pair.there.recv(1 << 16) for _ in packets}
    assert arrived == {b"withheld %d" % n + bytes(n) for n in range(len(packets))}, arrived
    attack.expect("the real ones, late")
    replay(attack, packets, "the real ones again")


def follow(attack, lab, pair, wire):
    """The newest authentic packet shows where the peer is, and no other (RFC 7296 §2.23)."""

    def peer_is_at(port):
        peer = lab.b.sa("out")["peer"]
        assert peer.endswith(f":{port}"), f"the peer is at {peer}, not at port {port}"

    older, newer = withhold(lab, pair, wire, 2)
    attack.put(newer.esp, sport=4501)
    pair.there.recv(1 << 16)
    peer_is_at(4501)
    attack.put(older.esp, sport=4502)
    pair.there.recv(1 << 16)
    peer_is_at(4501)
    attack.cross()  # and back with the next
    peer_is_at(4500)
    attack.put(newer.esp, sport=4503)
    attack.expect("the peer's port follows what is new and authentic", duplicate=1)
    peer_is_at(4500)


def audited(lab, seconds):
    """RFC 4303 §3.4.3, §3.4.4: what was refused is in the log; T16: but not a line for each."""
    for what in ("for no SA", "with a wrong ICV", "seen before or too old"):
        line = lab.b.wait_line(what)
        assert "the last from " in line and lab.right in line, line
        told = [line for line in lab.b.lines if what in line]
        assert len(told) <= seconds + 2, f"{len(told)} lines in {seconds:.0f} s: {what}"


def main():
    options = sites.arguments(__doc__)
    with sites.Sites(options) as lab:
        lab.gateways()
        lab.b.take_baseline()
        begun = time.monotonic()
        injector = Injector(lab.gw_a, "eth0", lab.gw_b.mac("eth0"))
        with traffic.UdpPair(
            lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]
        ) as pair, Capture(lab.gw_a, "eth0") as wire, Capture(
            lab.gw_b, "vti01", incoming_only=True
        ) as inside:
            attack = Attack(lab, pair, injector)
            for _ in range(3):
                attack.cross()
            spi = lab.a.sa("out")["spi"]
            history = [p for p in wire.esp() if f"{p.spi:#010x}" == spi]
            packets = withhold(lab, pair, wire, 9)
            target = packets[-1]
            flip_every_byte(attack, target)
            cut_to_every_length(attack, target)
            lengthen(attack, target)
            foreign(attack, target)
            forged_sender(attack, lab, target)
            replay(attack, history, "everything again")
            deliver_late(attack, lab, pair, packets)
            withheld = len(packets)
            if attack.protocol == UDP:
                follow(attack, lab, pair, wire)
                withheld += 2
            assert not pair.drain(), "PC-B got what nobody sent"
            came = len(inside.packets())
            assert came == attack.good + withheld, f"{came} packets came out of vti01"
        audited(lab, time.monotonic() - begun)


if __name__ == "__main__":
    main()
