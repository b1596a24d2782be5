#!/usr/bin/python3
"""`ip xfrm` through `espalier exec`: what a kernel with ESP would do, espalierd does.

    gateway A ── a0 ═══════════ b0 ── gateway B
       └ vti01 10.7.0.1     10.7.0.2 vti01 ┘
"""

import argparse
import errno
import json
import os
import random
import re
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

import front  # noqa: E402
from lab.namespace import Namespace, exit_on_signals, require_root  # noqa: E402
from lab.traffic import Flood  # noqa: E402
from lab.wait import until  # noqa: E402

A, B = "10.9.0.1", "10.9.0.2"
TUNNEL = f"mark 42 tmpl src {{}} dst {{}} proto esp reqid 7 mode tunnel"


def key(count=36):
    return "0x" + secrets.token_hex(count)


class Gateway:
    """A namespace with an espalierd that has no configuration."""

    def __init__(self, programs, folder, name, address):
        self.programs = programs
        self.address = address
        self.box = Namespace(name)
        self.folder = os.path.join(folder, name)
        os.mkdir(self.folder)
        self.control = os.path.join(self.folder, "control.sock")
        self.front = os.path.join(self.folder, "xfrm.sock")
        self.daemon = None

    def start(self, *options):
        with open(os.path.join(self.folder, "log"), "wb") as log:
            self.daemon = self.box.start(
                os.path.join(self.programs, "espalierd"), "--control", self.control,
                *options, stdout=log, stderr=log,
            )  # fmt: skip
        until(self.is_there, "the XFRM socket")

    def is_there(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            return client.connect_ex(self.front) == 0

    def stop(self):
        self.daemon.terminate()
        assert self.daemon.wait(20) == 0, "espalierd failed"
        with open(os.path.join(self.folder, "log"), encoding="utf-8") as log:
            assert "error" not in log.read()

    def exec(self, *words):
        return [os.path.join(self.programs, "espalier"), "exec", "--control", self.control,
                "--", *words]  # fmt: skip

    def ip(self, words, check=True):
        return self.box.run(*self.exec("ip", *words.split()), check=check)

    def sas(self):
        listed = self.box.run(os.path.join(self.programs, "espalier"), "sa", "list", "--json",
                              "--control", self.control)  # fmt: skip
        return [json.loads(line) for line in listed.splitlines()]

    def refuses(self, words, text):
        done = subprocess.run(
            self.box.command(*self.exec("ip", *words.split())),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode != 0 and text in done.stdout, (words, done.stdout)


def states(a):
    one, two, cbc, mac = key(), key(), key(32), key(32)
    out = f"src {A} dst {B} proto esp spi 0x1000"
    a.ip(f"xfrm state add {out} reqid 7 mode tunnel aead rfc4106(gcm(aes)) {one} 128")
    into = f"src {B} dst {A} proto esp spi 0x2000"
    a.ip(
        f"xfrm state add {into} reqid 7 mode tunnel flag esn replay-window 128"
        f" aead rfc4106(gcm(aes)) {two} 128 limit time-hard 3600 limit byte-soft 1000000"
    )
    third = f"src {A} dst 10.9.0.3 proto esp spi 0x3000 mark 5"
    a.ip(
        f"xfrm state add {third} mode tunnel auth-trunc hmac(sha256) {mac} 128 enc cbc(aes) {cbc}"
        " encap espinudp 4500 4501 0.0.0.0"
    )
    listed = a.ip("xfrm state list")
    order = re.findall(r"spi (0x\w+)", listed)
    assert order == ["0x00003000", "0x00002000", "0x00001000"], listed
    for wanted in (
        f"aead rfc4106(gcm(aes)) {one} 128", f"auth-trunc hmac(sha256) {mac} 128",
        f"enc cbc(aes) {cbc}", "replay_window 128, bitmap-length 4", "flag esn", "reqid 7 ",
        "encap type espinudp sport 4500 dport 4501 addr 0.0.0.0", "mark 0x5/0xffffffff",
    ):  # fmt: skip
        assert wanted in listed, (wanted, listed)
    assert "expire add: soft 0(sec), hard 3600(sec)" in a.ip(f"-s xfrm state get {into}")
    assert "soft 1000000(bytes)" in a.ip(f"-s xfrm state get {into}")
    assert a.ip(f"xfrm state list src {B}").count("proto esp") == 1
    assert "SAD count 3" in a.ip("xfrm state count")
    a.refuses(f"xfrm state add {out} mode tunnel aead rfc4106(gcm(aes)) {key()} 128", "File exists")
    a.refuses(f"xfrm state add {out} mode transport aead rfc4106(gcm(aes)) {key()} 128", "tunnel")
    a.refuses(
        f"xfrm state add src {A} dst {B} proto esp spi 9999 mode tunnel aead rfc4106(x) {key()} 128",
        "Requested AEAD algorithm not found",
    )
    a.refuses(
        f"xfrm state add src {A} dst {B} proto esp spi 9999 mode tunnel enc cbc(aes) {key(32)}",
        "without integrity",
    )
    a.refuses(
        f"xfrm state add src {A} dst {B} proto esp spi 9999 mode tunnel aead rfc4106(gcm(aes))"
        f" {one} 128",
        "same key",
    )
    a.ip(f"xfrm state update {into} reqid 7 mode tunnel flag esn replay-window 128"
         f" aead rfc4106(gcm(aes)) {two} 128 limit time-hard 7200")  # fmt: skip
    assert "hard 7200(sec)" in a.ip(f"-s xfrm state get {into}")
    a.refuses(f"xfrm state get {out} mark 7".replace("0x1000", "0x77"), "No such process")
    a.ip(f"xfrm state delete {out}")
    a.refuses(f"xfrm state delete {out}", "No such process")
    a.ip(f"xfrm state allocspi src {B} dst {A} proto esp mode tunnel min 0x5000 max 0x5000")
    a.refuses(
        f"xfrm state allocspi src {B} dst {A} proto esp mode tunnel min 0x5000 max 0x5000",
        "already in use",
    )
    larval = f"src {B} dst {A} proto esp spi 0x5000"
    a.ip(f"xfrm state update {larval} mode tunnel aead rfc4106(gcm(aes)) {key()} 128")
    assert "rfc4106" in a.ip(f"xfrm state get {larval}")
    # What is written is what is listed, but replays are always looked for (trust.md T5).
    silent = f"src {B} dst {A} proto esp spi 0x5001"
    a.ip(f"xfrm state add {silent} mode tunnel replay-window 0 aead rfc4106(gcm(aes)) {key()} 128")
    assert "replay-window 0 " in a.ip(f"xfrm state get {silent}")
    (sa,) = (sa for sa in a.sas() if sa["spi"] == "0x00005001")
    assert sa["window"] >= 32 and sa["from"] == "xfrm", sa
    a.ip("xfrm state deleteall")
    assert a.ip("xfrm state") == ""
    a.ip(f"xfrm state add {out} mode tunnel aead rfc4106(gcm(aes)) {key()} 128")
    a.ip("xfrm state flush")
    assert "SAD count 0" in a.ip("xfrm state count")


def policies(a):
    for direction in ("in", "fwd"):
        a.ip(f"xfrm policy add src 0/0 dst 10.0.0.0/8 dir {direction} {TUNNEL.format(B, A)}")
    out = "src 10.0.0.0/8 dst 0.0.0.0/0 proto tcp dport 80 dir out"
    a.ip(f"xfrm policy add {out} priority 3 {TUNNEL.format(A, B)}")
    a.refuses(f"xfrm policy add {out} {TUNNEL.format(A, B)}", "File exists")
    a.ip(f"xfrm policy update {out} priority 9 {TUNNEL.format(A, B)}")
    a.ip("xfrm policy add src 10.0.0.0/8 dst 10.1.0.0/16 dir out action block")
    listed = a.ip("xfrm policy list")
    assert "proto tcp dport 80" in listed and "priority 9" in listed, listed
    assert "action block" in listed and "mark 0x2a/0xffffffff" in listed, listed
    assert "SPD IN  1 OUT 2 FWD 1" in a.ip("xfrm policy count")
    assert "dir out priority 9" in a.ip(f"xfrm policy get {out} mark 42")
    a.refuses(f"xfrm policy get {out}", "No such file")
    a.refuses("xfrm policy add src 0/0 dst 0/0 dir out tmpl proto ah mode tunnel", "ESP only")
    a.ip("xfrm policy setdefault in block")
    assert "in:  block" in a.ip("xfrm policy getdefault")
    a.ip("xfrm policy setdefault in accept")
    a.ip(f"xfrm policy delete {out} mark 42")
    a.refuses(f"xfrm policy delete {out} mark 42", "No such file")
    a.ip("xfrm policy deleteall")
    assert a.ip("xfrm policy") == ""
    a.ip("xfrm policy flush")


def monitor(a):
    watched = a.box.start(*a.exec("ip", "xfrm", "monitor"), stdout=subprocess.PIPE)
    os.set_blocking(watched.stdout.fileno(), False)
    state = f"src {A} dst {B} proto esp spi 0x4000"
    # Until it has subscribed nothing arrives; then each of these does.
    seen = []
    wanted = ("spi 0x00004000", "Deleted src", "Flushed policy")
    for _ in range(50):
        a.ip(f"xfrm state add {state} mode tunnel aead rfc4106(gcm(aes)) {key()} 128")
        a.ip(f"xfrm state delete {state}")
        a.ip(f"xfrm policy add src 0/0 dst 0/0 dir out {TUNNEL.format(A, B)}")
        a.ip("xfrm policy flush")
        seen.append((watched.stdout.read() or b"").decode())
        if all(word in "".join(seen) for word in wanted):
            break
    watched.terminate()
    watched.wait(10)
    text = "".join(seen)
    assert all(word in text for word in wanted), text


def tunnel(a, b, encap=""):
    """The commands of a VTI by hand, on both sides. Returns the key of A's outbound state."""
    forth, back = key(), key()
    for here, there, spi_out, spi_in, k_out, k_in, inner in (
        (a, b, 0x100, 0x200, forth, back, "10.7.0.1"),
        (b, a, 0x200, 0x100, back, forth, "10.7.0.2"),
    ):
        h, t = here.address, there.address
        here.ip(f"link add vti01 type vti local {h} remote {t} key 42")
        here.ip(f"addr add {inner}/24 dev vti01")
        here.ip("link set vti01 up")
        here.ip(f"xfrm state add src {h} dst {t} proto esp spi {spi_out} reqid 7 mode tunnel"
                f" aead rfc4106(gcm(aes)) {k_out} 128 {encap}")  # fmt: skip
        here.ip(f"xfrm state add src {t} dst {h} proto esp spi {spi_in} reqid 7 mode tunnel"
                f" replay-window 32 aead rfc4106(gcm(aes)) {k_in} 128 {encap}")  # fmt: skip
        here.ip(f"xfrm policy add src 0/0 dst 0/0 dir out {TUNNEL.format(h, t)}")
        for direction in ("in", "fwd"):
            here.ip(f"xfrm policy add src 0/0 dst 0/0 dir {direction} {TUNNEL.format(t, h)}")
    return forth


def twenty_pings(a):
    # Once there are answers ping waits for the last ones for two round trips, or the interval.
    text = a.box.run("ping", "-c", "20", "-l", "20", "-i", "5", "10.7.0.2")
    assert " 0% packet loss" in text, text


def traffic(a, b):
    forth = tunnel(a, b)
    twenty_pings(a)
    counted = a.ip(f"-s xfrm state get src {A} dst {B} proto esp spi 0x100")
    assert re.search(r"\n\t  1680\(bytes\), 20\(packets\)", counted), counted
    assert "oseq 0x14" in counted and "use -" not in counted, counted
    again(a, forth)
    twenty_pings(a)
    replaced(a, b)
    expiry(a)
    acquire(a)


def again(a, forth):
    """A key that comes back goes on behind its numbers, whatever it is said to start from."""
    state = f"src {A} dst {B} proto esp spi 0x100"
    a.ip(f"xfrm state delete {state}")
    a.ip(f"xfrm state add {state} reqid 7 mode tunnel aead rfc4106(gcm(aes)) {forth} 128")
    assert "oseq 0x14" in a.ip(f"xfrm state get {state}")


BLAST = """
import socket
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for count in range(1 << 22):
    out.sendto(bytes(60), ("10.7.0.2", 9))
    if count == 100:
        print("on", flush=True)
"""


def replaced(a, b):
    """States are replaced under a flow, as at a rekey: nothing is lost, no number is missing."""
    with front.front(a.front) as here, front.front(b.front) as there:

        def replace(spi, old):
            body = front.state_info(A, B, spi) + front.replay_esn(window=1024, words=32)
            body += front.aead(secrets.token_bytes(36))
            assert there.ask(front.NEWSA, body)[0] == 0
            assert here.ask(front.NEWSA, body)[0] == 0
            assert here.ask(front.DELSA, front.state_id(B, old))[0] == 0

        flow = Flood(a.box, b.box, "10.7.0.1", "10.7.0.2")
        flow.start()
        replace(0x10000, 0x100)
        for spi in range(0x10001, 0x10000 + 20):
            before = flow.came
            replace(spi, spi - 1)
            until(lambda: flow.came > before or flow.errors, "packets pass")
        flow.stop()
        # At full rate, at which queues overflow, no packet meets one that has no numbers.
        blast = a.box.start(sys.executable, "-c", BLAST, stdout=subprocess.PIPE)
        assert blast.stdout.readline() == b"on\n"
        for spi in range(0x10000 + 20, 0x10000 + 220):
            replace(spi, spi - 1)
        assert blast.poll() is None
        blast.terminate()
        blast.wait()
    status = a.box.run(os.path.join(a.programs, "espalier"), "status", "--json",
                       "--control", a.control)  # fmt: skip
    assert json.loads(status)["drops"]["seq_exhausted"] == 0, status


def expiry(a):
    """A hard limit is told to those who listen, and the state goes."""
    with front.front(a.front, ["expire"]) as listener:
        a.ip(f"xfrm state add src {A} dst {B} proto esp spi 0x900 reqid 7 mode tunnel"
             f" limit time-soft 1 limit time-hard 2 aead rfc4106(gcm(aes)) {key()} 128")  # fmt: skip
        for hard in (0, 1):
            ((kind, body),) = listener.receive()
            assert kind == 24 and body[72:76] == struct.pack(">I", 0x900), (kind, body)
            assert body[224] == hard, body[224]
    a.refuses(f"xfrm state get src {A} dst {B} proto esp spi 0x900", "No such process")


def acquire(a):
    """A packet without a state asks for one."""
    a.ip("xfrm state flush")
    with front.front(a.front, ["acquire"]) as listener:
        ping = a.box.start(
            "ping", "-c", "1", "-W", "1", "10.7.0.2", stdout=subprocess.DEVNULL
        )  # fmt: skip
        ((kind, body),) = listener.receive()
        ping.wait(10)
    assert kind == 23, kind
    named = [body[at : at + 16] for at in (0, 24, 40, 56)]
    wanted = [front.address(text) for text in (B, A, "10.7.0.2", "10.7.0.1")]
    assert named == wanted, named


def malformed(a):
    """Any bytes: answers or none, and the daemon lives."""
    chance = random.Random(4303)
    good = front.state_info(A, B, 0x700) + front.replay_esn() + front.aead(secrets.token_bytes(36))
    with front.front(a.front) as client:
        for length in range(0, len(good)):
            error, _ = client.ask(front.NEWSA, good[:length])
            assert error == errno.EINVAL, (length, error)
        lying = front.state_info(A, B, 0x700) + front.replay_esn()
        for bits in (2**32 - 1, 2**31, 36 * 8 + 1):
            error, _ = client.ask(front.NEWSA, lying + front.aead(bytes(36), bits=bits))
            assert error == errno.EINVAL, (bits, error)
        error, _ = client.ask(front.NEWSA, lying + front.aead(bytes(36), name=b"x" * 64))
        assert error == errno.ENOSYS, error
        for words in (129, 2**30, 2**32 - 1):
            bad = front.attribute(front.REPLAY_ESN, struct.pack("=6I", words, 0, 0, 0, 0, 32))
            error, _ = client.ask(front.NEWSA, front.state_info(A, B, 0x700) + bad
                                  + front.aead(secrets.token_bytes(36)))  # fmt: skip
            assert error == errno.EINVAL, (words, error)
        for kind in range(16, 48):
            for _ in range(40):
                payload = bytearray(chance.randbytes(chance.choice((0, 1, 4, 24, 64, 168, 300))))
                error, _ = client.ask(kind, bytes(payload))
                assert error is not None
            changed = bytearray(good)
            changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
            client.ask(kind, bytes(changed))
        assert client.ask(255, b"")[0] == errno.EINVAL
        assert client.ask(33, bytes(64))[0] == errno.EINVAL  # MIGRATE: libreswan asks so whether there is one
        client.socket.send(b"\xff" * 40)
        client.socket.send(b"\x01")
        client.ask(front.FLUSHSA, b"\0")
        # Long listings come in datagrams that an IKE daemon can read.
        for spi in range(0x1000, 0x1000 + 100):
            body = front.state_info(A, B, spi) + front.replay_esn()
            assert client.ask(front.NEWSA, body + front.aead(secrets.token_bytes(36)))[0] == 0
        assert len(client.dump(front.GETSA)) == 100
        assert client.ask(front.FLUSHSA, b"\0")[0] == 0
        assert client.dump(front.GETSA) == []


def slow_reader(a):
    """Who reads late gets all of a long listing, and who does not read at all holds nobody up."""
    count = 3000
    with front.front(a.front) as client:
        client.ask(front.FLUSHSA, b"\0")
        for spi in range(0x1000, 0x1000 + count):
            body = front.state_info(A, B, spi) + front.replay_esn()
            assert client.ask(front.NEWSA, body + front.aead(secrets.token_bytes(36)))[0] == 0
        listing = a.box.start(*a.exec("ip", "xfrm", "state", "list"), stdout=subprocess.PIPE)
        idle = [0]

        def waits():  # in write(), for a while: what is relayed meanwhile fills its socket
            with open(f"/proc/{listing.pid}/syscall", encoding="utf-8") as file:
                idle[0] = idle[0] + 1 if file.read().startswith("1 ") else 0
            return idle[0] > 20

        until(waits, "ip waits for its reader")
        assert len(client.dump(front.GETSA)) == count
        text = b""
        while select.select([listing.stdout], [], [], 20)[0]:
            more = os.read(listing.stdout.fileno(), 65536)
            text += more
            if not more:
                break
        else:
            listing.kill()
        assert listing.wait(20) == 0, f"it hangs after {text.count(b'proto esp')}"
        assert text.count(b"proto esp") == count, text.count(b"proto esp")
        assert client.ask(front.FLUSHSA, b"\0")[0] == 0


def half_a_device(a):
    """Of a creation that fails nothing remains."""
    kinds = {"vt8": f"type vti local {A} remote {B} key 8", "xf8": "type xfrm dev lo if_id 8"}
    for name, kind in kinds.items():
        a.refuses(f"link add {name} mtu 99999 {kind}", "maximum")
        a.refuses(f"link add {name} netns 1 {kind}", "not supported")
        assert name not in a.box.links()
        a.ip(f"link add {name} mtu 1300 {kind}")
        assert "mtu 1300" in a.box.ip(f"link show {name}")
        a.ip(f"link del {name}")


LATE = """
import signal, socket, time
time.sleep(0.5)  # espalier exec has asked for what is kept
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
print("on", flush=True)
signal.sigwait({signal.SIGUSR1})
client = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 6)
client.bind((0, 0))
client.send(bytes.fromhex("10000000" "1200" "0103" "01000000" "00000000"))  # GETSA, all
print(client.recv(65536)[4])
"""


def late_answer(a):
    """An espalierd that is busy for seconds, as with very many states, is not taken for dead."""
    client = a.box.start(*a.exec(sys.executable, "-c", LATE),
                         stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert client.stdout.readline() == "on\n"
    a.daemon.send_signal(signal.SIGSTOP)
    client.send_signal(signal.SIGUSR1)
    time.sleep(5)
    a.daemon.send_signal(signal.SIGCONT)
    assert client.stdout.readline() == "3\n", "no end of a listing"
    client.wait(10)


def inside(a):
    """`espalier exec` in what runs in one already."""
    assert "SAD count" in a.box.run(*a.exec(*a.exec("ip", "xfrm", "state", "count")))


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
            gateway.start()
        for what in (states, policies, monitor, malformed, slow_reader, late_answer, half_a_device,
                     inside):  # fmt: skip
            what(a)
            print(f"{what.__name__}: good")
        traffic(a, b)
        print("traffic: good")
        for gateway in (a, b):
            gateway.stop()


if __name__ == "__main__":
    main()
