"""A Linux kernel in the place of gateway B, with its own ESP, and the words of `ip xfrm` for it.

    PC-A ─── gateway A │ espalierd, vti01 ═══ eth0 │ Linux 6.1 (User-Mode Linux), XFRM │ eth1 ─── PC-B
                                                    vec0                        vec1
"""

import dataclasses
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

from lab import sites  # noqa: E402
from lab.keyfile import read_keys  # noqa: E402
from lab.uml import Uml, require_uml  # noqa: E402

REQID = 7
WINDOW = 1024
# A program of the peer that owns the port as an IKE daemon would: without it the kernel does not look
# for ESP in UDP.
UDP_ENCAP_OWNER = """
import os, socket
for family in (socket.AF_INET, socket.AF_INET6):
    owner = socket.socket(family, socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        owner.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    owner.setsockopt(socket.IPPROTO_UDP, 100, 2)  # UDP_ENCAP: UDP_ENCAP_ESPINUDP
    owner.bind(("", 4500))
    os.set_inheritable(owner.detach(), True)
if os.fork() == 0:
    for descriptor in range(3):
        os.close(descriptor)
    os.execvp("sleep", ["sleep", "infinity"])
"""


@dataclasses.dataclass(frozen=True)
class Suite:
    """A suite by our name and the kernel's. `icv`: in bits."""

    esp: str
    aead: str
    icv: int

    def words(self, keys, direction):
        keymat = getattr(keys, f"keymat_{direction}").hex()
        return f"aead '{self.aead}' 0x{keymat} {self.icv}"


SUITES = [Suite(f"aes_gcm{bits}", "rfc4106(gcm(aes))", 128) for bits in (128, 192, 256)]


def suite(name):
    (found,) = [suite for suite in SUITES if suite.esp == name]
    return found


class KernelSites(sites.Sites):
    """The picture above. Network, kernel and hosts stay; `tunnel()` sets up one tunnel after the other."""

    def __init__(self, options):
        require_uml()
        self.kernel = None
        super().__init__(options)

    def _cable(self):
        self.pc_a.join("eth0", self.gw_a, "eth1")
        self.kernel = Uml(self.gw_b, self.folder, [(self.gw_a, "eth0"), (self.pc_b, "eth0")])
        for box, device in (
            (self.gw_a, "eth0"), (self.gw_a, "eth1"), (self.pc_a, "eth0"), (self.pc_b, "eth0"),
        ):
            self._address(box, device)
        self.kernel.batch(
            f"address add {address} dev {device} nodad"
            for device, of in (("vec0", "eth0"), ("vec1", "eth1"))
            for address in sites.ADDRESSES["gw-b", of]
        )
        for box in (self.pc_a, self.pc_b):
            self._default_route(box)
        if self.options.encap == "udp":
            self.kernel.shell(f"python3 -I -S -c '{UDP_ENCAP_OWNER}'")
        self.number = 0

    def __exit__(self, kind, *rest):
        try:
            if kind not in (None, SystemExit) and self.kernel:
                print(f"--- kernel\n{self.kernel.messages()}", file=sys.stderr)
                if self.kernel.process.poll() is None:
                    print(self.kernel.shell("ip -s xfrm state; cat /proc/net/xfrm_stat"),
                          file=sys.stderr)
        finally:
            if self.kernel:
                self.kernel.close()
            super().__exit__(kind, *rest)

    def configure(self, esp="aes_gcm256", lines=None, **changed):
        """Fresh keys and our configuration, with `lines` added: a dict of options."""
        self.number += 1
        made = self.keygen(out=f"keys{self.number}", esp=esp, **changed)
        config = os.path.join(made, "left", "espalier.conf")
        sites.add_options(config, **lines or {})
        self.keys = read_keys(os.path.join(made, "right", f"{sites.CONN}.keys"))
        return config

    def states(self, chosen, esn, more_in="", more_out="", window=WINDOW, mark=""):
        """Both of the kernel's SAs, in the words of `ip`."""
        flags = "flag af-unspec" + (" esn" if esn else "")
        encap = "encap espinudp 4500 4500 0.0.0.0" if self.options.encap == "udp" else ""
        common = f"mode tunnel replay-window {window} {flags} {mark}"
        for source, destination, spi, direction, more in (
            (self.left, self.right, self.keys.spi_in, "in", more_in),
            (self.right, self.left, self.keys.spi_out, "out", more_out),
        ):
            yield (
                f"xfrm state add src {source} dst {destination} proto esp spi {spi:#x} reqid {REQID}"
                f" {common} {more} {chosen.words(self.keys, direction)} {encap}"
            )

    def policies(self, left=sites.LEFT_SUBNETS, right=sites.RIGHT_SUBNETS, mark="",
                 directions=("out", "in", "fwd")):
        for here in right.split(","):
            for there in left.split(","):
                if (":" in here) != (":" in there):
                    continue
                for direction in directions:
                    ends = (here, there) if direction == "out" else (there, here)
                    tunnel = (self.right, self.left)
                    tunnel = tunnel if direction == "out" else tunnel[::-1]
                    yield (
                        f"xfrm policy add src {ends[0]} dst {ends[1]} dir {direction} {mark}"
                        f" tmpl src {tunnel[0]} dst {tunnel[1]} proto esp reqid {REQID} mode tunnel"
                    )

    def routes(self, device=None):
        """To the hosts behind gateway A: into a device of the kernel's, or past its policies."""
        for subnet in sites.LEFT_SUBNETS.split(","):
            via = self.left if (":" in subnet) == (":" in self.left) else None
            target = f"dev {device}" if device else f"via {via}" if via else "dev vec0"
            yield f"route replace {subnet} {target}"

    def forget(self):
        self.kernel.shell("ip xfrm state flush; ip xfrm policy flush")

    def xfrm_errors(self):
        """The kernel's counters of what went wrong, those at zero left out."""
        lines = self.kernel.shell("cat /proc/net/xfrm_stat").splitlines()
        return {name: int(count) for name, count in map(str.split, lines) if count != "0"}

    def sa_counts(self):
        """Packets and bytes of the kernel's SAs, by direction, seen from it."""
        text = self.kernel.shell("ip -s xfrm state")
        found = {}
        for part in re.split(r"^(?=src )", text, flags=re.M)[1:]:
            spi = int(re.search(r"spi 0x([0-9a-f]+)", part)[1], 16)
            current = re.search(r"lifetime current:\s+(\d+)\(bytes\), (\d+)\(packets\)", part)
            stats = re.search(r"replay-window (\d+) replay (\d+) failed (\d+)", part)
            direction = {self.keys.spi_in: "in", self.keys.spi_out: "out"}[spi]
            found[direction] = {
                "packets": int(current[2]), "bytes": int(current[1]),
                "late": int(stats[1]), "replay": int(stats[2]), "failed": int(stats[3]),
            }
        return found
