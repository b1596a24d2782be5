"""Traffic that knows what must come out at the other end."""

import hashlib
import os
import random
import socket
import struct
import threading
import time

from .wire import SO_RCVBUFFORCE, ip_checksum


def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def ping(namespace, address, count=3, size=56, timeout=5):
    """Each of `count` echo requests is answered with its own data. The program of that name gives an
    answer twice the time that another took, which on a busy machine is too little."""
    v6 = ":" in address
    request, reply = (128, 129) if v6 else (8, 0)
    protocol = socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
    with namespace.socket(family(address), socket.SOCK_RAW, protocol) as raw:
        identifier = random.randrange(1 << 16)
        for number in range(count):
            body = struct.pack("!HH", identifier, number) + random.randbytes(size)
            # Over IPv6 the kernel fills the checksum in.
            checksum = 0 if v6 else ip_checksum(bytes((request, 0, 0, 0)) + body + bytes(size % 2))
            raw.sendto(struct.pack("!BBH", request, 0, checksum) + body, (address, 0))
            deadline = time.monotonic() + timeout
            while True:
                raw.settimeout(max(0.001, deadline - time.monotonic()))
                try:
                    seen = raw.recv(1 << 16)
                except TimeoutError:
                    raise AssertionError(
                        f"ping {address} from {namespace.name}: no answer to {number + 1} of {count}"
                    ) from None
                seen = seen if v6 else seen[(seen[0] & 15) * 4 :]
                if seen[0] == reply and seen[4:] == body:
                    break


def _digest_of_stream(connection):
    digest, size = hashlib.sha256(), 0
    while data := connection.recv(1 << 17):
        digest.update(data)
        size += len(data)
    return digest.digest(), size


