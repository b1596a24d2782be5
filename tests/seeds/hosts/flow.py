"""Echo requests while something else happens, and how many of them were not answered."""

import contextlib
import os
import socket
import struct
import threading
import time

from lab.wire import ip_checksum

PAUSE = 0.005


class Flow:
    """A context manager; `lost` is known at the end."""

    def __init__(self, host, address):
        self.address = address
        self.v6 = ":" in address
        family, protocol = ((socket.AF_INET6, socket.IPPROTO_ICMPV6) if self.v6 else
                            (socket.AF_INET, socket.IPPROTO_ICMP))  # fmt: skip
        self.request, self.reply = (128, 129) if self.v6 else (8, 0)
        self.raw = host.socket(family, socket.SOCK_RAW, protocol, timeout=PAUSE)
        self.identifier = os.getpid() & 0xFFFF
        self.sent, self.answered = 0, set()
        self.running = True
        self.thread = threading.Thread(target=self._run)

    @property
    def lost(self):
        return self.sent - len(self.answered)

    def _run(self):
        while self.running:
            body = struct.pack("!HH", self.identifier, self.sent & 0xFFFF) + bytes(56)
            total = ip_checksum(struct.pack("!BBH", self.request, 0, 0) + body)  # of IPv6: the kernel's
            # A device that is being made anew has no route for a moment: that is a loss like another.
            with contextlib.suppress(OSError):
                self.raw.sendto(struct.pack("!BBH", self.request, 0, total) + body, (self.address, 0))
            self.sent += 1
            self._take(time.monotonic() + PAUSE)

    def _take(self, deadline):
        while (left := deadline - time.monotonic()) > 0:
            self.raw.settimeout(left)
            try:
                seen = self.raw.recv(1 << 12)
            except TimeoutError:
                return
            at = 0 if self.v6 else (seen[0] & 15) * 4
            kind, _, _, identifier, number = struct.unpack_from("!BBHHH", seen, at)
            if kind == self.reply and identifier == self.identifier:
                self.answered.add(number)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.running = False
        self.thread.join()
        deadline = time.monotonic() + 2
        while self.lost and time.monotonic() < deadline:
            self._take(time.monotonic() + PAUSE)
        self.raw.close()
