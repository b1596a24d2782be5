"""strongSwan's charon in a namespace: as its package has it, behind `espalier exec`, with a /run of its own.

The modules of this folder are flat (`import charon`): `lab` is the package in tests/netns.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "netns"))

from lab.namespace import SKIPPED  # noqa: E402
from lab.wait import until  # noqa: E402

DAEMON = "/usr/sbin/charon-systemd"
PLUGINS = ("random nonce openssl aes sha1 sha2 hmac kdf gcm ccm chapoly curve25519 pem pkcs1 x509 pubkey "
           "kernel-netlink socket-default vici updown")


def require():
    """Ends the test as skipped where strongSwan is missing."""
    if not os.access(DAEMON, os.X_OK) or not shutil.which("swanctl"):
        print("skipped: needs strongSwan (charon-systemd, strongswan-swanctl)")
        sys.exit(SKIPPED)


def write(path, text):
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


class Host:
    """A gateway: espalierd, and commands behind `espalier exec`."""

    def __init__(self, lab, namespace, config=None):
        self.lab, self.namespace = lab, namespace
        self.folder = lab.path(namespace.name)
        os.makedirs(self.folder, exist_ok=True)
        self.daemon = lab.daemon(namespace, config, os.path.join(self.folder, "control.sock")).start()

    @property
    def prefix(self):
        return (os.path.join(self.lab.options.programs, "espalier"), "exec", "--control",
                self.daemon.control, "--")

    def run(self, *words, check=True):
        return self.namespace.run(*self.prefix, *words, check=check)

    def ip(self, words, check=True):
        return self.run("ip", *words.split(), check=check)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)


class Charon:
    """One charon of a Host. `connections`: what swanctl loads; `settings`: lines for charon's own
    section of strongswan.conf."""

    def __init__(self, host, connections, settings="install_routes = no", plugins=PLUGINS):
        self.host = host
        self.vici, self.log = host.path("charon.vici"), host.path("charon.log")
        self.settings, self.connections = host.path("strongswan.conf"), host.path("swanctl.conf")
        write(self.settings, f"""charon {{
  load_modular = no
  load = {plugins}
  {settings}
  plugins {{ vici {{ socket = unix://{self.vici} }} }}
  filelog {{ file {{ path = {self.log}
    default = 1
    knl = 2
    flush_line = yes }} }} }}
swanctl {{ load = random openssl pem pkcs1 x509 }}
""")
        write(self.connections, connections)
        self.process = None
        self.start()

    def start(self):
        for path in (self.vici, self.log):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.process = self.host.namespace.start(
            "unshare", "--mount", "--", "sh", "-c",
            'mount -t tmpfs tmpfs /run && exec env STRONGSWAN_CONF="$@"', "sh",
            self.settings, *self.host.prefix, DAEMON,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: os.path.exists(self.vici), "charon's control socket")
        self.load()

    def load(self, connections=None):
        if connections is not None:
            write(self.connections, connections)
        self.swanctl("--load-all", "--file", self.connections)

    def swanctl(self, *words, check=True):
        return self.host.namespace.run("env", f"STRONGSWAN_CONF={self.settings}", "swanctl", *words,
                                       "--uri", f"unix://{self.vici}", check=check)

    def initiate(self, child, timeout=20):
        return self.swanctl("--initiate", "--child", child, "--timeout", str(timeout))

    def text(self):
        with open(self.log, encoding="utf-8", errors="replace") as file:
            return file.read()

    def mark(self):
        """Where the log is now, for wait_line(since=…)."""
        return len(self.text())

    def wait_line(self, pattern, since=0, timeout=20):
        until(lambda: re.search(pattern, self.text()[since:]), f"'{pattern}' in {self.log}", timeout)

    def children(self):
        """How many CHILD_SAs swanctl lists as installed."""
        return len(re.findall(r", INSTALLED", self.swanctl("--list-sas")))

    def stop(self, number=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(20)


class Tunnels:
    """Closes what was started in it, in the right order, and shows the logs of what failed."""

    def __init__(self):
        self.charons = []

    def add(self, daemon):
        self.charons.append(daemon)
        return daemon

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        failed = kind is not None and kind is not SystemExit
        for daemon in self.charons:
            daemon.stop(signal.SIGKILL if failed else signal.SIGTERM)
        if failed:
            for daemon in self.charons:
                print(f"--- log of charon in {daemon.host.namespace.name}\n{daemon.text()[-20000:]}",
                      file=sys.stderr)
