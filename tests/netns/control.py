#!/usr/bin/python3
"""Everything by the command line, without a configuration: two gateways that start with nothing. And
who means harm on the control socket, while traffic runs.

    PC-A ─── gateway A ═══════ vti01 ═══════ gateway B ─── PC-B
                ▲ espalier sa|policy|vti|batch|monitor
"""

import json
import os
import socket
import struct
import subprocess
import sys
import time

from lab import sites, traffic
from lab.control import Control, fresh_key
from lab.wait import until
from lab.wire import Capture, esp_packet

OTHER_USER = 65534


class Cli:
    """espalier COMMAND … on one gateway."""

    def __init__(self, lab, daemon):
        self.lab, self.daemon = lab, daemon

    def __call__(self, command, status=0, stdin=None):
        done = subprocess.run(
            [os.path.join(self.lab.options.programs, "espalier"), *command.split(),
             "--control", self.daemon.control],
            input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
            check=False,
        )
        assert done.returncode == status, f"espalier {command}: {done.returncode}: {done.stdout}"
        return done.stdout


def set_up(lab):
    """Keys by file on one gateway, and over standard input on the other."""
    keys = fresh_key(), fresh_key()
    tools = []
    for box, own, peer, near, far, address, order in (
        (lab.gw_a, lab.left, lab.right, "10.1.3.0/24", "10.1.4.0/24", "10.0.1.1/24", (0, 1)),
        (lab.gw_b, lab.right, lab.left, "10.1.4.0/24", "10.1.3.0/24", "10.0.1.2/24", (1, 0)),
    ):
        daemon = lab.daemon(box, None, lab.path(f"{box.name}.sock")).start()
        espalier = Cli(lab, daemon)
        tools.append(espalier)
        espalier(f"vti add vti01 local {own} remote {peer} ikey 5 okey 5 address {address}")
        espalier(f"policy add dir out src {near} dst {far} mark 5 reqid 1")
        espalier(f"policy add dir in src {far} dst {near} mark 5 tmpl proto esp mode tunnel reqid 1")
        file = lab.path(f"{box.name}.key")
        with open(file, "w", encoding="ascii") as out:
            out.write(f"0x{keys[order[0]]}\n")
        espalier(f"sa add src {own} dst {peer} spi {0x1000 + order[0]} enc udp 4500 4500"
                 f" suite aes_gcm256 key-file {file} reqid 1 window 4096")
        espalier(f"sa add src {peer} dst {own} spi {0x1000 + order[1]} key - reqid 1",
                 stdin=keys[order[1]])
        box.ip(f"route add {far} dev vti01")
        box.wait_carrier("vti01")
    return tools, keys


def shows(a, keys):
    """C4: what is listed has everything but the keys."""
    listed = a("sa list") + a("sa list --json") + a("policy list") + a("vti show -s") + a("status")
    for word in ("spi 0x00001000", "suite aes_gcm256", "dir out", "key 5", "RX: Packets", "mark 5/"):
        assert word in listed, f"no '{word}' in {listed}"
    assert not any(key[:16] in listed for key in keys)
    (sa,) = [json.loads(line) for line in a("sa list --json").splitlines()
             if json.loads(line)["direction"] == "out"]
    assert sa["packets"] > 0 and sa["from"] == "control", sa
    assert a("sa count").strip() == "2"


