#!/usr/bin/python3
"""espalierd is killed and starts again under commands that run in `espalier exec`: what `ip xfrm` and
`ip link` made comes back, no sequence number is used twice, nothing leaves in the clear, nobody spins.

    gateway A ── a0 ═══════════ b0 ── gateway B
       └ vti01 10.7.0.1     10.7.0.2 vti01 ┘
    10.8.0.0/16 → vti01
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

from ip_xfrm import A, B, Gateway, key, tunnel  # noqa: E402
from lab.namespace import exit_on_signals, require_root  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402

LIVES = 8
MEMORY = "/memfd:espalier (deleted)"


def supervisors(gateway):
    """The processes that serve `espalier exec` there."""
    there = os.fstat(gateway.box.fd).st_ino
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                if file.read() == "espalier-exec\n" and os.stat(f"/proc/{pid}/ns/net").st_ino == there:
                    yield pid
        except OSError:
            continue


def held(pid):
    """What it keeps open."""
    out = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        try:
            out.append(os.readlink(f"/proc/{pid}/fd/{number}"))
        except OSError:
            continue
    return out


def all_hold(gateway):
    return all(MEMORY in held(pid) and "/dev/net/tun" in held(pid) for pid in supervisors(gateway))


def seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def without_counts(text):
    """`ip xfrm state`, but for what moves with the traffic."""
    return re.sub(r"(oseq|seq) 0x\w+|bitmap 0x\w+|\tlastused .*\n|\t +(?:[0-9a-f]{8} ?)+\n", "", text)


class Load:
    """Pings from A all the time, whether they are answered or not."""

    def __init__(self, gateway):
        self.process = gateway.box.start(
            "ping", "-i", "0.005", "-W", "1", "10.7.0.2", stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def stop(self):
        self.process.terminate()
        self.process.wait()


def kill(gateway):
    gateway.daemon.kill()
    gateway.daemon.wait()


def answered(gateway):
    return " 0% packet loss" in gateway.box.run(
        "ping", "-c", "1", "-W", "0.2", "10.7.0.2", check=False
    )  # fmt: skip


def lives(a, b):
    """Killed under traffic, again and again (trust.md F7, T1, T21)."""
    a.ip("route add 10.8.0.0/16 dev vti01")
    watched = a.box.start(*a.exec("ip", "xfrm", "monitor"), stdout=subprocess.PIPE, text=True)
    waiting = a.box.start(*a.exec("sleep", "1000"))
    until(lambda: len(list(supervisors(a))) == 2 and all_hold(a), "both hold the memory")
    before = (without_counts(a.ip("xfrm state")), a.ip("xfrm policy"), a.box.ip("route"),
              a.box.ip("addr show vti01"))  # fmt: skip
    cpu = sum(map(seconds, supervisors(a)))
    began = time.monotonic()
    seen = []
    load = Load(a)
    with Capture(a.box, "a0") as wire:
        for life in range(LIVES):
            until(lambda: answered(a), "packets pass")
            if life % 4 == 3:
                a.stop()
            else:
                kill(a)
            # The device and its routes stay, and nothing leaves.
            assert "10.8.0.0/16 dev vti01" in a.box.ip("route")
            a.box.run("ping", "-c", "1", "-W", "0.1", "10.8.0.1", check=False)
            seen += wire.packets()
            a.start()
        started = time.monotonic()
        until(lambda: answered(a), "packets pass")
        back = time.monotonic() - started

        def enough():
            seen.extend(wire.packets())
            return len(numbers(seen)) > 100

        until(enough, "packets to tell by")
        load.stop()
        seen += wire.packets()
    after = (without_counts(a.ip("xfrm state")), a.ip("xfrm policy"), a.box.ip("route"),
             a.box.ip("addr show vti01"))  # fmt: skip
    for old, new in zip(before, after):
        assert old == new, (old, new)
    nothing_in_clear(seen)
    no_number_twice(seen)
    used = sum(map(seconds, supervisors(a))) - cpu
    assert used < 0.2 * (time.monotonic() - began), f"{used} s of CPU: it spins"
    a.ip(f"xfrm state add src {A} dst {B} proto esp spi 0x4000 mode tunnel"
         f" aead rfc4106(gcm(aes)) {key()} 128")  # fmt: skip
    events(watched, "spi 0x00004000")
    for process in (watched, waiting):
        process.terminate()
        process.wait()
    print(f"lives: good; back after {back:.2f} s")


def events(watched, text):
    """Who listens is told again by the new daemon."""
    found = threading.Event()

    def read():
        for line in watched.stdout:
            if text in line:
                found.set()

    threading.Thread(target=read, daemon=True).start()
    assert found.wait(10), f"no event: {text}"


def nothing_in_clear(packets):
    inner = (bytes((10, 7, 0)), bytes((10, 8, 0)))
    for ip in packets:
        assert ip[0] >> 4 != 4 or not {ip[12:15], ip[16:19]} & set(inner), ip.hex()


def numbers(packets):
    return [ip[20:28] for ip in packets if ip[0] == 0x45 and ip[9] == 50 and ip[12:16][-1] == 1]


def no_number_twice(packets):
    used = numbers(packets)
    assert len(set(used)) == len(used), "a sequence number was used twice"


def without_device(a, b):
    """Policies without a mark: ways of our own lead into a device, and stay too."""
    one, two = "10.20.0.1", "10.20.0.2"
    forth, back = key(), key()
    for here, there, spi_out, spi_in, k_out, k_in, own, other in (
        (a, b, 0x300, 0x400, forth, back, one, two), (b, a, 0x400, 0x300, back, forth, two, one),
    ):  # fmt: skip
        h, t = here.address, there.address
        here.ip(f"addr add {own}/32 dev lo")
        here.ip(f"xfrm state add src {h} dst {t} proto esp spi {spi_out} reqid 9 mode tunnel"
                f" aead rfc4106(gcm(aes)) {k_out} 128")  # fmt: skip
        here.ip(f"xfrm state add src {t} dst {h} proto esp spi {spi_in} reqid 9 mode tunnel"
                f" aead rfc4106(gcm(aes)) {k_in} 128")  # fmt: skip
        tmpl = "tmpl src {} dst {} proto esp reqid 9 mode tunnel"
        here.ip(f"xfrm policy add src {own} dst {other} dir out {tmpl.format(h, t)}")
        here.ip(f"xfrm policy add src {other} dst {own} dir in {tmpl.format(t, h)}")
    ping = ("ping", "-c", "1", "-W", "0.2", "-I", one, two)
    waiting = a.box.start(*a.exec("sleep", "1000"))
    until(lambda: list(supervisors(a)) and all_hold(a), "it holds the memory")
    with Capture(a.box, "a0") as wire:
        for life in range(3):
            until(lambda: " 0% packet loss" in a.box.run(*ping, check=False), "packets pass")
            a.stop() if life == 1 else kill(a)
            a.box.run(*ping, check=False)
            a.start()
        until(lambda: " 0% packet loss" in a.box.run(*ping, check=False), "packets pass")
        for ip in wire.packets():
            assert ip[12:15] != bytes((10, 20, 0)) or ip[0] >> 4 != 4, ip.hex()
    a.ip("xfrm policy flush")
    until(lambda: "espalier0" not in a.box.links(), "the device of no policy is gone")
    assert not re.search("^21[0-5]:", a.box.ip("rule"), re.M), a.box.ip("rule")
    waiting.terminate()
    waiting.wait()
    print("without a device: good")


NATT = """
import signal, socket, time
daemon = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
daemon.bind(("0.0.0.0", 4500))
began = time.monotonic()
for _ in range(2):  # a kernel says 0 the second time, too
    daemon.setsockopt(socket.IPPROTO_UDP, 100, 2)
