"""Debian's libreswan as its own service file starts it, but for `espalier exec` before pluto."""

import re

from lab.wait import until

from .host import Host


IKEV1 = "ikev1-policy=accept"  # for `config setup`: 4.10 otherwise refuses ikev2=no


class Libreswan(Host):
    def __init__(self, name, programs, packages=()):
        super().__init__(name, programs, ["libreswan", *packages])
        self.pluto = self.log = None
        self.run("ipsec", "--checknss")

    def make_vti(self, device, local, remote, key, address=None):
        """What pluto's script does for IPv4 and leaves to others for IPv6; it takes a device that is there."""
        words = f"ip link add {device} type vti6 local {local} remote {remote} key {key}"
        self.run(*self.exec(*words.split()))
        if address:
            self.ip(f"address add {address} dev {device}")
        self.ip(f"link set {device} up")

    def host_key(self):
        """A raw RSA key of its own; returns what names it: (ckaid, the public half)."""
        said = self.run("ipsec", "newhostkey", "--keytype", "rsa", "--bits", "2192")
        ckaid = re.search(r"CKAID (\w+)", said)[1]
        shown = self.run("ipsec", "showhostkey", "--left", "--ckaid", ckaid)
        return ckaid, re.search(r"leftrsasigkey=(\S+)", shown)[1]

    def configure(self, text, secrets=""):
        self.write("/etc/ipsec.d/seed.conf", text)
        if secrets:
            self.write("/etc/ipsec.d/seed.secrets", secrets, mode=0o600)

    def start_pluto(self):
        """Returns when pluto takes connections in; those with auto=start are on their way then."""
        checked = self.run("ipsec", "addconn", "--config", "/etc/ipsec.conf", "--checkconfig")
        assert "error" not in checked, checked
        self.pluto, self.log = self.start_logged(
            "pluto", *self.exec("/usr/libexec/ipsec/pluto", "--leak-detective", "--config",
                                "/etc/ipsec.conf", "--nofork", "--stderrlog"))  # fmt: skip
        self.log.wait("listening for IKE messages")
        return self

    def stop_pluto(self):
        self.whack("--shutdown")
        assert self.pluto.wait(20) == 0, f"pluto ended with {self.pluto.returncode}"

    def kill_pluto(self):
        """A crash; then what the service file has for it (ExecStopPost)."""
        self.pluto.kill()
        self.pluto.wait()
        for what in ("policy", "state"):
            self.run(*self.exec("ip", "xfrm", what, "flush"))

    def whack(self, *words, check=True):
        return self.run("ipsec", "whack", *words, check=check)

    def wait_tunnel(self, conn, since=0, timeout=60):
        self.log.wait(rf'"{conn}"(\[\d+\] \S+)? #\d+: .*(established Child SA|IPsec SA established)', since,
                      timeout)  # fmt: skip

    def traffic(self, conn):
        """(bytes in, bytes out) as `ipsec whack --trafficstatus` says."""
        said = self.whack("--trafficstatus")
        found = re.findall(rf'"{conn}"(?:\[\d+\] \S+)?,.* inBytes=(\d+), outBytes=(\d+)', said)
        assert found, said
        return tuple(sum(int(pair[way]) for pair in found) for way in (0, 1))

    def wait_no_states(self):
        listed = []

        def gone():
            listed[:] = self.run(*self.exec("ip", "xfrm", "state")).splitlines()
            return not listed

        try:
            until(gone, "no state left")
        except AssertionError as error:
            raise AssertionError(f"{self.name}: {error}: {listed}") from None
