#!/usr/bin/python3
"""Who is not root behind `espalier exec`: a group that may ask, and sees no keys; and espalierd and
its commands in a user namespace, as in a container without root.

    a group's member ── xfrm.sock ── espalierd of root      veth 10.9.0.1
    somebody's user namespace: espalierd and `espalier exec`, as its root
"""

import argparse
import errno
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "netns"))

import front  # noqa: E402
from ip_xfrm import A, B, Gateway, key  # noqa: E402
from lab.namespace import exit_on_signals, require_root  # noqa: E402
from lab.wait import until  # noqa: E402
from restart import MEMORY, held, supervisors  # noqa: E402

GROUP, USER = "100", "61235"  # users; nobody
KEEP, HOLD = 11, 12  # tools/exec/front.h
HOLD_MESSAGE = struct.Struct("=IHHII16s")
STATE = f"src {A} dst {B} proto esp spi 0x100"


class Member:
    """A user of the group, without any right of his own."""

    def __init__(self, gateway):
        self.gateway = gateway
        self.words = ["setpriv", f"--reuid={USER}", f"--regid={USER}", f"--groups={GROUP}"]

    def ip(self, words, check=True):
        return self.gateway.box.run(*self.words, *self.gateway.exec("ip", *words.split()), check=check)

    def front(self, groups=()):
        """A connection of his: it is his who connects."""
        before = os.getgroups()
        os.setgroups([int(GROUP)])
        os.setresuid(-1, int(USER), 0)
        try:
            return front.Front(self.gateway.front, groups)
        finally:
            os.setresuid(-1, 0, 0)
            os.setgroups(before)


def keep(client):
    """Asks for what is kept: the errno, and the memory."""
    client.socket.send(
        front.STATE.pack(front.STATE.size, KEEP, 0, 0, 0, 1, os.getpid(), 0, 0, 0, 0, bytes(28))
    )
    message, fds, _, _ = socket.recv_fds(client.socket, 4096, 4)
    for fd in fds:
        os.close(fd)
    return front.STATE.unpack(message)[-2], len(fds)


