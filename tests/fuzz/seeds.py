#!/usr/bin/python3
"""Seeds for the fuzzers: OUT/TARGET/* and OUT/TARGET.list, which names them all in one line.

Captures that others made against their own parsers, and packets that reach every branch behind the
ICV (the fuzzer itself seals them)."""

import argparse
import os
import struct


def udp_payloads(name):
    """The payload of every UDP datagram, and of every ESP packet, of a capture of IPv4."""
    with open(name, "rb") as file:
        data = file.read()
    order = "<" if data[:4] == b"\xd4\xc3\xb2\xa1" else ">"
    (link,) = struct.unpack_from(order + "I", data, 20)
    at = 24
    while at + 16 <= len(data):
        (length,) = struct.unpack_from(order + "I", data, at + 8)
        frame = data[at + 16 : at + 16 + length]
        at += 16 + length
        ip = frame[14:] if link == 1 else frame
        if len(ip) < 20 or ip[0] >> 4 != 4:
            continue
        header = (ip[0] & 15) * 4
        yield ip[9], ip[header + 8 :] if ip[9] == 17 else ip[header:]


def ipv4(protocol, payload, flags=0x4000, ident=1, tos=0):
    head = struct.pack("!BBHHHBBH4s4s", 0x45, tos, 20 + len(payload), ident, flags, 64, protocol, 0,
                       bytes([10, 1, 3, 2]), bytes([10, 1, 4, 2]))
    return head[:10] + struct.pack("!H", fold(head)) + head[12:] + payload


def ipv6(protocol, payload):
    return (struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64)
            + bytes(15) + b"\1" + bytes(15) + b"\2" + payload)


def fold(data):
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def with_sum(ip, at):
    """The TCP or UDP checksum of `ip`, at offset `at` of its payload, put right."""
    header, addresses = (20, ip[12:20]) if ip[0] >> 4 == 4 else (40, ip[8:40])
    protocol = ip[9] if header == 20 else ip[6]
    body = ip[header:]
    total = fold(addresses + struct.pack("!II", len(body), protocol) + body) or 0xFFFF
    return ip[: header + at] + struct.pack("!H", total) + ip[header + at + 2 :]


def tcp(seq, payload, flags=0x10, options=b""):
    return struct.pack("!HHIIBBHHH", 5001, 5002, seq, 7, (5 + len(options) // 4) << 4, flags, 512, 0,
                       0) + options + payload


def udp(payload):
    return struct.pack("!HHHH", 5001, 5002, 8 + len(payload), 0) + payload


def receive(data, flags=0, segment=0):
    return struct.pack("!BHH", flags, segment, len(data)) + data


def inner_packets():
    stamps = bytes.fromhex("0101080a0000000100000002")
    yield [ipv4(253, bytes(40)), ipv6(59, b""), ipv4(1, b"\x08\0\xf7\xff" + bytes(40))]
    for wrap in (ipv4, ipv6):
        yield [with_sum(wrap(6, tcp(100 * n, bytes(100), options=stamps)), 16) for n in range(5)]
        yield [with_sum(wrap(6, tcp(100 * n, bytes(100), 0x18 if n == 2 else 0x10)), 16)
               for n in range(4)]
        yield [with_sum(wrap(17, udp(bytes(200 if n < 3 else 50))), 6) for n in range(4)]
        yield [wrap(17, udp(bytes(30))), wrap(6, tcp(1, b"", 2, bytes.fromhex("020405b4")))]
    yield [ipv4(17, udp(bytes(64)), flags=0x2000), ipv4(17, bytes(64), flags=0x0009)]


def inbound_seeds(vectors):
    for name in sorted(os.listdir(vectors)):
        if not name.endswith(".pcap"):
            continue
        for protocol, payload in udp_payloads(os.path.join(vectors, name)):
            yield b"\x00" + receive(payload, 0 if protocol == 17 else 0x10)
    for number, packets in enumerate(inner_packets()):
        for setup in (0x00, 0x81, 0xC2):
            yield bytes([setup]) + b"".join(receive(p, 1) for p in packets)
        yield bytes([number]) + b"".join(receive(p + b"\1\2\2\4", 2) for p in packets)
    yield b"\x80" + receive(bytes(50) + b"\0\x3b", 2) + receive(b"", 4)  # a dummy, twice
    yield b"\x00" + receive(b"\xff") + receive(bytes(4) + b"IKE") + receive(b"abc" * 9, 0, 9)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    makers = {"inbound": inbound_seeds(options.vectors)}
    for target, seeds in makers.items():
        folder = os.path.join(options.out, target)
        os.makedirs(folder, exist_ok=True)
        names = []
        for number, seed in enumerate(seeds):
            names.append(os.path.join(folder, f"{number:03}"))
            with open(names[-1], "wb") as file:
                file.write(seed)
        with open(os.path.join(options.out, f"{target}.list"), "w", encoding="utf-8") as file:
            file.write(",".join(names))
    with open(os.path.join(options.out, "made"), "w", encoding="utf-8"):
        pass


if __name__ == "__main__":
    main()
