"""FRR, quagga's successor: the daemons that a `daemons` file switches on, in the foreground."""

import os
import re

FOLDER = "/usr/lib/frr"


class Frr:
    """On a host that has the package."""

    def __init__(self, host):
        self.host = host
        # As the package does when it is installed.
        host.run("sh", "-c", "groupadd -r frrvty && useradd -r -M -U -G frrvty frr && "
                 "install -d -o frr -g frr /run/frr /etc/frr /var/log/quagga")  # fmt: skip

    def configure(self, name, text):
        self.host.write(f"/etc/frr/{name}", text)

    def start(self, daemons):
        """`daemons`: the text of that file, NAME=yes|no a line. zebra comes first in it."""
        for name in re.findall(r"^(\w+)=yes$", daemons, re.M):
            config = f"/etc/frr/{name}.conf"
            self.host.run("sh", "-c", f"touch {config}")
            _, log = self.host.start_logged(
                name, os.path.join(FOLDER, name), "-f", config, "--log", "stdout")  # fmt: skip
            self.host.wait_file(f"/run/frr/{name}.vty", log)

    def show(self, daemon, command):
        return self.host.run("vtysh", "-d", daemon, "-c", command)
