#!/usr/bin/python3
"""Seeds for the fuzzers: OUT/TARGET/* and OUT/TARGET.list, which names them all in one line.

Captures that others made against their own parsers, and packets that reach every branch behind the
ICV (the fuzzer itself seals them)."""

import argparse
import os
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "interop"))

import xfrm_messages  # noqa: E402


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
    # Packets wait for keys, which come in the middle of a turn; or for too long.
    packet = ipv4(253, bytes(40))
    for keys, more in ((9, 1), (9, 3), (9, 0), (9, 2)):
        yield (b"\x41" + receive(packet, 9, 0) + receive(packet, 1) * 40
               + receive(packet, keys, more) + receive(packet, 1) * 3)
        yield (b"\x00" + receive(packet, 9, 0) + receive(packet, 1) + receive(packet, keys, more)
               + receive(packet, 9, 2) + receive(packet, 9, 2))
    yield b"\x80" + receive(bytes(50) + b"\0\x3b", 2) + receive(b"", 4)  # a dummy, twice
    yield b"\x00" + receive(b"\xff") + receive(bytes(4) + b"IKE") + receive(b"abc" * 9, 0, 9)


def vnet(packet, flags=0, gso_type=0, header=0, size=0, start=0, offset=0):
    return struct.pack("=BBHHHH", flags, gso_type, header, size, start, offset) + packet


def outbound_seeds():
    """Reads of a TUN: single packets, and super-packets of every kind."""

    def reads(*packets):
        return b"".join(struct.pack("!H", len(p)) + p for p in packets)

    for setup in (b"\x00\x00", b"\x41\x00", b"\xc2\x17", b"\x86\x2d", b"\x00\x0b"):
        for packets in inner_packets():
            yield setup + reads(*map(vnet, packets))
        for wrap, header, kind in ((ipv4, 20, 1), (ipv6, 40, 4)):
            segments = wrap(6, tcp(9, bytes(1400), 0x18))
            yield setup + reads(vnet(segments, 1, kind, header + 20, 300, header, 16))
            yield setup + reads(vnet(segments, 1, kind | 0x80, header + 20, 1, header, 16))
            datagrams = wrap(17, udp(bytes(900)))
            yield setup + reads(vnet(datagrams, 1, 5, header + 8, 250, header, 6))
            yield setup + reads(vnet(datagrams, 1, 0, 0, 0, header, 6))


CONFIG = """# two gateways
workers = auto
control = /run/c.sock
[conn a]
left = 192.0.2.1
right = 192.0.2.2
leftsubnet = 10.1.3.0/24,fd00::/64
rightsubnet = 10.1.4.0/24,fd01::/64
mark = 5/0xffffffff
vti-interface = vti01
vti-routing = yes
leftvti = 10.0.1.1/24
mark-outer = auto
keys = a.keys
"""


def config_seeds():
    yield CONFIG.encode()
    for line in CONFIG.splitlines()[4:]:
        yield CONFIG.replace(line + "\n", "").encode()
    for more in ("right = %any", "left = %defaultroute", "encapsulation = no", "esp = aes256-sha1",
                 "type = passthrough", "leftprotoport = 17/1-9", "mtu = 1280", "auto = ignore",
                 "[conn a]", "[conn b]\nleft = ::1\nright = ::2\nkeys = b.keys", "mark-in = 7"):
        yield (CONFIG + more + "\n").encode()


def keys_seeds():
    fields = [("suite", "aes_gcm128"), ("spi-in", "0x00000101"), ("key-in", "0x" + "11" * 16),
              ("salt-in", "0x" + "22" * 4), ("spi-out", "0x00000102"), ("key-out", "0x" + "33" * 16),
              ("salt-out", "0x" + "44" * 4)]
    lines = [f"{name} = {value}\n" for name, value in fields]
    yield "".join(lines).encode()
    for number in range(len(lines)):
        yield "".join(lines[:number] + lines[number + 1 :]).encode()
        yield ("".join(lines) + lines[number]).encode()


