"""Network namespaces without a name: they live as long as a descriptor of this process, so that
nothing is left behind however the test ends."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys

from .wait import until

CLONE_NEWNET = 0x40000000
SKIPPED = 77  # CTest's SKIP_RETURN_CODE

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name, *arguments):
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def require_root():
    """Ends the test as skipped, with the reason, where it cannot run."""
    reason = None
    if os.geteuid() != 0:
        reason = "needs root to make network namespaces"
    elif not os.path.exists("/dev/net/tun"):
        reason = "needs /dev/net/tun"
    if reason:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)


class Namespace:
    """One box of the picture. Every socket and program of it is made through this object."""

    def __init__(self, name):
        self.name = name
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            _call("unshare", CLONE_NEWNET)
            self.fd = os.open("/proc/self/ns/net", os.O_RDONLY)
            _call("setns", home, CLONE_NEWNET)
        finally:
            os.close(home)
        self.ip("link set lo up")
        # Sites forward, and nothing here waits for duplicate address detection. No router
        # solicitations or multicast reports: what a capture shows is what the test caused.
        for name, value in {
            "ipv4/ip_forward": 1,
            "ipv6/conf/all/forwarding": 1,
            "ipv4/conf/default/rp_filter": 0,
            "ipv6/conf/default/accept_dad": 0,
            "ipv6/conf/default/router_solicitations": 0,
        }.items():
            self.sysctl(f"net/{name}", value)

    @property
    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self):
        os.close(self.fd)

    @contextlib.contextmanager
    def entered(self):
        """The calling thread is inside for the length of the block."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _call("setns", self.fd, CLONE_NEWNET)
            yield
        finally:
            _call("setns", home, CLONE_NEWNET)
            os.close(home)

    def socket(self, *arguments, timeout=5):
        with self.entered():
            made = socket.socket(*arguments)
        made.settimeout(timeout)
        return made

    def sysctl(self, name, value):
        with self.entered(), open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
            file.write(str(value))

    def command(self, *words):
        # The child dies with this process, also when that is killed.
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.path}", "--", *words]

    def run(self, *words, check=True, timeout=60):
        """Runs to the end; returns what it printed. Raises with the output if it failed."""
        done = subprocess.run(
            self.command(*words),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{self.name}: {' '.join(words)}: {done.stdout.strip()}")
        return done.stdout

    def start(self, *words, **options):
        return subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL, **options)

    def ip(self, words, check=True):
        return self.run("ip", *words.split(), check=check)

    def join(self, device, other, other_device, mtu=1500):
        """A veth pair with an end in each namespace."""
        self.ip(
            f"link add {device} mtu {mtu} type veth"
            f" peer name {other_device} mtu {mtu} netns {other.path}"
        )
        self.ip(f"link set {device} up")
        other.ip(f"link set {other_device} up")

    def mac(self, device):
        return self.ip(f"link show {device}").split("link/ether ")[1].split()[0]

    def mtu(self, device):
        return int(self.ip(f"link show {device}").split(" mtu ")[1].split()[0])

    def wait_carrier(self, device):
        """Waits until what is routed to `device` gets there: its carrier is up at once, its queue
        when the kernel comes to it."""
        until(lambda: "NO-CARRIER" not in self.ip(f"link show {device}"), f"a carrier of {device}")

    def links(self):
        """The names of the devices inside."""
        with self.entered():
            return {name for _, name in socket.if_nameindex()}


def exit_on_signals():
    """SIGTERM unwinds the stack as Ctrl-C does, so that daemons are stopped."""

    def stop(number, _frame):
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)
