#!/usr/bin/python3
"""espalierd is killed under a running charon, twice: the tunnel goes on without a new negotiation, nothing
leaves in the clear, and charon, which neither ends nor spins, can rekey and terminate afterwards.

With --nat ESP is in UDP, on the port that espalierd shares with charon.

    one 192.0.2.1 ═══════════════════ 192.0.2.2 two
     └ a host, 10.81.0.2                         └ a host, 10.82.0.2
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "seeds"), os.path.join(HERE, "..", "netns")]

from hosts import picture  # noqa: E402
from hosts.checks import only_esp  # noqa: E402
from lab import traffic  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402
from restart import held  # noqa: E402

CONF = """connections {{
t {{
local_addrs = {local}
remote_addrs = {remote}
version = 2
encap = {encap}
local {{
auth = psk
}}
remote {{
auth = psk
}}
children {{
c {{
local_ts = {own}
remote_ts = {other}
esp_proposals = aes256gcm16
start_action = {start}
}}
}}
}}
}}
secrets {{
ike {{
secret = "not-a-secret"
}}
}}
"""
ONE, TWO = "192.0.2.1", "192.0.2.2"
NET_ONE, NET_TWO = "10.81.0.0/24", "10.82.0.0/24"


def supervisors():
    """Of `espalier exec`, whoever runs in them; this test's folder names them."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                if file.read() == "espalier-exec\n":
                    yield os.stat(f"/proc/{pid}/ns/net").st_ino, pid
        except OSError:
            continue


def kept(host):
    there = os.fstat(host.fd).st_ino
    return any("/memfd:espalier (deleted)" in held(pid)
               for where, pid in supervisors() if where == there)  # fmt: skip


def spis(host):
    return sorted(line.split()[1] for line in host.sas().splitlines() if line.startswith("    in "))


def kill(host):
    host.daemon.kill()
    host.daemon.wait()
    host.processes.remove(host.daemon)


def main():
    options = picture.arguments(__doc__)
    with picture.Picture(options) as lab:
        one, two = lab.strongswan("one"), lab.strongswan("two")
        lab.wire(one, "eth0", f"{ONE}/24", two, "eth0", f"{TWO}/24")
        one.ip(f"route add default via {TWO}")
        two.ip(f"route add default via {ONE}")
        pc_one = lab.network(one, "inside", "10.81.0.1/24")
        pc_two = lab.network(two, "inside", "10.82.0.1/24")
        for host, local, remote, own, other, start in (
            (two, TWO, ONE, NET_TWO, NET_ONE, "none"), (one, ONE, TWO, NET_ONE, NET_TWO, "start"),
        ):  # fmt: skip
            host.start_daemon()
            host.start_swanctl(CONF.format(local=local, remote=remote, own=own, other=other, start=start,
                                            encap="yes" if options.nat else "no"))
        until(lambda: one.sas().count("INSTALLED") == 1, "a CHILD_SA", timeout=20)
        traffic.ping(pc_one, "10.82.0.2")
        until(lambda: kept(one), "it is kept")
        before = spis(one)
        with Capture(two, "eth0") as wire:
            for _ in range(2):
                kill(one)
                pc_one.run("ping", "-c", "3", "-i", "0.1", "-W", "0.1", "10.82.0.2", check=False)
                one.start_daemon()
                until(lambda: " 0% packet loss" in pc_one.run(
                    "ping", "-c", "1", "-W", "0.3", "10.82.0.2", check=False), "packets pass")
                assert spis(one) == before, "negotiated anew"
                traffic.ping(pc_two, "10.81.0.2")
            assert only_esp(wire.packets(), NET_ONE, NET_TWO) > 4
        one.run("swanctl", "--rekey", "--child", "c")
        until(lambda: spis(one) != before and one.sas().count("INSTALLED") == 1, "a rekey", timeout=20)
        traffic.ping(pc_one, "10.82.0.2")
        one.run("swanctl", "--terminate", "--ike", "t")
        until(lambda: "t: #" not in one.sas(), "terminated")
        until(lambda: one.run(*one.exec("ip", "xfrm", "state")).strip() == "", "its states are gone")
        print("ok: killed twice under charon")


if __name__ == "__main__":
    main()
