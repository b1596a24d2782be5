"""Two network namespaces joined by a veth pair: the same for every system.

    [ A  10.99.0.1 ] under ──── veth, MTU 1500 ──── under [ B  10.99.0.2 ]
         10.88.0.1   ═══════════ the tunnel ═══════════   10.88.0.2
"""

import os

from .process import Failed, Process, run

SIDES = ("a", "b")
UNDER = {"a": "10.99.0.1", "b": "10.99.0.2"}
INNER = {"a": "10.88.0.1", "b": "10.88.0.2"}
MTU = 1500


def other(side):
    return "b" if side == "a" else "a"


class Topology:
    """Namespaces and processes of one system; `stack` (an ExitStack) takes them down again."""

    def __init__(self, system, folder, stack):
        self.folder = folder
        self._stack = stack
        self.names = {side: f"espcmp{os.getpid()}-{system}-{side}" for side in SIDES}
        for side in SIDES:
            stack.callback(self._remove, side)
            run(["ip", "netns", "add", self.names[side]])
            self.ip(side, "link", "set", "lo", "up")
        run(["ip", "-n", self.names["a"], "link", "add", "under", "mtu", str(MTU), "type", "veth",
             "peer", "name", "under", "mtu", str(MTU), "netns", self.names["b"]])
        for side in SIDES:
            self.ip(side, "addr", "add", f"{UNDER[side]}/24", "dev", "under")
            self.ip(side, "link", "set", "under", "up")

    def _remove(self, side):
        try:
            run(["ip", "netns", "del", self.names[side]])
        except Failed:
            pass  # it was never made

    def ip(self, side, *words):
        """Runs ip(8) inside; `words` may begin with options."""
        return run(["ip", "-n", self.names[side], *words])

    def has_address(self, side, address):
        return bool(self.ip(side, "-o", "addr", "show", "to", address).strip())

    def command(self, side, argv):
        return ["ip", "netns", "exec", self.names[side], *argv]

    def spawn(self, side, argv, piped=False, env=None, private_run=False):
        """Starts `argv` in a namespace. With `private_run` it has a /run of its own: `ip netns
        exec` has already given it its own mount namespace, from which nothing propagates."""
        name = os.path.basename(argv[0])
        if private_run:
            argv = ["sh", "-c", 'mount -t tmpfs tmpfs /run && exec "$@"', "sh", *argv]
        process = Process(self.command(side, argv), os.path.join(self.folder, f"{name}-{side}.log"),
                          piped=piped, env=env)
        process.name = f"{name} {side}"
        self._stack.callback(process.stop)
        return process

    def inside(self, process, argv):
        """Runs `argv` in the network and mount namespaces of `process`."""
        return run(["nsenter", "-t", str(process.pid), "-n", "-m", *argv])