print(time.monotonic() - began, flush=True)
signal.pause()
"""


def in_udp(a, b):
    """One worker, whose socket nobody could join: states in UDP come back beside the IKE daemon's
    socket, which has the port."""
    daemons = []
    for gateway in (a, b):
        kill(gateway)
        gateway.start("--workers", "1")
        daemons.append(gateway.box.start(*gateway.exec(sys.executable, "-B", "-c", NATT),
                                         stdout=subprocess.PIPE, text=True))  # fmt: skip
        assert float(daemons[-1].stdout.readline()) < 0.9, "UDP_ENCAP took its time"
    tunnel(a, b, "encap espinudp 4500 4500 0.0.0.0")
    until(lambda: list(supervisors(a)) and all_hold(a), "it holds the memory")
    for _ in range(3):
        until(lambda: answered(a), "packets pass")
        before = without_counts(a.ip("xfrm state"))
        kill(a)
        a.start("--workers", "1")
        until(lambda: answered(a), "packets pass")
        assert without_counts(a.ip("xfrm state")) == before
    for daemon in daemons:
        daemon.terminate()
        daemon.wait()
    print("in UDP: good")


def gone(a):
    """Without a command that runs nothing is held: the next daemon is empty."""
    until(lambda: not list(supervisors(a)), "the supervisors are gone")
    kill(a)
    until(lambda: "vti01" not in a.box.links(), "the device is gone")
    a.start()
    assert a.ip("xfrm state") == "" and a.ip("xfrm policy") == ""


def used_before(a):
    """The key of a state that was deleted, when espalierd has been killed since (trust.md T1): its numbers
    are nowhere, so it is not taken from the start. Whether something holds memory or not."""
    state = f"src {A} dst {B} proto esp spi 0x700"
    for held_too in (False, True):
        one = key()
        keyed = f"xfrm state add {state} mode tunnel aead rfc4106(gcm(aes)) {one} 128"
        waiting = a.box.start(*a.exec("sleep", "1000")) if held_too else None
        if held_too:
            until(lambda: list(supervisors(a)) and all(MEMORY in held(p) for p in supervisors(a)),
                  "it holds the memory")  # fmt: skip
        a.ip(keyed)
        a.ip(f"xfrm state delete {state}")
        a.ip(keyed)  # the daemon that had it knows its numbers
        a.ip(f"xfrm state delete {state}")
        kill(a)
        a.start()
        a.refuses(keyed, "used before espalierd was started again")
        # What fails further on has not had it.
        with a.box.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((A, 5500))
            in_udp = " replay-oseq 0x10000000 encap espinudp 5500 4500 0.0.0.0 aead"
            a.refuses(keyed.replace(" aead", in_udp), "in use")
        a.refuses(keyed, "used before espalierd was started again")
        a.ip(keyed.replace(" aead", " replay-oseq 0x10000000 aead"))
        assert "oseq 0x10000000" in a.ip(f"xfrm state get {state}")
        a.ip(f"xfrm state delete {state}")
        if waiting:
            waiting.terminate()
            waiting.wait()
            until(lambda: not list(supervisors(a)), "the supervisor is gone")
    print("keys of deleted states: good")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", required=True)
    options = parser.parse_args()
    require_root()
    exit_on_signals()
    with tempfile.TemporaryDirectory() as folder:
        a = Gateway(options.programs, folder, "a", A)
        b = Gateway(options.programs, folder, "b", B)
        a.box.join("a0", b.box, "b0")
        for gateway, device in ((a, "a0"), (b, "b0")):
            gateway.box.ip(f"addr add {gateway.address}/24 dev {device}")
            gateway.box.ip(f"route add default via {B if gateway is a else A} dev {device}")
            gateway.start()
        tunnel(a, b)
        lives(a, b)
        without_device(a, b)
        gone(a)
        used_before(a)
        in_udp(a, b)
        for gateway in (a, b):
            gateway.stop()


if __name__ == "__main__":
    main()