def refuses(lab, a, keys):
    """One clear line, and the right status."""
    local, peer = lab.left, lab.right
    for command, status, word in (
        ("sa add", 1, "write"),
        (f"sa add src {local} dst {peer} spi 16 suite aes_gcm256 key -", 1, "reserved"),
        (f"sa add src {peer} dst {local} spi 4097 suite aes_gcm256 key -", 1, "0x00001001"),
        (f"sa add src {peer} dst {local} spi 9999 window no key -", 1, "ESN"),
        (f"sa add src {local} dst {peer} spi 9999 key 0x{fresh_key()}", 2, "key-file"),
        (f"sa add src {local} dst {peer} spi 9999 windwo 64", 2, "'window'"),
        (f"sa add src {local} dst {peer} spi 9999 key-file /nowhere", 1, "/nowhere"),
        ("sa get id 999999", 1, "sa-list"),
        ("sa frobnicate", 2, "add"),
        ("policy add dir out src 10.0.0.1/8 dst 10.1.0.0/16", 1, "10.0.0.0/8"),
        ("policy delete id 999999", 1, "policy-list"),
        ("vti add vti01", 1, "already"),
        ("vti del vti99", 1, "no device"),
        ("vti show vti99", 1, "no device"),
        ("conn up nobody", 1, "no conn"),
        ("conn sideways nobody", 2, "conn up"),
        ("batch /nowhere", 1, "/nowhere"),
        ("monitor now", 2, "no words"),
    ):
        said = a(command, status=status, stdin=fresh_key() if "key -" in command else None)
        assert len(said.splitlines()) == 1 and word in said, f"{command}: {said}"
    same = a(f"sa add src {local} dst {peer} spi 9999 key -", status=1, stdin=keys[0])
    assert "same key and salt" in same and keys[0][:16] not in same, same
    for command in ("sa", "policy", "vti", "batch", "monitor", "conn"):
        assert "example" in a(f"{command} --help"), command


def batch(lab, a):
    """All or nothing, with the line that is wrong."""
    file = lab.path("changes")
    lines = [
        "# a comment, and an empty line\n\n",
        f"sa add src {lab.right} dst {lab.left} spi 0x2000 key {fresh_key()} reqid 7\n",
        json.dumps({"op": "sa-add", "source": lab.right, "destination": lab.left, "spi": 0x2001,
                    "key": fresh_key(), "reqid": 7}) + "\n",
        "policy add dir in src 10.7.0.0/16 dst 10.1.3.0/24 mark 5 reqid 7\n",
    ]
    wrong = f"sa add src {lab.right} dst {lab.left} spi 0x2000 key {fresh_key()}\n"
    with open(file, "w", encoding="ascii") as out:
        out.writelines([*lines, wrong])
    said = a(f"batch {file}", status=1)
    assert f"{file}:6: " in said and "nothing was changed" in said, said
    assert a("sa count").strip() == "2"
    with open(file, "w", encoding="ascii") as out:
        out.writelines(lines)
    assert a(f"batch {file}") == "3 added, 0 updated, 0 deleted\n"
    assert a("sa count").strip() == "4"
    a(f"sa delete spi 0x2000 dst {lab.left}")
    a(f"sa delete spi 0x2001 dst {lab.left}")


def monitor(lab, a):
    """What happens is told: here a packet that needs an SA."""
    watcher = lab.gw_a.start(
        os.path.join(lab.options.programs, "espalier"), "monitor", "--control", a.daemon.control,
        stdout=subprocess.PIPE,
    )
    os.set_blocking(watcher.stdout.fileno(), False)
    seen = []
    a("policy add dir out src 10.1.3.0/24 dst 10.77.0.0/16 mark 5 reqid 77 trap yes")
    lab.gw_a.ip("route add 10.77.0.0/16 dev vti01")
    with lab.pc_a.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        def told():
            # Until it listens there is nobody to tell; one a second is told of the same policy.
            out.sendto(b"x", ("10.77.0.9", 7))
            seen.append((watcher.stdout.read() or b"").decode())
            return seen[-1]
        until(told, "the event", timeout=20)
    watcher.kill()
    watcher.wait()
    line = seen[-1]
    assert "acquire" in line and "10.77.0.9 port 7" in line, line


def other_user(daemon):
    """C1: mode 0600; and refused with the file open to all, too."""
    assert os.stat(daemon.control).st_mode & 0o7777 == 0o600
    assert os.stat(daemon.control).st_uid == os.geteuid()
    os.chmod(daemon.control, 0o666)
    os.chmod(os.path.dirname(daemon.control), 0o755)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(OTHER_USER, OTHER_USER, OTHER_USER)
            os.setresuid(OTHER_USER, OTHER_USER, OTHER_USER)
            reply = Control(daemon.control).line()
            os._exit(0 if not reply["ok"] and "only root" in reply["error"] else 1)
        except BaseException as error:  # pylint: disable=broad-except
            print(repr(error), file=sys.stderr)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    os.chmod(daemon.control, 0o600)
    assert status == 0, f"another user: {status}"


