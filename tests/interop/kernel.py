"""A Linux kernel in the place of gateway B, with its own ESP, and the words of `ip xfrm` for it.

    PC-A ─── gateway A │ espalierd, vti01 ═══ eth0 │ Linux 6.1 (User-Mode Linux), XFRM │ eth1 ─── PC-B
                                                    vec0                        vec1
"""

import contextlib
import hashlib
import os
import re
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

from lab import sites, traffic  # noqa: E402
from lab.keyfile import read_keys  # noqa: E402
from lab.uml import Uml, require_uml  # noqa: E402
from lab.wait import until  # noqa: E402

from kernel_suites import SUITE  # noqa: E402

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


def set_numbers(state, next_out, received):
    """Moves the sequence numbers of keys that were never used."""
    with open(state, encoding="ascii") as file:
        text = file.read()
    text = text[: text.index("next ")] + f"next {next_out}\nreceived {received}\n"
    with open(state, "w", encoding="ascii") as file:
        file.write(f"{text}check {hashlib.sha256(text.encode()).hexdigest()}\n")


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

    @property
    def mac_of_right(self):
        return self.kernel.ip("link show vec0").split("link/ether ")[1].split()[0]

    def configure(self, esp, lines=None, next_out=1, received=0, **changed):
        """Fresh keys and our configuration, with `lines` added: a dict of options. `next_out` and
        `received`: where the sequence numbers are."""
        self.number += 1
        made = self.keygen(out=f"keys{self.number}", esp=esp, **changed)
        config = os.path.join(made, "left", "espalier.conf")
        sites.add_options(config, **lines or {})
        self.keys = read_keys(os.path.join(made, "right", f"{sites.CONN}.keys"))
        set_numbers(os.path.join(made, "left", f"{sites.CONN}.state"), next_out, received)
        return config

    def states(self, suite, esn, more="", more_in="", more_out="", window=WINDOW):
        """Both of the kernel's SAs, in the words of `ip`."""
        flags = "flag af-unspec" + (" flag esn" if esn else "")
        encap = "encap espinudp 4500 4500 0.0.0.0" if self.options.encap == "udp" else ""
        for source, destination, spi, direction, own in (
            (self.left, self.right, self.keys.spi_in, "in", more_in),
            (self.right, self.left, self.keys.spi_out, "out", more_out),
        ):
            yield (
                f"xfrm state add src {source} dst {destination} proto esp spi {spi:#x} reqid {REQID}"
                f" mode tunnel replay-window {window} {flags} {more} {own}"
                f" {suite.words(self.keys, direction)} {encap}"
            )

    def policies(self, left=sites.LEFT_SUBNETS, right=sites.RIGHT_SUBNETS, mark_in="", mark_out=""):
        for here in right.split(","):
            for there in left.split(","):
                if (":" in here) != (":" in there):
                    continue
                tunnel = f"proto esp reqid {REQID} mode tunnel"
                yield (
                    f"xfrm policy add src {here} dst {there} dir out {mark_out}"
                    f" tmpl src {self.right} dst {self.left} {tunnel}"
                )
                for direction in ("in", "fwd"):
                    yield (
                        f"xfrm policy add src {there} dst {here} dir {direction} {mark_in}"
                        f" tmpl src {self.left} dst {self.right} {tunnel}"
                    )

    def routes(self, device="vec0"):
        """To the networks behind gateway A. XFRM takes what its policies want on the way."""
        for subnet in sites.LEFT_SUBNETS.split(","):
            yield f"route replace {subnet} dev {device}"

    @contextlib.contextmanager
    def tunnel(self, esp="aes_gcm256", esn=True, lines=None, kernel=None, states=None, **ours):
        """A tunnel between espalierd and the kernel's policies, up inside the block. `kernel`: what
        to set up there in the place of policies and routes; `states`: arguments of states()."""
        config = self.configure(esp, {"esn": "yes" if esn else "no", **(lines or {})}, **ours)
        setup = kernel if kernel is not None else [*self.policies(), *self.routes()]
        self.kernel.batch([*self.states(SUITE[esp], esn, **(states or {})), *setup])
        self.errors_before = self.xfrm_errors()
        self.a = self.daemon(self.gw_a, config).start()
        self.a.take_baseline()
        yield
        self.a.stop()
        self.kernel.shell("ip xfrm state flush; ip xfrm policy flush")

    def all_traffic(self):
        """Everything between the two hosts, there and back. Every padding length of a 16-byte block,
        and every size up to the largest that our device takes."""
        mtu = self.gw_a.mtu("vti01")
        for family, headers in (("v4", 28), ("v6", 48)):
            here, there = sites.PC_A[family], sites.PC_B[family]
            largest = mtu - headers
            sizes = [*range(1, 34), 511, 512, 1000, *range(largest - 16, largest + 1)]
            traffic.udp_sizes(self.pc_a, self.pc_b, here, there, sizes)
            traffic.ping(self.pc_b, here, size=1200)
            traffic.tcp(self.pc_a, self.pc_b, there, 100_001)

    def both_agree(self, padded=False):
        """Nothing was dropped, and the two ends have counted the same packets and inner bytes.
        `padded`: with TFC padding the kernel counts it too."""
        def counts():
            ours = {way: self.a.sa(way) for way in ("in", "out")}
            theirs = self.sa_counts()
            return (
                (ours["out"]["packets"], padded or ours["out"]["bytes"], ours["in"]["packets"]),
                (theirs["in"]["packets"], padded or theirs["in"]["bytes"], theirs["out"]["packets"]),
            )

        until(lambda: len(set(counts())) == 1, f"{counts()}")
        received = self.sa_counts()["in"]
        assert (received["failed"], received["replay"], received["late"]) == (0, 0, 0), received
        assert self.xfrm_errors() == self.errors_before, (self.errors_before, self.xfrm_errors())
        assert not self.a.grown(), self.a.grown()

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
