#!/usr/bin/python3
"""Scapy opens what we seal, and we open what Scapy seals: every suite that it has (`--suites all`
for those that are not AES-GCM), both inner families, every small size and some large ones. tshark has
a third opinion on what we seal.

    Scapy ─── eth0 of gateway A ═════════ eth0 │ gateway B: espalierd, vti01 │ eth1 ─── PC-B
"""

import random
import struct
import subprocess

from scapy.layers.inet import IP, UDP as ScapyUdp
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from peer import IPV4, IPV6, PORT, Bench, sites
from lab import traffic
from lab.wire import UDP

OVERHEAD = {"v4": 28, "v6": 48}


def inner_packet(family, source, destination, data, sport=5000, dport=PORT, ttl=64):
    ip = (
        IP(src=source, dst=destination, ttl=ttl)
        if family == "v4"
        else IPv6(src=source, dst=destination, hlim=ttl)
    )
    return bytes(ip / ScapyUdp(sport=sport, dport=dport) / Raw(data))


def check_checksums(family, inner):
    """Scapy computes the same checksums and lengths."""
    parsed = (IP if family == "v4" else IPv6)(inner)
    del parsed[ScapyUdp].chksum
    if family == "v4":
        del parsed.chksum
    assert bytes(parsed) == inner, f"checksums differ: {inner.hex()}"


def we_open(bench, family, data):
    inner = inner_packet(family, sites.PC_A[family], sites.PC_B[family], data)
    bench.send(bench.peer.seal(inner))
    bench.arrives(inner)


def we_seal(bench, family, pair, data, last):
    pair.here.sendto(data, (sites.PC_A[family], PORT))
    packet = bench.next_sealed()
    inner, next_header = bench.peer.open(packet.esp)
    assert next_header == (IPV4 if family == "v4" else IPV6), next_header
    assert inner.endswith(data) and len(inner) == len(data) + OVERHEAD[family]
    check_checksums(family, inner)
    # RFC 4303 §2.4: the end of the padding is on a 4-byte boundary; RFC 4106 §4: so is the text.
    # CBC's text is whole blocks (RFC 3602 §2.4).
    assert len(packet.esp) % 4 == 0
    assert last is None or packet.seq == last.seq + 1, (packet.seq, last.seq)
    check_outer(bench, packet)
    return packet


def check_outer(bench, packet):
    """Addresses, and with UDP the ports, the length and the checksum."""
    ip = (IP if packet.version == 4 else IPv6)(packet.ip)
    assert (ip.src, ip.dst) == (bench.right, bench.left)
    if bench.protocol == UDP:
        udp = ip[ScapyUdp]
        assert (udp.sport, udp.dport) == (4500, 4500)


def tshark_names(suite):
    """tshark's names of cipher and integrity algorithm; None for what it lacks."""
    digests = {
        "sha1": "HMAC-SHA-1-96 [RFC2404]",
        "sha256": "HMAC-SHA-256-128 [RFC4868]",
        "sha384": "HMAC-SHA-384-192 [RFC4868]",
        "sha512": "HMAC-SHA-512-256 [RFC4868]",
    }
    cipher, _, digest = suite.partition("-")
    if digest:
        return "NULL" if cipher == "null" else "AES-CBC [RFC3602]", digests[digest]
    if suite.startswith("aes_gcm"):
        return "AES-GCM with 16 octet ICV [RFC4106]", "NULL"
    return None