def group(a):
    """What the group may: everything but to see keys, and what holds them."""
    member = Member(a)
    one, two = key(), key()
    a.ip(f"xfrm state add {STATE} mode tunnel reqid 7 aead rfc4106(gcm(aes)) {one} 128")
    assert one in a.ip("xfrm state")
    for listed in (member.ip("xfrm state"), member.ip(f"xfrm state get {STATE}")):
        assert "spi 0x00000100" in listed and "rfc4106" in listed and one[2:] not in listed, listed
    member.ip(f"xfrm state add {STATE.replace('0x100', '0x200')} mode tunnel"
              f" aead rfc4106(gcm(aes)) {two} 128")  # fmt: skip
    assert two in a.ip("xfrm state") and two[2:] not in member.ip("xfrm state")
    member.ip(f"xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out mark 5"
              f" tmpl src {A} dst {B} proto esp mode tunnel")  # fmt: skip
    assert "10.2.0.0/16" in a.ip("xfrm policy")
    notices = member.front(["sa"]), front.Front(a.front, ["sa"])
    secret = os.urandom(36)
    with front.front(a.front) as client:
        body = front.state_info(A, B, 0x300) + front.replay_esn() + front.aead(secret)
        assert client.ask(front.NEWSA, body)[0] == 0
        assert client.ask(front.DELSA, front.state_id(B, 0x300))[0] == 0
        assert keep(client) == (0, 1)
    for client, sees in zip(notices, (False, True)):
        for kind in (front.NEWSA, front.DELSA):
            ((found, body),) = client.receive()
            assert found == kind and (secret in body) is sees, (found, sees)
    assert keep(notices[0]) == (errno.EPERM, 0)
    for client in notices:
        client.close()
    # His command does not wait for what it does not get, and hears of events.
    waiting = a.box.start(*member.words, *a.exec("ip", "xfrm", "monitor"), stdout=subprocess.PIPE)
    until(lambda: any(supervisors(a)), "espalier exec serves")
    os.set_blocking(waiting.stdout.fileno(), False)
    heard = []

    def hears():  # as soon as it has subscribed
        other = STATE.replace("0x100", "0x400")
        a.ip(f"xfrm state add {other} mode tunnel aead rfc4106(gcm(aes)) {key()} 128")
        a.ip("xfrm state flush")
        heard.append(waiting.stdout.read() or b"")
        return b"Flushed state" in b"".join(heard)

    until(hears, "it hears of a flush")
    assert not any(MEMORY in held(pid) for pid in supervisors(a))
    waiting.terminate()
    waiting.wait(10)
    a.ip("xfrm policy flush")
    stranger = subprocess.run(
        a.box.command("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
                      *a.exec("ip", "xfrm", "state")),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert stranger.returncode != 0 and "not permitted" in stranger.stdout, stranger.stdout


def busy_keeper(a):
    """Who holds devices and does not read for a while misses none of them."""
    count = 400  # more than a socket holds
    espalier = [os.path.join(a.programs, "espalier")]
    with front.front(a.front) as client:
        assert keep(client) == (0, 1)
        commands = "".join(f"link add v{i} type vti remote 10.99.{i // 250}.{i % 250 + 1} key {i + 1}\n"
                           for i in range(count))  # fmt: skip
        subprocess.run(a.box.command(*a.exec("ip", "-batch", "-")), input=commands, text=True,
                       check=True, timeout=120)  # fmt: skip
        names = {}
        while len(names) < count:
            message, fds, _, _ = socket.recv_fds(client.socket, 4096, 4)
            for fd in fds:
                os.close(fd)
            *_, kind, _, _, _, name = (None, *HOLD_MESSAGE.unpack(message))
            assert kind == HOLD, kind
            names[name.rstrip(b"\0").decode()] = len(fds)
        assert names == {f"v{i}": 1 for i in range(count)}
    a.box.run(*espalier, "vti", "flush", "--control", a.control, check=False)


ROOTLESS = r"""
set -e
cd "$1"
ip link set lo up
ip link add a0 type veth peer name a1
ip addr add 10.9.0.1/24 dev a0
ip link set a0 up
ip link set a1 up
./espalierd --control control.sock > log 2>&1 &
daemon=$!
tries=0
until [ -S xfrm.sock ]; do
  tries=$((tries + 1)); [ $tries -lt 200 ]; sleep 0.05
done
inside() { ./espalier exec --control control.sock -- "$@"; }
inside ip link add vti01 type vti local 10.9.0.1 remote 10.9.0.2 key 42
ip addr add 10.7.0.1/24 dev vti01
ip link set vti01 up
inside ip xfrm state add src 10.9.0.1 dst 10.9.0.2 proto esp spi 0x100 reqid 7 mode tunnel \
  aead 'rfc4106(gcm(aes))' "$2" 128
inside ip xfrm policy add src 0/0 dst 0/0 dir out mark 42 \
  tmpl src 10.9.0.1 dst 10.9.0.2 proto esp reqid 7 mode tunnel
inside ip xfrm state
ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev a0
ping -c 3 -i 0.2 -W 0.2 10.7.0.2 > /dev/null || true
inside ip -s xfrm state
kill $daemon
wait $daemon
"""


def rootless(programs):
    """No right outside of its own namespaces."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("espalier", "espalierd"):
            shutil.copy(os.path.join(programs, name), folder)
        os.chown(folder, int(USER), int(USER))
        secret = key()
        done = subprocess.run(
            ["setpriv", "--pdeathsig", "KILL", f"--reuid={USER}", f"--regid={USER}", "--clear-groups",
             "unshare", "--user", "--map-root-user", "--net", "--",
             "sh", "-c", ROOTLESS, "sh", folder, secret],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False,
        )  # fmt: skip
        if "unshare failed" in done.stdout:
            print("rootless: left out, no user namespaces here")
            return
        with open(os.path.join(folder, "log"), encoding="utf-8") as log:
            said = log.read()
        assert done.returncode == 0, (done.stdout, said)
        assert secret in done.stdout and "3(packets)" in done.stdout, (done.stdout, said)
        print(said)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", required=True)
    options = parser.parse_args()
    require_root()
    exit_on_signals()
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        programs = os.path.join(folder, "programs")
        os.mkdir(programs)
        for name in ("espalier", "espalierd"):
            shutil.copy(os.path.join(options.programs, name), programs)
        a = Gateway(programs, folder, "a", A)
        a.box.ip("link add a0 type veth peer name a1")
        a.box.ip(f"addr add {A}/24 dev a0")
        a.box.ip("link set a0 up")
        a.box.ip("link set a1 up")
        a.start("--group", "users")
        for what in (group, busy_keeper):
            what(a)
            print(f"{what.__name__}: good")
        a.stop()
    rootless(options.programs)
    print("rootless: good")


if __name__ == "__main__":
    main()