def icmp_seeds():
    def message(wrap, protocol, payload, kind, code, mtu):
        quote = wrap(protocol, payload)
        return struct.pack("!BBHI", kind, code, 0, mtu) + quote

    esp = struct.pack("!II", 0x1001, 7) + bytes(16)
    in_udp = struct.pack("!HHHH", 4500, 4500, 8 + len(esp), 0) + esp
    for mtu in (0, 1, 68, 576, 1280, 1399, 1500, 65535):
        for protocol, payload in ((17, in_udp), (50, esp), (6, esp)):
            yield b"\x04\0\0" + message(ipv4, protocol, payload, 3, 4, mtu)
            yield b"\x01\0\0" + message(ipv6, protocol, payload, 2, 0, mtu)
    for packets in inner_packets():
        for packet in packets:
            for flags in (0x02, 0x12, 0x22):
                yield bytes([flags, 5, 0]) + packet


def operations():
    key = '"key":"0x' + "17" * 36 + '"'
    sa = ('"direction":"out","spi":4097,"reqid":7,"source":"192.0.2.1","destination":"192.0.2.2",'
          '"suite":"aes_gcm256",')
    policy = '"op":"policy-add","direction":"out","source":"10.0.0.0/8","destination":"10.1.0.0/16"'
    yield from ('"op":"status"', '"op":"sa-list","limit":2', '"op":"policy-list","after":1',
                '"op":"vti-list"', '"op":"sa-count"', '"op":"subscribe"', '"op":"flush","what":"sa"',
                '"op":"sa-get","spi":4097,"destination":"192.0.2.2"', '"op":"sa-delete","id":1',
                '"op":"nothing"', '"op":[]', '"op":"ike-socket","local":"192.0.2.1","port":4501')
    yield '"op":"sa-add",' + sa + key
    yield ('"op":"sa-add",' + sa + key + ',"encapsulation":"udp","seq":9,"seq_limit":"0xff",'
           '"lifetime":{"bytes":{"soft":1,"hard":18446744073709551615},"seconds":{"hard":'
           '18446744073709551615}},"outer":{"dscp":"no","df":"clear"},"tfc":"mtu","mss_clamp":"path",'
           '"mark":"5/0xff","name":"a"')
    yield '"op":"sa-add",' + sa.replace("out", "in").replace('.1"', '.3"') + key + ',"window":64'
    yield policy + ',"action":"protect","reqid":7,"mark":5,"priority":3,"trap":true'
    yield policy + ',"protocol":"tcp","source_port":"1-9","action":"discard"'
    yield '"op":"vti-add","name":"fuzz0","okey":1,"ikey":2,"local":"192.0.2.1","mtu":1400'
    yield ('"op":"batch","ops":[{"op":"sa-add",' + sa + key + '},{"op":"sa-update","spi":4097,'
           '"destination":"192.0.2.2","peer_port":4501},{' + policy + "}]")
    yield ('"op":"explain","source":"10.0.0.1","destination":"10.1.0.1","protocol":"tcp",'
           '"destination_port":443,"length":1400,"device":"fuzz0"')
    yield '"op":"batch","more":true,"ops":[{' + policy + "}]"


def control_seeds():
    lines = [("{\"version\":1," + body + "}\n").encode() for body in operations()]
    for line in lines:
        yield b"\0" + line
        yield b"\x07" + line + lines[0]
    yield b"\0" + b"".join(lines)
    yield b"\0" + lines[12] + b'{"version":1,"op":"sa-dummy","id":1,"count":3}\n' + lines[1]


