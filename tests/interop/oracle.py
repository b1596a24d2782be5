"""A slow reader of ESP with AES-GCM and 32-bit numbers: says of each frame on the wire what must
become of it."""

import collections
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lab.wire import ESP, NATT_PORT, esp_packet, ip_checksum


def handed_on(header, ip, mac, protocol):
    """What the host's own Ethernet, IPv4 and UDP hand on of a frame, or None."""
    to_us = header[:6] == mac or header[0] & 1  # a changed bit may make it a multicast
    if not to_us or header[12:] != b"\x08\x00" or ip[0] >> 4 != 4:
        return None
    length = (ip[0] & 15) * 4
    if length < 20 or ip_checksum(ip[:length]) != 0 or ip[9] != protocol:
        return None
    if protocol == ESP:
        return ip
    # From any port: a NAT may have given it another one. UDP may end before IP does.
    port, size, checksum = struct.unpack_from("!HHH", ip, length + 2)
    if port != NATT_PORT or checksum != 0 or size > len(ip) - length:
        return None
    return ip[: length + size]


class Reader:
    """One inbound SA of AES-GCM without ESN. `key`: with its salt."""

    def __init__(self, spi, keymat, window):
        self.spi = spi
        self.salt = keymat[-4:]
        self.cipher = AESGCM(keymat[:-4])
        self.window = window
        self.top = 0
        self.seen = set()
        self.fates = collections.Counter()

    def read(self, packet):
        """Counts the fate of an EspPacket: "accepted", the name of the drop, or "forged" for what is
        no packet of the peer's, and has a number that is used up: whether the number or the ICV is
        found to be wrong first depends on what else is in the batch."""
        self.fates[self._fate(packet)] += 1

    def _fate(self, packet):
        if packet.spi != self.spi:
            return "no_spi"
        late = packet.seq == 0 or packet.seq + self.window <= self.top
        used = late or packet.seq in self.seen
        try:
            self.cipher.decrypt(self.salt + packet.iv, packet.esp[16:], packet.esp[:8])
        except InvalidTag:
            return "forged" if used else "integrity"
        if used:
            return "late" if late else "duplicate"
        self.seen.add(packet.seq)
        self.top = max(self.top, packet.seq)
        return "accepted"


def fates(frames, mac, protocol, reader):
    """The fates of all frames that reach us."""
    for header, ip in frames:
        if handed := handed_on(header, ip, mac, protocol):
            reader.read(esp_packet(handed))
    return reader.fates