def tcp(client, server, address, size, timeout=60):
    """`size` random bytes each way over one connection, at the same time: what arrives is what was
    sent, to the last bit."""
    listener = server.socket(family(address), socket.SOCK_STREAM, timeout=timeout)
    listener.bind((address, 0))
    listener.listen()
    outgoing = client.socket(family(address), socket.SOCK_STREAM, timeout=timeout)
    outgoing.connect((address, listener.getsockname()[1]))
    incoming, _ = listener.accept()
    incoming.settimeout(timeout)
    payloads = {outgoing: os.urandom(size), incoming: os.urandom(size)}
    arrived, errors = {}, []

    def send(connection):
        try:
            connection.sendall(payloads[connection])
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            errors.append(f"sending: {error}")

    def receive(connection):
        try:
            arrived[connection] = _digest_of_stream(connection)
        except OSError as error:
            errors.append(f"receiving: {error}")

    threads = [
        threading.Thread(target=work, args=(connection,))
        for work in (send, receive)
        for connection in (outgoing, incoming)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for connection in (outgoing, incoming, listener):
        connection.close()
    assert not errors, errors
    for here, there in ((outgoing, incoming), (incoming, outgoing)):
        wanted = hashlib.sha256(payloads[there]).digest(), size
        assert arrived[here] == wanted, f"TCP to {address}: {arrived[here][1]} of {size} bytes"


class UdpPair:
    """A UDP socket in each of two namespaces."""

    def __init__(self, here, there, here_address, there_address, port=0):
        self.here = here.socket(family(here_address), socket.SOCK_DGRAM)
        self.there = there.socket(family(there_address), socket.SOCK_DGRAM)
        for end, address in ((self.here, here_address), (self.there, there_address)):
            end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
            end.bind((address, port))
        self.here_name = self.here.getsockname()
        self.there_name = self.there.getsockname()

    def close(self):
        self.here.close()
        self.there.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def exchange(self, data):
        """There and back; both ends see exactly `data`."""
        self.here.sendto(data, self.there_name)
        seen, source = self.there.recvfrom(1 << 16)
        assert seen == data, f"{len(data)} bytes sent, {len(seen)} other bytes arrived"
        assert source[0] == self.here_name[0], f"source {source[0]}"
        self.there.sendto(seen, source)
        assert self.here.recv(1 << 16) == data, f"{len(data)} bytes did not come back as sent"

    def drain(self):
        """What waits at the far end, taken."""
        taken = []
        self.there.setblocking(False)
        try:
            while True:
                taken.append(self.there.recv(1 << 16))
        except BlockingIOError:
            return taken
        finally:
            self.there.settimeout(5)


def udp_sizes(here, there, here_address, there_address, sizes):
    """Every size of datagram, there and back, one after the other."""
    pattern = random.Random(4303).randbytes(1 << 16)
    with UdpPair(here, there, here_address, there_address) as pair:
        for size in sizes:
            start = size % 251
            pair.exchange(pattern[start : start + size])


class Exchanges(threading.Thread):
    """Numbered datagrams there and back, one at a time until stopped, of which none may be lost."""

    def __init__(self, here, there, here_address, there_address, pause=0.0):
        super().__init__()
        self.pair = UdpPair(here, there, here_address, there_address)
        self.done, self.pause = threading.Event(), pause
        self.count, self.error = 0, None

    def run(self):
        try:
            while not (self.done.wait(self.pause) if self.pause else self.done.is_set()):
                self.pair.exchange(b"%d" % self.count)
                self.count += 1
        except Exception as error:  # pylint: disable=broad-except
            self.error = error

    def stop(self):
        self.done.set()
        self.join()
        self.pair.close()
        assert self.error is None, f"after {self.count} round trips: {self.error!r}"


SOL_UDP, UDP_SEGMENT, UDP_GRO = 17, 103, 104


class Flood:
    """Numbered datagrams one way, as fast as they are taken, of which none may be lost and none may
    come twice. Sent as super-datagrams; the far end tells through the tunnel how many have come, and
    only so many are on the way that every queue has room: what is missing then was lost by us."""

    SIZE, SEGMENTS, WINDOW = 1300, 40, 320

    def __init__(self, here, there, here_address, there_address):
        self.pair = UdpPair(here, there, here_address, there_address)
        for end in (self.pair.here, self.pair.there):
            end.settimeout(20)
        self.pair.here.setsockopt(SOL_UDP, UDP_SEGMENT, self.SIZE)
        self.pair.there.setsockopt(SOL_UDP, UDP_GRO, 1)
        self.done, self.sent, self.errors = threading.Event(), 0, []
        self.seen, self.came = bytearray(), 0
        self.threads = [threading.Thread(target=self._run, args=(work,))
                        for work in (self._send, self._receive)]

    def start(self):
        for thread in self.threads:
            thread.start()

    def _run(self, work):
        try:
            work()
        except Exception as error:  # pylint: disable=broad-except
            self.errors.append(repr(error))

    def _send(self):
        fill = bytes(self.SIZE - 8)
        acknowledged = 0
        while not self.done.is_set():
            numbers = range(self.sent, self.sent + self.SEGMENTS)
            self.pair.here.sendto(b"".join(n.to_bytes(8, "big") + fill for n in numbers),
                                  self.pair.there_name)
            self.sent += self.SEGMENTS
            while self.sent - acknowledged > self.WINDOW - self.SEGMENTS:
                acknowledged = int.from_bytes(self.pair.here.recv(8), "big")
        while acknowledged < self.sent:
            acknowledged = int.from_bytes(self.pair.here.recv(8), "big")
        self.pair.here.sendto(b"end", self.pair.there_name)

    def _receive(self):
        told = 0
        while True:
            data, source = self.pair.there.recvfrom(1 << 16)
            if data == b"end":
                return
            assert len(data) % self.SIZE == 0, f"{len(data)} bytes"
            for at in range(0, len(data), self.SIZE):
                self._take(int.from_bytes(data[at : at + 8], "big"))
            if self.came - told >= self.SEGMENTS:
                told = self.came
                self.pair.there.sendto(self.came.to_bytes(8, "big"), source)

    def _take(self, number):
        if number >= len(self.seen):
            self.seen.extend(bytes(max(number + 1, 2 * len(self.seen)) - len(self.seen)))
        assert not self.seen[number], f"{number} came twice"
        self.seen[number] = 1
        self.came += 1

    def stop(self):
        self.done.set()
        for thread in self.threads:
            thread.join()
        self.pair.close()
        missing = [n for n in range(self.sent) if n >= len(self.seen) or not self.seen[n]]
        assert not missing, f"{len(missing)} of {self.sent} lost, the first is {missing[0]}; {self.errors}"
        assert not self.errors, self.errors