def words_seeds():
    sa = "src 192.0.2.1 dst 192.0.2.2 spi 0x1001 suite aes_gcm256 reqid 7 "
    key = "key 0x" + "17" * 36
    for words in ("add " + sa + key,
                  "add " + sa + key + " mark 5 mask 0xff enc espinudp 4500 4500 0.0.0.0",
                  "add " + sa + key + " limit byte-soft 9 limit time-hard 77 flag esn window 64",
                  "add " + sa + key + " dscp 46 df clear hop-limit 9 tfc mtu mss path name a",
                  "update spi 0x1001 dst 192.0.2.2 peer 192.0.2.9 peer-port 99", "list", "del id 3"):
        yield b"\0" + words.encode()
    for words in ("add dir out src 10.0.0.0/8 dst 10.1.0.0/16 mark 5 tmpl proto esp reqid 7",
                  "add dir in src 10.0.0.1-10.0.0.9 proto udp sport 1-9 dport 53 action block",
                  "add dir out src fd00::/8 proto icmpv6 type 128 code 0 action allow", "list"):
        yield b"\1" + words.encode()
    yield b"\2add vti01 mode vti local 192.0.2.1 remote any key 5 address 10.0.1.1/24 mtu 1400"
    yield b"\2del vti01"
    yield (b'\3{"spi":"0x00001001","direction":"out","source":"192.0.2.1","seq":1,"esn":true,"id":1,'
           b'"lifetime":{"bytes":{"soft":0,"hard":9}},"packets":1,"time":1e9,"event":"acquire",'
           b'"flow":{"source":"10.0.0.1","protocol":"tcp"},"drops":{"late":1},"name":"vti01"}')
    yield b'\3{"sas":[{"spi":1}],"conns":[{"name":"a","up":true}],"devices":[{"name":"vti01"}]}'


def attribute(kind, value):
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def new_link(name, kind, data):
    """RTM_NEWLINK, as `ip link add` writes it."""
    info = attribute(1, kind) + attribute(2, b"".join(attribute(k, v) for k, v in data))
    body = bytes(16) + attribute(3, name + b"\0") + attribute(4, struct.pack("=I", 1380))
    body += attribute(18, info)
    return struct.pack("=IHHII", 16 + len(body), 16, 0x605, 1, 0) + body


def xfrm_datagram(*messages):
    """Of (type, payload); each is to replace what is there."""
    return b"".join(struct.pack("=IHHII", 16 + len(payload), kind, 0x105, 1, 0) + payload + bytes(-len(payload) % 4)
                    for kind, payload, *_ in messages)  # fmt: skip


def xfrm_seeds(folder):
    datagrams = []
    with open(os.path.join(folder, "..", "xfrm", "ip_xfrm.txt"), encoding="ascii") as file:
        for line in file:
            if not line.startswith("#"):
                datagrams.append(bytes.fromhex(line))
                yield b"\6" + datagrams[-1]
    for kind, payload, *_ in xfrm_messages.MESSAGES.values():
        yield b"\6" + xfrm_datagram((kind, payload))
    # What moves, with what it needs: nothing is left of the input before.
    m = xfrm_messages
    moved = m.policy_id(1, 8) + m.moves(m.move(m.A, m.B, "192.0.2.1", m.B))
    made = [m.MESSAGES["state out"], m.MESSAGES["policy out"]]
    yield b"\0" + xfrm_datagram(*made, (m.MIGRATE, moved), m.MESSAGES["GETAE"], m.MESSAGES["EXPIRE soft"])
    numbers = m.MESSAGES["NEWAE numbers, out"][1]
    yield b"\0" + xfrm_datagram(*made, (m.NEWAE, numbers), m.MESSAGES["POLEXPIRE hard"])
    # In one datagram, as deleteall has them.
    yield b"\0" + b"".join(d + bytes(-len(d) % 4) for d in datagrams)[:4000]
    ends = [(4, bytes([10, 9, 0, 1])), (5, bytes([10, 9, 0, 2]))]
    keys = [(2, bytes([0, 0, 0, 42])), (3, bytes([0, 0, 0, 42]))]
    yield b"\1" + new_link(b"vti01", b"vti", keys + ends)
    yield b"\1" + new_link(b"vti02", b"vti6", keys + [(4, bytes(15) + b"\1"), (5, bytes(16))])
    yield b"\1" + new_link(b"ipsec0", b"xfrm", [(1, struct.pack("=I", 1)), (2, struct.pack("=I", 7))])
    yield b"\1" + new_link(b"veth1", b"veth", [(1, bytes(16))])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", required=True)
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    makers = {
        "inbound": inbound_seeds(options.vectors),
        "outbound": outbound_seeds(),
        "config": config_seeds(),
        "keys": keys_seeds(),
        "icmp": icmp_seeds(),
        "control": control_seeds(),
        "words": words_seeds(),
        "xfrm": xfrm_seeds(options.vectors),
    }
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
