"""Scapy in the place of gateway A: it seals for a real gateway B and opens what that sends.

    Scapy ─── eth0 of gateway A ═════════ eth0 │ gateway B: espalierd, vti01 │ eth1 ─── PC-B
"""

import os
import socket
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

from scapy.layers.ipsec import ESP as ScapyEsp, SecurityAssociation, _ESPPlain  # noqa: E402

from lab import sites  # noqa: E402
from lab.traffic import family  # noqa: E402
from lab.keyfile import read_keys  # noqa: E402
from lab.wire import ESP, UDP, Capture, Injector, esp_packet, outer  # noqa: E402

IPV4, IPV6, NO_NEXT = 4, 41, 59
PORT = 5001  # where the inner packets go


AUTH = {
    "sha1": "HMAC-SHA1-96",
    "sha256": "SHA2-256-128",
    "sha384": "SHA2-384-192",
    "sha512": "SHA2-512-256",
}


def algorithms(suite):
    """Scapy's cipher, its ICV (None: the cipher's own length), and its integrity algorithm."""
    cipher, _, digest = suite.partition("-")
    if suite.startswith("aes_ccm_"):
        return "AES-CCM", int(suite.split("_")[2]), "NULL"
    if suite == "chacha20_poly1305":
        return "CHACHA20-POLY1305", None, "NULL"
    if digest:
        return ("NULL" if cipher == "null" else "AES-CBC"), None, AUTH[digest]
    return "AES-GCM", None, "NULL"


class Peer:
    """Both security associations, seen from the other end than `keys` (a Keys of gateway B)."""

    def __init__(self, keys, esn):
        crypt, self.icv, auth = algorithms(keys.suite)

        def association(spi, keymat, auth_key):
            return SecurityAssociation(
                ScapyEsp, spi=spi, crypt_algo=crypt, crypt_key=keymat or None,
                auth_algo=auth, auth_key=auth_key or None, esn_en=esn,
            )

        self.out = association(keys.spi_in, keys.keymat_in, keys.auth_in)
        self.into = association(keys.spi_out, keys.keymat_out, keys.auth_out)
        self.esn = esn
        self.seq = 0

    def icv_of(self, association, esp, esn):
        """HMAC over the packet. Scapy's own sign() leaves the high half of an ESN out of ESP's
        (RFC 4303 §2.2.1 wants it behind the packet), so its MAC is taken and fed here."""
        if not association.auth_algo.mac:
            return b""
        mac = association.auth_algo.new_mac(association.auth_key)
        mac.update(esp + (struct.pack("!L", esn) if self.esn else b""))
        return mac.finalize()[: association.auth_algo.icv_size]

    def encrypt(self, plain, esn):
        sealed = bytes(
            self.out.crypt_algo.encrypt(
                self.out, plain, self.out.crypt_key, icv_size=self.icv, esn_en=self.esn, esn=esn
            )
        )
        return sealed + self.icv_of(self.out, sealed, esn)

    def new_iv(self):
        return os.urandom(self.out.crypt_algo.iv_size)

    def seal(self, data, next_header=None, padding=None, seq=None, after=b""):
        """ESP around `data`, with the next number or `seq` (64 bits). Everything that a peer may
        get wrong can be given: the next header, the padding, bytes behind the inner packet."""
        if seq is None:
            self.seq += 1
            seq = self.seq
        if next_header is None:
            next_header = IPV6 if data and data[0] >> 4 == 6 else IPV4
        plain = _ESPPlain(spi=self.out.spi, seq=seq & 0xFFFFFFFF, iv=self.new_iv())
        plain.data, plain.nh = data + after, next_header
        if padding is None:
            plain = self.out.crypt_algo.pad(plain)
        else:
            plain.padding, plain.padlen = padding, len(padding)
        return self.encrypt(plain, seq >> 32)

    def seal_text(self, text, seq=None):
        """ESP around a whole text: what should be padding and trailer may be anything."""
        plain = _ESPPlain(spi=self.out.spi, seq=0, iv=self.new_iv())
        if seq is None:
            self.seq += 1
            seq = self.seq
        plain.seq = seq
        plain.data_for_encryption = lambda: text
        return self.encrypt(plain, 0)

    def open(self, esp, esn=0):
        """(inner packet, next header). Raises if the ICV is wrong."""
        length = len(esp) - len(self.icv_of(self.into, b"", 0))
        assert self.icv_of(self.into, esp[:length], esn) == esp[length:], "Scapy finds a wrong ICV"
        packet = ScapyEsp(esp[:length])
        self.into.check_spi(packet)
        plain = self.into.crypt_algo.decrypt(
            self.into, packet, self.into.crypt_key, icv_size=self.icv, esn_en=self.esn, esn=esn
        )
        return bytes(plain.data), plain.nh


class Bench(sites.Sites):
    """A gateway B with a Peer on the other side of its wire. `lines`: more of its conn."""

    def __init__(self, options, **lines):
        super().__init__(options)
        esn = lines.get("esn", "yes") == "yes"
        keys = self.keygen()
        config = os.path.join(keys, "right", "espalier.conf")
        sites.add_options(config, **lines)
        self.keys = read_keys(os.path.join(keys, "right", f"{sites.CONN}.keys"))
        self.peer = Peer(self.keys, esn)
        self.b = self.daemon(self.gw_b, config).start()
        self.b.take_baseline()
        self.protocol = UDP if options.encap == "udp" else ESP
        # Somebody listens at gateway A and at PC-B, or their kernels would answer that nobody does.
        self.sink = self._sink()
        self.listener = self.pc_b.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.listener.bind(("::", PORT))
        self.injector = Injector(self.gw_a, "eth0", self.gw_b.mac("eth0"))
        self.inside = Capture(self.gw_b, "vti01", incoming_only=True)
        self.wire = Capture(self.gw_b, "eth0")

    def _sink(self):
        if self.protocol == UDP:
            sink = self.gw_a.socket(family(self.left), socket.SOCK_DGRAM)
            sink.bind((self.left, 4500))
            return sink
        return self.gw_a.socket(family(self.left), socket.SOCK_RAW, ESP)

    def send(self, esp, **outer_fields):
        protocol = outer_fields.pop("protocol", self.protocol)
        self.injector.send(outer(self.left, self.right, protocol, esp, **outer_fields))

    def arrives(self, inner):
        """The next packet out of vti01 is `inner`, to the last bit."""
        (seen,) = self.inside.wait(lambda _: True)
        assert seen == inner, f"out of vti01:\n{seen.hex()}\ninstead of\n{inner.hex()}"

    def next_sealed(self):
        """The next packet that gateway B sends."""

        def sealed(ip):
            packet = esp_packet(ip)
            return packet is not None and packet.spi == self.keys.spi_out

        (ip,) = self.wire.wait(sealed)
        return esp_packet(ip)

    def nothing_arrives(self, inner, **drops):
        """What was sent before is counted as `drops`; `inner`, sent now, is the next to come out."""
        self.b.wait_drops(**drops)
        self.b.take_baseline()
        self.send(self.peer.seal(inner))
        self.arrives(inner)
