"""The picture of every test: two sites, each a host behind a gateway.

    PC-A          gateway A                        gateway B          PC-B
    eth0 ─── eth1 │ vti01 ═══════════════════ vti01 │ eth1 ─── eth0
    10.1.3.2      │ eth0 ─────────────────── eth0   │      10.1.4.2
    fd00:10:1:3::2  192.168.1.3      192.168.1.4      fd00:10:1:4::2
                    fd00:192:168:1::3        ::4
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile

from .daemon import Daemon
from .namespace import Namespace, exit_on_signals, require_root

OUTER = {
    "v4": ("192.168.1.3", "192.168.1.4"),
    "v6": ("fd00:192:168:1::3", "fd00:192:168:1::4"),
}
PC_A = {"v4": "10.1.3.2", "v6": "fd00:10:1:3::2"}
PC_B = {"v4": "10.1.4.2", "v6": "fd00:10:1:4::2"}
LEFT_SUBNETS = "10.1.3.0/24,fd00:10:1:3::/64"
RIGHT_SUBNETS = "10.1.4.0/24,fd00:10:1:4::/64"
CONN = "routed-vpn"
ADDRESSES = {
    ("gw-a", "eth0"): ("192.168.1.3/24", "fd00:192:168:1::3/64"),
    ("gw-b", "eth0"): ("192.168.1.4/24", "fd00:192:168:1::4/64"),
    ("gw-a", "eth1"): ("10.1.3.1/24", "fd00:10:1:3::1/64"),
    ("gw-b", "eth1"): ("10.1.4.1/24", "fd00:10:1:4::1/64"),
    ("pc-a", "eth0"): ("10.1.3.2/24", "fd00:10:1:3::2/64"),
    ("pc-b", "eth0"): ("10.1.4.2/24", "fd00:10:1:4::2/64"),
}
GATEWAYS = {"pc-a": ("10.1.3.1", "fd00:10:1:3::1"), "pc-b": ("10.1.4.1", "fd00:10:1:4::1")}


def arguments(description, **extra):
    """The options that every test has. `extra`: further options and their defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--programs", default="build/dev/tools", help="folder of the programs")
    parser.add_argument("--encap", choices=("udp", "esp"), default="udp")
    parser.add_argument("--outer", choices=("v4", "v6"), default="v4")
    parser.add_argument("--io", default="auto")
    parser.add_argument("--crypto", default="auto")
    parser.add_argument("--workers", default="1")
    parser.add_argument("--offloads", default="auto")
    parser.add_argument("--esp", default="aes_gcm256")
    for name, default in extra.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    chosen = parser.parse_args()
    chosen.programs = os.path.abspath(chosen.programs)
    return chosen


