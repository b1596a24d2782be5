"""Debian's strongSwan as its packages start it, but for `espalier exec` before it: `ipsec start`
(starter and charon, ipsec.conf), or charon-systemd and swanctl."""

import os
import re
import sys

from lab.namespace import SKIPPED
from lab.wait import until

from .host import Host

NEEDED = ("/usr/lib/ipsec/starter", "/usr/lib/ipsec/charon", "/usr/sbin/charon-systemd", "/usr/sbin/swanctl")
LOG = """charon {
  filelog { stderr {
    default = 1
    flush_line = yes } } }
"""


class Strongswan(Host):
    def __init__(self, name, programs):
        if missing := [path for path in NEEDED if not os.access(path, os.X_OK)]:
            print(f"skipped: needs {', '.join(missing)} (strongswan-starter, charon-systemd, strongswan-swanctl)")
            sys.exit(SKIPPED)
        super().__init__(name, programs)
        self.charon = self.log = None
        self.write("/etc/strongswan.d/log.conf", LOG)

    def charon_settings(self, text):
        """Lines for the section `charon`, as the document has them: in its own file, uncommented."""
        path = "/etc/strongswan.d/charon.conf"
        own = self.read(path)
        for name, value in re.findall(r"^(\w+) = (\S+)$", text, re.MULTILINE):
            own, found = re.subn(rf"^(\s*)# {name} = .*$", rf"\1{name} = {value}", own, flags=re.MULTILINE)
            assert found == 1, f"{path} has no '# {name} ='"
        self.write(path, own)

    def start_ipsec(self, conf, secrets):
        """`ipsec start`; returns when the connections of ipsec.conf are known."""
        self.write("/etc/ipsec.conf", conf)
        self.write("/etc/ipsec.secrets", secrets, mode=0o600)
        self.charon, self.log = self.start_logged("ipsec", *self.exec("ipsec", "start", "--nofork"))
        self.log.wait("added configuration")
        return self

    def start_swanctl(self, conf):
        """charon-systemd, and what swanctl loads."""
        self.write("/etc/swanctl/conf.d/seed.conf", conf, mode=0o600)
        self.charon, self.log = self.start_logged("charon", *self.exec("/usr/sbin/charon-systemd"))
        until(lambda: not self.run("sh", "-c", "test -S /run/charon.vici || echo no"), "charon's control socket")
        said = self.run("swanctl", "--load-all")
        assert "failed" not in said, said
        return self

    def sas(self):
        return self.run("swanctl", "--list-sas")