def tshark_agrees(bench, pairs):
    """tshark finds every ICV good, and inside the packets what was sent. `pairs` of both."""

    def hexadecimal(key):
        return f"0x{key.hex()}" if key else ""

    cipher, integrity = tshark_names(bench.keys.suite)
    packets = [packet for packet, _ in pairs]
    name = bench.path("sealed.pcap")
    with open(name, "wb") as file:
        file.write(struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 17, 101))
        for packet in packets:
            file.write(struct.pack("=IIII", 0, 0, len(packet.ip), len(packet.ip)) + packet.ip)
    family = "IPv4" if packets[0].version == 4 else "IPv6"
    association = ",".join(
        f'"{word}"'
        for word in (
            family, "*", "*", f"{packets[0].spi:#010x}", cipher, hexadecimal(bench.keys.keymat_out),
            integrity, hexadecimal(bench.keys.auth_out),
        )
    )
    words = ["tshark", "-r", name, "-T", "fields", "-e", "esp.icv_good", "-e", "udp.payload"]
    # Or it would take the random bytes for all sorts of things, and stop there.
    words += ["-d", f"udp.port=={PORT},data"]
    for option in (
        "esp.enable_encryption_decode:TRUE",
        "esp.enable_authentication_check:TRUE",
        f"uat:esp_sa:{association}",
    ):
        words += ["-o", option]
    output = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout
    seen = [line.split("\t") for line in output.splitlines()]
    assert len(seen) == len(packets), f"tshark saw {len(seen)} of {len(packets)} packets"
    for (good, payload), (_, data) in zip(seen, pairs):
        assert good == "1", f"tshark does not find a good ICV around {data[:40].hex()}"
        assert payload.split(",")[-1] == data.hex(), f"tshark does not see {data[:40].hex()}"


def ivs_differ(bench, packets):
    """No IV twice, and none that is the number, or the end of the packet before, in CBC."""
    size = bench.peer.out.crypt_algo.iv_size
    if size == 0:
        return
    ivs = [packet.esp[8 : 8 + size] for packet in packets]
    assert len(set(ivs)) == len(ivs), "an IV was used twice"
    if size != 16:
        return
    for packet, before in zip(packets[1:], packets):
        iv = packet.esp[8:24]
        assert iv not in before.esp, "the IV is in the packet before"
        assert packet.esp[4:8] not in (iv[:4], iv[4:8], iv[8:12], iv[12:]), "the IV counts"


def exchange(options, suite, esn, full):
    """`full`: every small size, or some."""
    options.esp = suite
    pick = random.Random(4106)
    with Bench(options, esn=esn) as bench:
        mtu = bench.gw_b.mtu("vti01")
        packets, sent = [], []
        for family in ("v4", "v6"):
            largest = mtu - OVERHEAD[family]
            small = range(0, 70) if full else range(0, 34)
            some = pick.sample(range(70, largest), 20 if full else 6)
            sizes = [*small, *some, largest - 1, largest]
            with traffic.UdpPair(
                bench.pc_b, bench.pc_a, sites.PC_B[family], sites.PC_A[family]
            ) as pair:
                for size in sizes:
                    data = pick.randbytes(size)
                    we_open(bench, family, data)
                    last = packets[-1] if packets else None
                    packets.append(we_seal(bench, family, pair, data, last))
                    sent.append(data)
        ivs_differ(bench, packets)
        lost = {name: n for name, n in bench.b.drops().items() if n}
        assert not lost, lost
        if esn == "no" and tshark_names(suite):  # tshark 4.0 has no 64-bit numbers
            tshark_agrees(bench, [(p, d) for p, d in zip(packets, sent) if d])
        print(f"ok: {suite}, esn={esn}: {len(packets)} packets each way")


# AES-GCM in full; of the others every key length, digest and ICV that Scapy has.
AES_GCM = ("aes_gcm128", "aes_gcm192", "aes_gcm256")
OTHERS = (
    "chacha20_poly1305",
    "aes128-sha1",
    "aes192-sha256",
    "aes256-sha384",
    "aes256-sha512",
    "aes_ccm_16_128",
    "aes_ccm_12_192",
    "aes_ccm_8_256",
    "null-sha256",
)


def main():
    options = sites.arguments(__doc__, suites="gcm")
    full = options.suites == "gcm"
    for suite in AES_GCM if full else OTHERS:
        for esn in ("yes", "no"):
            exchange(options, suite, esn, full)


if __name__ == "__main__":
    main()