class Sites:
    """Everything in the picture but the tunnel; `gateways()` adds that. A context manager."""

    def __init__(self, options):
        require_root()
        exit_on_signals()
        self.options = options
        self.folder = tempfile.mkdtemp(prefix="espalier-test.")
        self.daemons = []
        self.pc_a, self.gw_a, self.gw_b, self.pc_b = map(Namespace, ("pc-a", "gw-a", "gw-b", "pc-b"))
        self.left, self.right = OUTER[options.outer]
        self._cable()

    def _cable(self):
        self.gw_a.join("eth0", self.gw_b, "eth0")
        self.pc_a.join("eth0", self.gw_a, "eth1")
        self.pc_b.join("eth0", self.gw_b, "eth1")
        for box, device in (
            (self.gw_a, "eth0"), (self.gw_b, "eth0"), (self.gw_a, "eth1"), (self.gw_b, "eth1"),
            (self.pc_a, "eth0"), (self.pc_b, "eth0"),
        ):
            self._address(box, device)
        for box in (self.pc_a, self.pc_b):
            self._default_route(box)

    def _address(self, box, device):
        for address in ADDRESSES[box.name, device]:
            box.ip(f"address add {address} dev {device}" + (" nodad" if ":" in address else ""))

    def _default_route(self, box):
        for gateway in GATEWAYS[box.name]:
            box.ip(f"{'-6 ' if ':' in gateway else ''}route add default via {gateway}")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        failed = kind is not None and kind is not SystemExit
        try:
            for daemon in self.daemons:
                daemon.stop() if not failed else daemon.process and daemon.process.kill()
        finally:
            if failed:
                for daemon in self.daemons:
                    print(f"--- log of {daemon.namespace.name}\n{daemon.log}", file=sys.stderr)
            shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def espalier(self, *words, check=True):
        """The command line tool: what it printed, and its status."""
        done = subprocess.run(
            [os.path.join(self.options.programs, "espalier"), *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )
        assert not check or done.returncode == 0, f"espalier {' '.join(words)}: {done.stdout}"
        return done.stdout, done.returncode

    def keygen(self, conn=CONN, out="keys", **changed):
        """Keys, states and configurations in OUT/left and OUT/right."""
        values = {
            "left": self.left,
            "right": self.right,
            "leftsubnet": LEFT_SUBNETS,
            "rightsubnet": RIGHT_SUBNETS,
            "mark": "5/0xffffffff",
            "vti-interface": "vti01",
            "vti-routing": "yes",
            "leftvti": "10.0.1.1/24",
            "rightvti": "10.0.1.2/24",
            "encapsulation": "yes" if self.options.encap == "udp" else "no",
            "esp": self.options.esp,
            **{name.replace("_", "-"): value for name, value in changed.items()},
        }
        words = [word for name, value in values.items() if value for word in (f"--{name}", value)]
        self.espalier("keygen", "--conn", conn, *words, "--out", self.path(out))
        return self.path(out)

    def keygen_all(self, conns, lines=""):
        """Several conns in one configuration of each gateway. `conns`: the values of each by name;
        `lines`: put behind every one of them."""
        for side in ("left", "right"):
            os.makedirs(self.path("keys", side))
        for conn, values in conns.items():
            made = self.keygen(conn=conn, out=f"keys-{conn}", **values)
            for side in ("left", "right"):
                for ending in ("keys", "state"):
                    shutil.copy2(os.path.join(made, side, f"{conn}.{ending}"), self.path("keys", side))
                with open(os.path.join(made, side, "espalier.conf"), encoding="ascii") as file:
                    text = file.read() + lines
                with open(self.path("keys", side, "espalier.conf"), "a", encoding="ascii") as file:
                    file.write(text)
        return self.path("keys")

    def daemon(self, namespace, config, control=None):
        made = Daemon(
            self.options.programs,
            namespace,
            config,
            [
                f"--{name}={getattr(self.options, name)}"
                for name in ("io", "crypto", "workers", "offloads")
            ],
            control,
        )
        self.daemons.append(made)
        return made

    @property
    def mac_of_right(self):
        return self.gw_b.mac("eth0")

    @contextlib.contextmanager
    def withheld(self):
        """What gateway A sends to gateway B inside the block crosses the wire, where a capture sees
        it, and is lost: it carries a hardware address that is nobody's."""
        neighbour = f"neighbour replace {self.right} dev eth0 nud permanent lladdr"
        self.gw_a.ip(f"{neighbour} 02:00:00:00:00:01")
        try:
            yield
        finally:
            self.gw_a.ip(f"{neighbour} {self.mac_of_right}")

    def gateways(self, keys=None):
        """A daemon on each gateway, running, with `keys` or fresh ones."""
        keys = keys or self.keygen()
        self.a = self.daemon(self.gw_a, os.path.join(keys, "left", "espalier.conf")).start()
        self.b = self.daemon(self.gw_b, os.path.join(keys, "right", "espalier.conf")).start()
        return self.a, self.b


def add_options(config, **options):
    """Adds lines to the only conn of a configuration file."""
    with open(config, "a", encoding="utf-8") as file:
        for name, value in options.items():
            file.write(f"{name.replace('_', '-')} = {value}\n")
