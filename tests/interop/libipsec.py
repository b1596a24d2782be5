#!/usr/bin/python3
"""strongSwan's own user-space ESP (kernel-libipsec) as gateway B, suite by suite.

    PC-A ─── gateway A │ espalierd ═══ UDP 4500 ═══ charon with kernel-libipsec │ gateway B ─── PC-B

A second charon on gateway A negotiates the CHILD_SA, says in its log at level 4 what it is, and is
killed; espalierd goes on with the same SPIs and keys, given to it by `espalier sa`. libipsec has no ESN, no raw ESP, and IPv4 outside.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

from lab import sites, traffic  # noqa: E402
from lab.namespace import SKIPPED  # noqa: E402
from lab.wait import until  # noqa: E402

LEFT, RIGHT = "10.1.3.0/24", "10.1.4.0/24"
CHARON = "/usr/sbin/charon-systemd"
PLUGINS = ("random nonce openssl aes sha1 sha2 hmac kdf gcm ccm chapoly kernel-libipsec kernel-netlink "
           "socket-default vici")
# Ours, and strongSwan's name of it.
SUITES = {
    "aes_gcm128": "aes128gcm16",
    "aes_gcm256": "aes256gcm16",
    "aes_gcm_12_128": "aes128gcm12",
    "aes_gcm_8_256": "aes256gcm8",
    "chacha20_poly1305": "chacha20poly1305",
    "aes_ccm_16_128": "aes128ccm16",
    "aes128-sha1": "aes128-sha1",
    "aes256-sha1": "aes256-sha1",
    "aes256-sha256": "aes256-sha256",
    "aes128-sha384": "aes128-sha384",
    "aes256-sha512": "aes256-sha512",
}


class Charon:
    """One charon with a /run of its own."""

    def __init__(self, lab, namespace, side, suite):
        self.lab, self.namespace, self.side = lab, namespace, side
        self.vici = lab.path(f"{side}.vici")
        self.log = lab.path(f"{side}.charon.log")
        self.connection = lab.path(f"{side}.swanctl.conf")
        self.settings = lab.path(f"{side}.strongswan.conf")
        for path in (self.vici, self.log):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        self.write(self.settings, f"""charon {{
  load_modular = no
  load = {PLUGINS}
  plugins {{ vici {{ socket = unix://{self.vici} }} }}
  filelog {{ file {{ path = {self.log}
    default = 0
    chd = 4
    flush_line = yes }} }} }}
swanctl {{ load = random openssl }}
""")
        here, there = (lab.left, lab.right) if side == "left" else (lab.right, lab.left)
        mine, theirs = (LEFT, RIGHT) if side == "left" else (RIGHT, LEFT)
        self.write(self.connection, f"""connections {{ site {{
  version = 2
  local_addrs = {here}
  remote_addrs = {there}
  proposals = aes128-sha256-ecp256
  encap = yes
  local {{ auth = psk
    id = {side} }}
  remote {{ auth = psk
    id = {"right" if side == "left" else "left"} }}
  children {{ site {{
    local_ts = {mine}
    remote_ts = {theirs}
    esp_proposals = {suite}
    rekey_time = 0
    mode = tunnel }} }} }} }}
secrets {{ ike-site {{ secret = not-a-secret }} }}
""")
        self.process = namespace.start(
            "unshare", "--mount", "--", "sh", "-c",
            f"mount -t tmpfs tmpfs /run && exec env STRONGSWAN_CONF={self.settings} {CHARON}")
        until(lambda: os.path.exists(self.vici), "charon's control socket")
        self.swanctl("--load-all", "--file", self.connection)

    @staticmethod
    def write(path, text):
        with open(path, "w", encoding="ascii") as file:
            file.write(text)

    def swanctl(self, *words):
        return self.namespace.run("env", f"STRONGSWAN_CONF={self.settings}", "swanctl", *words,
                                  "--uri", f"unix://{self.vici}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def child(self):
        """SPIs and key material of the CHILD_SA, from the initiator's log: {direction: (spi, keymat)}."""
        with open(self.log, encoding="utf-8", errors="replace") as file:
            text = file.read()

        def dump(what):
            found = re.search(rf"{what} => (\d+) bytes @ \S+\n((?:.*\b\d+: (?:[0-9A-F]{{2}} )+.*\n)+)",
                              text)
            if not found:
                return b""
            hexadecimal = "".join(re.findall(r"\d+: ((?:[0-9A-F]{2} )+)", found[2]))
            data = bytes.fromhex(hexadecimal)
            assert len(data) == int(found[1]), what
            return data

        spi = {way: int(re.search(rf"adding {way} ESP SA\n(?:.*\n)*?.*SPI 0x([0-9a-f]+)", text)[1], 16)
               for way in ("inbound", "outbound")}
        keys = {who: dump(f"encryption {who} key") + dump(f"integrity {who} key")
                for who in ("initiator", "responder")}
        return {"in": (spi["inbound"], keys["responder"]), "out": (spi["outbound"], keys["initiator"])}


def take_over(lab, suite, child):
    """espalierd in the place of charon A, keyed by the command line."""
    config = lab.path("empty.conf")
    Charon.write(config, "")
    daemon = lab.daemon(lab.gw_a, config).start()
    daemon.wait_line("engine")  # the line that says that it runs

    def espalier(*words, key=""):
        done = subprocess.run([os.path.join(lab.options.programs, "espalier"), *words, "--control",
                               daemon.control], input=key, capture_output=True, text=True,
                              timeout=30, check=False)
        assert done.returncode == 0, (words, done.stderr)

    espalier("vti", "add", "vti01", "local", lab.left, "remote", lab.right, "key", "5")
    espalier("policy", "add", "dir", "out", "src", LEFT, "dst", RIGHT, "mark", "5", "reqid", "1")
    espalier("policy", "add", "dir", "in", "src", RIGHT, "dst", LEFT, "mark", "5", "reqid", "1")
    for way, (spi, keymat) in child.items():
        ends = (lab.left, lab.right) if way == "out" else (lab.right, lab.left)
        espalier("sa", "add", "src", ends[0], "dst", ends[1], "dir", way, "spi", f"{spi:#x}",
                 "enc", "udp", "4500", "4500", "suite", suite, "key", "-", "reqid", "1", "esn", "no",
                 key=keymat.hex())
    # libipsec's device has an MTU of 1400 and tells nobody.
    lab.gw_a.ip("link set vti01 mtu 1400")
    lab.gw_a.ip(f"route add {RIGHT} dev vti01")
    return daemon


def one(lab, ours, theirs):
    right = Charon(lab, lab.gw_b, "right", theirs)
    left = Charon(lab, lab.gw_a, "left", theirs)
    left.swanctl("--initiate", "--child", "site", "--timeout", "10")
    left.kill()
    daemon = take_over(lab, ours, left.child())
    traffic.ping(lab.pc_a, sites.PC_B["v4"], size=1200)
    traffic.udp_sizes(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"],
                      [*range(1, 34), 255, 1000, 1372])
    traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 200_001)
    lost = {name: count for name, count in daemon.drops().items() if count}
    assert not lost, lost
    daemon.stop()
    right.kill()


def main():
    options = sites.arguments(__doc__)
    if not os.access(CHARON, os.X_OK) or not shutil.which("swanctl"):
        print("skipped: needs strongSwan (charon-systemd, strongswan-swanctl, libcharon-extra-plugins)")
        sys.exit(SKIPPED)
    with sites.Sites(options) as lab:
        for ours, theirs in SUITES.items():
            one(lab, ours, theirs)
            print(f"ok: {ours}", flush=True)


if __name__ == "__main__":
    main()
