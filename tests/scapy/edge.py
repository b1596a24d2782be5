#!/usr/bin/python3
"""What a peer with the right keys may send at the edge of the standards, made by Scapy: each is
delivered, passed over in silence, or counted under its name.

    Scapy ─── eth0 of gateway A ═════════ eth0 │ gateway B: espalierd, vti01 │ eth1 ─── PC-B
"""

import struct

from scapy.layers.inet import IP, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6

from oracle import inner_packet
from peer import IPV4, IPV6, NO_NEXT, Bench, sites
from lab.wire import ESP, outer

WINDOW = 4096
CE, ECT0, NOT_ECT = 3, 2, 0


def good(family="v4", data=b"good"):
    return inner_packet(family, sites.PC_A[family], sites.PC_B[family], data)


def dummies(bench):
    """RFC 4303 §2.6: discarded without an error."""
    for data in (b"", b"x", good(), bytes(1300)):
        bench.send(bench.peer.seal(data, next_header=NO_NEXT))
    bench.nothing_arrives(good())


def traffic_flow_padding(bench):
    """RFC 4303 §2.7: what lies behind the inner packet is cut off."""
    for family in ("v4", "v6"):
        for more in (1, 4, 255, 1000):
            bench.send(bench.peer.seal(good(family), after=bytes(more)))
            bench.arrives(good(family))


def right_padding(bench):
    """RFC 4303 §2.4: up to 255 bytes, the length being the sender's choice."""
    inner = good(data=b"")  # 28 bytes
    for length in (2, 6, 98, 254):
        bench.send(bench.peer.seal(inner, padding=bytes(range(1, length + 1))))
        bench.arrives(inner)


def wrong_padding(bench):
    inner = good(data=b"")
    wrong = (bytes(6), b"\x01\x02\x03\x04\x05\x07", b"\x02\x02\x03\x04\x05\x06", b"\xff" * 6)
    for padding in wrong:
        bench.send(bench.peer.seal(inner, padding=padding))
    text = inner + bytes(2)
    longer = (255, len(text) + 1)  # longer than all of the text
    for length in longer:
        bench.send(bench.peer.seal_text(text + struct.pack("BB", length, IPV4)))
    bench.nothing_arrives(good(), bad_padding=len(wrong) + len(longer))


def wrong_next_header(bench):
    cases = [(good("v4"), IPV6), (good("v6"), IPV4), (b"", IPV4), (b"\x55" * 40, IPV4)]
    cases += [(good(), number) for number in (0, 1, 6, 17, ESP, 51, 255)]
    for data, number in cases:
        bench.send(bench.peer.seal(data, next_header=number))
    bench.nothing_arrives(good(), bad_next_header=len(cases))


def wrong_inner_length(bench):
    v4, v6 = good("v4"), good("v6")
    cases = [v4[:length] for length in (1, 19, 20, len(v4) - 1)]
    cases += [v6[:length] for length in (1, 39, 40, len(v6) - 1)]
    for changed in (0, 19, len(v4) + 1, 65535):
        cases.append(v4[:2] + struct.pack("!H", changed) + v4[4:])
    cases.append(b"\x44" + v4[1:])  # a header of 16 bytes
    cases.append(b"\x4f" + v4[1:])  # a header of 60 bytes, longer than the packet
    for data in cases:
        bench.send(bench.peer.seal(data))
    bench.nothing_arrives(good(), bad_inner_length=len(cases))


def wrong_selector(bench):
    here, there = sites.PC_A, sites.PC_B
    cases = [
        inner_packet("v4", "10.1.9.2", there["v4"], b""),
        inner_packet("v4", here["v4"], "10.1.9.2", b""),
        inner_packet("v4", there["v4"], here["v4"], b""),
        inner_packet("v4", "192.168.1.3", "192.168.1.4", b""),
        inner_packet("v6", "fd00:10:1:9::2", there["v6"], b""),
        inner_packet("v6", here["v6"], "fd00:10:1:9::2", b""),
    ]
    for inner in cases:
        bench.send(bench.peer.seal(inner))
    bench.nothing_arrives(good(), selector_mismatch=len(cases))


def congestion(bench):
    """RFC 6040 §4.2: a mark of the outer header is carried in, or the packet must go."""
    sender = IP(good())
    for inner_ecn, outer_ecn, result in ((ECT0, CE, CE), (ECT0, NOT_ECT, ECT0), (CE, NOT_ECT, CE)):
        packet = IP(src=sender.src, dst=sender.dst, tos=inner_ecn) / sender.payload
        wanted = IP(src=sender.src, dst=sender.dst, tos=result) / sender.payload
        bench.send(bench.peer.seal(bytes(packet)), tos=outer_ecn)
        bench.arrives(bytes(wanted))
    bench.send(bench.peer.seal(good()), tos=CE)
    bench.nothing_arrives(good(), ecn_violation=1)


