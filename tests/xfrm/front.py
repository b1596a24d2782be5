"""A program of `espalier exec` as espalierd sees it: netlink datagrams on the XFRM socket."""

import contextlib
import os
import socket
import struct

NEWSA, DELSA, GETSA, ALLOCSPI, UPDSA, FLUSHSA, GETAE = 16, 17, 18, 22, 26, 28, 31
GETPOLICY = 21
REQUEST, ACK, DUMP = 1, 4, 0x300
ERROR, DONE = 2, 3
MARK, AEAD, REPLAY_ESN = 21, 18, 23
STATE = struct.Struct("=IHHII6i")  # tools/exec/front.h
GROUPS = {"acquire": 1, "expire": 2, "sa": 3, "policy": 4, "mapping": 8}


def attribute(kind, value):
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def aead(key, name=b"rfc4106(gcm(aes))", bits=None, icv=128):
    bits = len(key) * 8 if bits is None else bits
    return attribute(AEAD, name.ljust(64, b"\0") + struct.pack("=II", bits, icv) + key)


def replay_esn(oseq=0, seq=0, window=128, words=4):
    head = (words, oseq & 0xFFFFFFFF, seq & 0xFFFFFFFF, oseq >> 32, seq >> 32, window)
    return attribute(REPLAY_ESN, struct.pack("=6I", *head) + bytes(4 * words))


def address(text):
    return socket.inet_aton(text).ljust(16, b"\0")


def state_info(source, destination, spi, reqid=7, flags=32 | 128, mode=1):
    """struct xfrm_usersa_info, without limits."""
    never = 2**64 - 1
    return b"".join(
        (
            bytes(40), struct.pack("=HBBB3xiI", 0, 0, 0, 0, 0, 0),
            address(destination), struct.pack(">I", spi), struct.pack("=B3x", 50),
            address(source),
            struct.pack("=8Q", never, never, never, never, 0, 0, 0, 0),
            bytes(32), bytes(12),
            struct.pack("=IIHBBB7x", 0, reqid, socket.AF_INET, mode, 0, flags),
        )
    )  # fmt: skip


def state_id(destination, spi):
    return address(destination) + struct.pack(">I", spi) + struct.pack("=HBx", socket.AF_INET, 50)


class Front:
    """One connection: a NETLINK_XFRM socket of some program."""

    PORT = 4711

    def __init__(self, path, groups=()):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self.seq = 100
        mask = sum(1 << (GROUPS[group] - 1) for group in groups)
        state = STATE.pack(STATE.size, 8, 0, 0, 0, 1, os.getpid(), self.PORT, mask, 3, 0)
        self.socket.send(state)
        answer = self.socket.recv(65536)
        assert answer == state, answer

    def close(self):
        self.socket.close()

    def send(self, kind, payload, flags=REQUEST | ACK):
        self.seq += 1
        header = struct.pack("=IHHII", 16 + len(payload), kind, flags, self.seq, 1)
        self.socket.send(header + payload)

    def receive(self):
        """The messages of one datagram: (type, payload)."""
        rest, found = self.socket.recv(65536), []
        while rest:
            length, kind, _flags, _seq, _port = struct.unpack_from("=IHHII", rest)
            assert 16 <= length <= len(rest) and length % 4 == 0, (length, len(rest))
            found.append((kind, rest[16:length]))
            rest = rest[length:]
        return found

    def ask(self, kind, payload, flags=REQUEST | ACK):
        """The errno of a request, and what came before."""
        self.send(kind, payload, flags)
        before = []
        while True:
            for found, body in self.receive():
                if found == ERROR:
                    return -struct.unpack_from("=i", body)[0], before
                before.append((found, body))
            if before and not flags & ACK:
                return 0, before

    def dump(self, kind, payload=b""):
        self.send(kind, payload, REQUEST | DUMP)
        found = []
        while True:
            for message, body in self.receive():
                if message == DONE:
                    return found
                assert message != ERROR, body
                found.append(body)


@contextlib.contextmanager
def front(path, groups=()):
    connection = Front(path, groups)
    try:
        yield connection
    finally:
        connection.close()
