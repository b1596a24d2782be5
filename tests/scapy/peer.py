"""Scapy in the place of gateway A: it seals for a real gateway B and opens what that sends.

    Scapy ─── eth0 of gateway A ═════════ eth0 │ gateway B: espalierd, vti01 │ eth1 ─── PC-B
"""

import os
import socket
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

from scapy.layers.ipsec import ESP as ScapyEsp, SecurityAssociation, _ESPPlain  # noqa: E402

from lab import sites  # noqa: E402
from lab.traffic import family  # noqa: E402
from lab.keyfile import read_keys  # noqa: E402
from lab.wire import ESP, UDP, Capture, Injector, esp_packet, outer  # noqa: E402

IPV4, IPV6, NO_NEXT = 4, 41, 59
PORT = 5001  # where the inner packets go


class Peer:
    """Both security associations, seen from the other end than `keys` (a Keys of gateway B)."""

    def __init__(self, keys, esn):
        def association(spi, keymat):
            return SecurityAssociation(
                ScapyEsp, spi=spi, crypt_algo="AES-GCM", crypt_key=keymat, esn_en=esn
            )

        self.out = association(keys.spi_in, keys.keymat_in)
        self.into = association(keys.spi_out, keys.keymat_out)
        self.esn = esn
        self.seq = 0

    def seal(self, data, next_header=None, padding=None, seq=None, after=b""):
        """ESP around `data`, with the next number or `seq` (64 bits). Everything that a peer may
        get wrong can be given: the next header, the padding, bytes behind the inner packet."""
        if seq is None:
            self.seq += 1
            seq = self.seq
        if next_header is None:
            next_header = IPV6 if data and data[0] >> 4 == 6 else IPV4
        plain = _ESPPlain(spi=self.out.spi, seq=seq & 0xFFFFFFFF, iv=os.urandom(8))
        plain.data, plain.nh = data + after, next_header
        if padding is None:
            plain = self.out.crypt_algo.pad(plain)
        else:
            plain.padding, plain.padlen = padding, len(padding)
        sealed = self.out.crypt_algo.encrypt(
            self.out, plain, self.out.crypt_key, esn_en=self.esn, esn=seq >> 32
        )
        return bytes(sealed)

    def seal_text(self, text, seq=None):
        """ESP around a whole text: what should be padding and trailer may be anything."""
        plain = _ESPPlain(spi=self.out.spi, seq=0, iv=os.urandom(8))
        if seq is None:
            self.seq += 1
            seq = self.seq
        plain.seq = seq
        plain.data_for_encryption = lambda: text
        sealed = self.out.crypt_algo.encrypt(
            self.out, plain, self.out.crypt_key, esn_en=self.esn, esn=0
        )
        return bytes(sealed)

    def open(self, esp, esn=0):
        """(inner packet, next header). Scapy raises if the ICV is wrong."""
        packet = ScapyEsp(esp)
        self.into.check_spi(packet)
        plain = self.into.crypt_algo.decrypt(
            self.into, packet, self.into.crypt_key, esn_en=self.esn, esn=esn
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