def harm(lab, a):
    """C2: none of it reaches the data plane, and nothing of it stays."""
    daemon = a.daemon
    before = daemon.rss_kib()
    with traffic.UdpPair(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]) as pair:
        def crosses():
            pair.exchange(b"still there")

        half = Control(daemon.control)
        half.socket.sendall(b'{"version":1,"op":"sta')
        crosses()
        with Control(daemon.control) as slow:
            for byte in b'{"version":1,"op":"status"}\n':
                slow.socket.sendall(bytes([byte]))
            assert slow.line()["ok"]
        crosses()
        with Control(daemon.control) as huge:
            try:
                for _ in range(16):
                    huge.socket.sendall(b"x" * (1 << 20))
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before its end
        crosses()
        many = []
        for number in range(1000):
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.connect(daemon.control)  # waits while the queue of the listener is full
            many.append(connection)
            if number % 100 == 0:
                crosses()
        assert daemon.status()["ok"]
        for connection in many:
            connection.close()
        half.close()
        grown = daemon.rss_kib() - before
        assert grown < 8192, f"{grown} KiB more"
        slow_reader(a, pair)
        crosses()


def slow_reader(a, pair):
    """Who listens and does not read loses events, and learns how many."""
    with Control(a.daemon.control) as deaf, Control(a.daemon.control) as other:
        deaf.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.ask("subscribe")
        lifetime = {"seconds": {"soft": 1, "hard": 2}}
        ops = [{"op": "sa-add", "direction": "in", "source": "192.168.1.99",
                "destination": other.ask("vti-list")["vtis"][0]["local"], "spi": 0x30000 + n,
                "reqid": 1000 + n, "key": fresh_key(), "lifetime": lifetime} for n in range(4000)]
        for start in range(0, len(ops), 1000):
            other.ask("batch", ops=ops[start : start + 1000])
        # Each is told of twice, and gone by itself.
        until(lambda: other.ask("sa-count")["count"] == 2, "the end of 4000 SAs", timeout=30)
        pair.exchange(b"meanwhile")
        seen = lost = 0
        while seen + lost < 2 * len(ops):
            event = deaf.line()
            if event["event"] == "lost":
                lost += event["count"]
            else:
                seen += 1
        assert lost > 0, "nothing was lost: the reader was not slow"
        print(f"ok: a slow reader saw {seen} events and was told of {lost} lost ones")


