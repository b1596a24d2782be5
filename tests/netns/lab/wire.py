"""What crosses a device, packet by packet: capture and injection by AF_PACKET."""

import select
import socket
import struct
import time

ETH_P_ALL = 0x0003
SOL_PACKET = 263
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
VNET_GSO_NONE = 0
VNET_GSO_UDP_L4 = 5
ARPHRD_ETHER = 1
SO_RCVBUFFORCE = 33
ESP = 50
UDP = 17
NATT_PORT = 4500


class EspPacket:
    """An ESP packet as it was on the wire. `ip` is the whole IP packet, one datagram."""

    def __init__(self, ip):
        self.ip = ip
        self.version = ip[0] >> 4
        header = (ip[0] & 15) * 4 if self.version == 4 else 40
        self.protocol = ip[9] if self.version == 4 else ip[6]
        self.offset = header + (8 if self.protocol == UDP else 0)
        self.spi, self.seq = struct.unpack_from("!II", ip, self.offset)
        self.iv = ip[self.offset + 8 : self.offset + 16]

    @property
    def esp(self):
        return self.ip[self.offset :]

    @property
    def source(self):
        return self.ip[12:16] if self.version == 4 else self.ip[8:24]


def esp_packet(ip):
    """The ESP packet in an IP packet, or None: IKE, keepalives and everything else."""
    version = ip[0] >> 4 if ip else 0
    if version == 4 and len(ip) >= 20:
        header, protocol = (ip[0] & 15) * 4, ip[9]
    elif version == 6 and len(ip) >= 40:
        header, protocol = 40, ip[6]
    else:
        return None
    if protocol == UDP:
        if len(ip) < header + 8 + 16:
            return None
        ports = struct.unpack_from("!HH", ip, header)
        if NATT_PORT not in ports or ip[header + 8 : header + 12] == bytes(4):
            return None
    elif protocol != ESP or len(ip) < header + 16:
        return None
    return EspPacket(ip)


def _segments(ip, gso_type, gso_size):
    """A UDP GSO super-packet as the datagrams that it stands for."""
    if gso_type & 0x7F != VNET_GSO_UDP_L4 or not gso_size or not ip:
        return [ip]
    header = (ip[0] & 15) * 4 + 8 if ip[0] >> 4 == 4 else 48
    payload = ip[header:]
    return [
        ip[:header] + payload[start : start + gso_size]
        for start in range(0, len(payload), gso_size)
    ]


class Capture:
    """Everything that crosses `device`, from now on, as IP packets (super-packets cut up)."""

    def __init__(self, namespace, device, incoming_only=False):
        self.socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        if incoming_only:
            self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.bind((device, ETH_P_ALL))
        self.link_header = 14 if self.socket.getsockname()[3] == ARPHRD_ETHER else 0
        self.socket.setblocking(False)

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def frames(self):
        """What has come so far and was not taken yet: (link header, IP packet)."""
        while True:
            try:
                frame = self.socket.recv(1 << 17)
            except BlockingIOError:
                return
            gso_type, _, gso_size = struct.unpack_from("=BHH", frame, 1)
            end = 10 + self.link_header
            for ip in _segments(frame[end:], gso_type, gso_size):
                yield frame[10:end], ip

    def packets(self):
        """The IP packets that have come so far and were not taken yet."""
        return [ip for _, ip in self.frames() if ip and ip[0] >> 4 in (4, 6)]

    def esp(self):
        return [packet for packet in map(esp_packet, self.packets()) if packet]

    def wait(self, wanted, count=1, timeout=5):
        """Waits until `count` packets made `wanted(ip)` true; returns them. Raises if they do not
        come."""
        found = []
        deadline = time.monotonic() + timeout
        while len(found) < count:
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"captured {len(found)} of {count} packets in {timeout} s")
            select.select([self.socket], [], [], left)
            found += [packet for packet in self.packets() if wanted(packet)]
        return found

    def wait_esp(self, count=1, timeout=5):
        return [EspPacket(ip) for ip in self.wait(esp_packet, count, timeout)]


def ip_checksum(header):
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp_checksum(source, destination, datagram):
    pseudo = source + destination + struct.pack("!II", len(datagram), UDP)
    data = pseudo + datagram
    return ip_checksum(data + bytes(len(data) % 2)) or 0xFFFF


def outer(source, destination, protocol, payload, sport=NATT_PORT, dport=NATT_PORT, tos=0,
          options=b""):
    """An IP packet around an ESP packet (or anything): raw with protocol ESP, in UDP with UDP.
    `options`: of the IPv4 header."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    src, dst = socket.inet_pton(family, source), socket.inet_pton(family, destination)
    if protocol == UDP:
        datagram = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
        # RFC 3948 §2.1 wants 0 over IPv4; over IPv6 it is mandatory (RFC 8200 §8.1).
        if family == socket.AF_INET6:
            total = udp_checksum(src, dst, datagram)
            datagram = datagram[:6] + struct.pack("!H", total) + datagram[8:]
        payload = datagram
    if family == socket.AF_INET6:
        first = 6 << 28 | tos << 20
        return struct.pack("!IHBB", first, len(payload), protocol, 64) + src + dst + payload
    words = 5 + len(options) // 4
    length = words * 4 + len(payload)
    header = struct.pack("!BBHHHBBH", 0x40 | words, tos, length, 0, 0, 64, protocol, 0)
    header += src + dst + options
    header = header[:10] + struct.pack("!H", ip_checksum(header)) + header[12:]
    return header + payload


class Injector:
    """Puts IP packets on the wire of `device` towards the neighbour at the other end of it."""

    def __init__(self, namespace, device, neighbour_mac):
        self.socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self.socket.bind((device, 0))
        self.neighbour = bytes.fromhex(neighbour_mac.replace(":", ""))
        self.own = self.socket.getsockname()[4]

    def close(self):
        self.socket.close()

    def send(self, ip):
        ethertype = b"\x86\xdd" if ip[0] >> 4 == 6 else b"\x08\x00"
        self.socket.send(self.neighbour + self.own + ethertype + ip)