def outer_shapes(bench):
    """Options in the outer IPv4 header, and outer fragments, which the kernel puts together."""
    inner = good(data=bytes(range(200)) * 5)
    if bench.options.outer == "v4":
        bench.send(bench.peer.seal(inner), options=b"\x01" * 8)
        bench.arrives(inner)
    whole = outer(bench.left, bench.right, bench.protocol, bench.peer.seal(inner))
    if bench.options.outer == "v4":
        parts = fragment(IP(whole), fragsize=512)
    else:
        head = IPv6(whole[:40])
        following, head.nh = head.nh, 44
        parts = fragment6(head / IPv6ExtHdrFragment(nh=following, id=1) / whole[40:], 600)
    assert len(parts) > 1
    for part in parts:
        bench.injector.send(bytes(part))
    bench.arrives(inner)


def no_number_zero(bench):
    """RFC 4303 §3.3.3: the first number is 1."""
    bench.send(bench.peer.seal(good(), seq=0))
    bench.nothing_arrives(good(), late=1)


def window(bench, esn):
    """The window's two ends, to the packet. Behind it a 32-bit number is late; with 64-bit numbers
    it stands for one that is far ahead, and so has the wrong ICV (RFC 4303 A2.2)."""
    behind = "integrity" if esn else "late"
    top = bench.peer.seq + 3 * WINDOW
    for seq in (top, top - WINDOW + 1, top - 1):
        bench.send(bench.peer.seal(good(), seq=seq))
        bench.arrives(good())
    # A batch that is refused has changed nothing: a smaller window would have forgotten this one.
    smaller = {"op": "sa-update", "id": bench.b.sa_id("in"), "window": 32}
    twice = {"op": "vti-add", "name": "vti01"}
    try:
        bench.b.ask({"op": "batch", "ops": [smaller, twice]})
    except AssertionError as error:
        assert "vti01 is there already" in str(error), error
    bench.send(bench.peer.seal(good(), seq=top - 40))
    bench.arrives(good())
    for seq in (top, top - 1, top - WINDOW + 1):
        bench.send(bench.peer.seal(good(), seq=seq))
    for seq in (top - WINDOW, top - 2 * WINDOW):
        bench.send(bench.peer.seal(good(), seq=seq))
    bench.peer.seq = top
    bench.nothing_arrives(good(), duplicate=3, **{behind: 2})


def wrap_of_low_half(bench):
    """RFC 4303 Appendix A: across 2^32 and back, as far as the window reaches."""
    wrap = 1 << 32
    for seq in (wrap - 2, wrap + 3, wrap - 1, wrap, wrap + 1000, wrap - 1000):
        bench.send(bench.peer.seal(good(), seq=seq))
        bench.arrives(good())
    for seq in (wrap - 2, wrap + 3, wrap - 1, wrap, wrap - 1000):
        bench.send(bench.peer.seal(good(), seq=seq))
    # The right number with another high half is another packet.
    bench.send(bench.peer.seal(good(), seq=7 * wrap + 1001))
    bench.peer.seq = wrap + 1001
    bench.nothing_arrives(good(), duplicate=5, integrity=1)


def no_wrap(bench):
    """RFC 4303 §3.3.3: without ESN the numbers end at 2^32 - 1."""
    last = (1 << 32) - 1
    bench.send(bench.peer.seal(good(), seq=last))
    bench.arrives(good())
    bench.send(bench.peer.seal(good(), seq=last + 2))
    bench.b.wait_drops(late=1)


def main():
    options = sites.arguments(__doc__)
    for esn in (True, False):
        with Bench(options, esn="yes" if esn else "no") as bench:
            no_number_zero(bench)
            dummies(bench)
            traffic_flow_padding(bench)
            right_padding(bench)
            wrong_padding(bench)
            wrong_next_header(bench)
            wrong_inner_length(bench)
            wrong_selector(bench)
            congestion(bench)
            outer_shapes(bench)
            window(bench, esn)
            if esn:
                wrap_of_low_half(bench)
            else:
                no_wrap(bench)
            print(f"ok: all of it, {'with' if esn else 'without'} ESN")


if __name__ == "__main__":
    main()