def many(lab, a, count):
    """Adds, lists and flushes `count` SAs, while packets cross. L10: then the memory is as before."""
    file = lab.path("many")
    with open(file, "w", encoding="ascii") as out:
        for n in range(count):
            peer = socket.inet_ntoa(struct.pack("!I", 0x0B000000 + n))
            out.write(f'{{"op":"sa-add","direction":"in","source":"{peer}","destination":"{lab.left}",'
                      f'"spi":{0x100000 + n},"reqid":{1000 + n},"key":"{fresh_key()}"}}\n')
    with traffic.UdpPair(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"]) as pair:
        pair.exchange(b"before")
        before, times = a.daemon.rss_kib(), []
        for command in (f"batch {file}", "sa list --json"):
            start, worst = time.monotonic(), 0.0
            with open(lab.path("output"), "w+", encoding="ascii") as output:
                running = subprocess.Popen(
                    [os.path.join(lab.options.programs, "espalier"), *command.split(), "--control",
                     a.daemon.control], stdout=output)
                while running.poll() is None:
                    begun = time.monotonic()
                    pair.exchange(b"meanwhile")
                    worst = max(worst, time.monotonic() - begun)
                assert running.returncode == 0, f"{command}: {running.returncode}"
                output.seek(0)
                spis = [json.loads(line)["spi"] for line in output if line.startswith("{")]
            assert len(set(spis)) == len(spis), "one is listed twice"
            assert command != "sa list --json" or len(spis) == count + 2, len(spis)
            assert worst < 1, f"{command}: a packet took {worst:.2f} s"
            times.append(time.monotonic() - start)
    start = time.monotonic()
    a("sa flush")
    times.append(time.monotonic() - start)
    after = a.daemon.rss_kib()
    print(f"ok: {count} SAs added in {times[0]:.2f} s, listed in {times[1]:.2f} s, "
          f"flushed in {times[2]:.2f} s; {before} KiB before and {after} KiB after")
    # 1 MiB: what the control thread keeps for the next long list.
    assert after < before * 1.05 + 1024 or a.daemon.is_sanitized(), "memory that stays"
    return times


def without_sa(lab, a, key):
    """L5: an SA goes while its policy stays, and another way out is open."""
    lab.gw_a.ip(f"route add default via {lab.right}")
    inner = bytes(map(int, sites.PC_B["v4"].split(".")))
    ping = ("ping", "-c", "3", "-i", "0.1", "-W", "0.3", sites.PC_B["v4"])
    a(f"sa add src {lab.left} dst {lab.right} spi 0x1000 enc udp 4500 4500 suite aes_gcm256 reqid 1 key -",
      stdin=key)
    lab.gw_a.wait_carrier("vti01")
    with Capture(lab.gw_b, "eth0", incoming_only=True) as wire:
        lab.pc_a.run(*ping, check=False)
        assert sum(esp_packet(ip) is not None for ip in wire.packets()) == 3
        a(f"sa delete spi 0x1000 dst {lab.right}")
        lab.pc_a.run(*ping, check=False)
        after = [ip for ip in wire.packets() if ip[0] >> 4 == 4]
    assert not any(ip[16:20] == inner for ip in after), "in the clear"
    assert all(esp_packet(ip) is None for ip in after), "under an SA that is gone"
    lab.gw_a.ip("route del default")
    print("ok: without an SA nothing leaves, in the clear or not")


def used_key(lab, a):
    """T1: what numbers its packets from 1 again under a key that was used, repeats every nonce."""
    key = os.urandom(36).hex()
    add = f"sa add src {lab.left} dst {lab.right} spi 0x7001 suite aes_gcm256 reqid 9 key -"
    a(add, stdin=key)
    a.daemon.kill()
    a.daemon.start_again()
    refused = a(add, stdin=key, status=1)
    assert "were used before" in refused and key[:16] not in refused, refused

    def goes_on():
        try:
            a(f"{add} seq 1000", stdin=key)
            return True
        except AssertionError as error:
            # The kernel takes a killed ring apart in its own time, and keeps the port until then.
            assert "in use" in str(error), error
            return False

    until(goes_on, "the port")
    a("sa flush")
    print("ok: a key of before a crash is refused, unless it goes on where it was")


def main():
    options = sites.arguments(__doc__, sas=20000, seconds=0.0)
    with sites.Sites(options) as lab:
        (a, b), keys = set_up(lab)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        traffic.tcp(lab.pc_a, lab.pc_b, sites.PC_B["v4"], 1 << 20)
        print("ok: a tunnel by the command line alone")
        shows(a, keys)
        refuses(lab, a, keys)
        batch(lab, a)
        monitor(lab, a)
        other_user(a.daemon)
        harm(lab, a)
        traffic.ping(lab.pc_b, sites.PC_A["v4"])
        times = many(lab, a, options.sas)
        assert not options.seconds or times[0] < options.seconds, f"{times[0]:.2f} s to add them"
        without_sa(lab, a, keys[0])
        for espalier in (a, b):
            for what in ("policy", "sa", "vti"):
                espalier(f"{what} flush")
            assert espalier("sa list") == espalier("policy list") == espalier("vti show") == ""
            assert "vti01" not in espalier.daemon.namespace.links()
        used_key(lab, a)
        log = a.daemon.log + b.daemon.log
        assert not any(key[:16] in log for key in keys), "a key in the log"
        print("ok: all of it taken back")


if __name__ == "__main__":
    main()
