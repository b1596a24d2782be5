"""The control socket as a program of another language speaks it."""

import json
import os
import socket


class Control:
    """One connection, for several requests."""

    def __init__(self, path, timeout=30):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.waiting = b""

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def line(self):
        """The next line, without its end; None if the other end has closed."""
        while b"\n" not in self.waiting:
            part = self.socket.recv(1 << 16)
            if not part:
                return None
            self.waiting += part
        line, _, self.waiting = self.waiting.partition(b"\n")
        return json.loads(line)

    def send(self, op, **members):
        self.socket.sendall(json.dumps({"version": 1, "op": op, **members}).encode() + b"\n")

    def try_ask(self, op, **members):
        """The reply, whatever it says."""
        self.send(op, **members)
        return self.line()

    def ask(self, op, **members):
        reply = self.try_ask(op, **members)
        assert reply and reply["ok"], f"{op} {members}: {reply}"
        return reply

    def pages(self, op, member):
        after = 0
        while after is not None:
            reply = self.ask(op, after=after)
            yield from reply[member]
            after = reply["next"]


def fresh_key(size=36):
    """Key and salt of aes_gcm256."""
    return os.urandom(size).hex()
