#!/usr/bin/python3
"""Start, stop, crash and start again: nothing is left behind by a clean stop, no IV is ever used
twice, and what was taken once is not taken again.

    PC-A ─── gateway A ═════════ eth0 ═════════ gateway B ─── PC-B
             (killed)         (all of it kept)    (killed)
"""

import os
import shutil
import signal

from lab import sites, traffic
from lab.wire import Capture, Injector, UDP, ESP, outer
from lab.wait import until

CRASHES = 20


def state_of(lab):
    """Everything a stopped daemon must have taken back."""
    return [
        box.ip("-o link").split("\n")
        + box.ip("-o address").split("\n")
        + box.ip("route show table all").split("\n")
        + box.ip("-6 route show table all").split("\n")
        for box in (lab.gw_a, lab.gw_b)
    ]


def clean_stop(lab, before):
    for number in (signal.SIGTERM, signal.SIGINT):
        for daemon in (lab.a, lab.b):
            daemon.start()
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        assert "vti01" in lab.gw_a.links()
        for daemon in (lab.a, lab.b):
            assert daemon.stop(number) == 0
            assert not os.path.exists(daemon.control), "the control socket is left"
        assert state_of(lab) == before, "devices, addresses or routes are left"
    print("ok: SIGTERM and SIGINT leave no device, address, route or socket")


def no_iv_twice(lab):
    """20 lives, most of them ended by SIGKILL under traffic (T1)."""
    lab.b.start()
    packets = []
    with Capture(lab.gw_a, "eth0") as wire:
        for life in range(CRASHES):
            lab.a.start_again()
            spi = int(lab.a.sa("out")["spi"], 0)
            traffic.ping(lab.pc_a, sites.PC_B["v4"], count=10)
            if life % 4 == 3:
                lab.a.stop()
            else:
                lab.a.kill()
            packets += [p for p in wire.esp() if p.spi == spi]
    assert len(packets) >= 10 * CRASHES, f"only {len(packets)} packets seen"
    assert len({p.iv for p in packets}) == len(packets), "an IV was used twice"
    assert len({p.seq for p in packets}) == len(packets), "a sequence number was used twice"
    print(f"ok: {CRASHES} lives, {len(packets)} packets, no IV twice")


def recorded(lab):
    """The highest number that gateway B has on disk as received."""
    with open(lab.path("keys", "right", f"{sites.CONN}.state"), encoding="ascii") as file:
        words = dict(line.split(maxsplit=1) for line in file if " " in line)
    return int(words["received"])


def no_replay_after_restart(lab):
    lab.a.start()
    injector = Injector(lab.gw_a, "eth0", lab.gw_b.mac("eth0"))
    protocol = UDP if lab.options.encap == "udp" else ESP
    for end in (lab.b.stop, lab.b.kill):
        with Capture(lab.gw_a, "eth0") as wire:
            traffic.ping(lab.pc_a, sites.PC_B["v4"], count=20)
            spi = int(lab.a.sa("out")["spi"], 0)
            packets = [p for p in wire.esp() if p.spi == spi]
        newest = max(p.seq for p in packets)
        if end == lab.b.kill:  # what a crash may forget is bounded: it is on disk soon
            until(lambda: recorded(lab) & 0xFFFFFFFF >= newest, "the numbers received on disk")
        end()
        lab.b.start_again()
        lab.b.take_baseline()
        with Capture(lab.gw_b, "vti01", incoming_only=True) as inside:
            for packet in packets:
                injector.send(outer(lab.left, lab.right, protocol, packet.esp))
            until(lambda: sum(lab.b.drops().values()) == len(packets), "every old packet dropped")
            dropped = {name for name, n in lab.b.drops().items() if n}
            assert dropped <= {"duplicate", "late", "integrity"}, dropped
            assert not inside.packets(), "an old packet was taken again"
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
    print("ok: what was received before a stop or a crash is refused after it")


def no_clear_text_after_a_crash(lab):
    """The TUN goes with its daemon, a kernel's VTI would not: what it carried must not find another
    way out."""
    lab.a.stop()
    before = state_of(lab)
    for box in (lab.gw_a, lab.gw_b):
        box.ip(f"route add default via {lab.right if box is lab.gw_a else lab.left}")
    lab.a.start()
    traffic.ping(lab.pc_a, sites.PC_B["v4"])
    with Capture(lab.gw_b, "eth0", incoming_only=True) as wire:
        lab.a.kill()
        lab.pc_a.run("ping", "-c", "3", "-i", "0.1", "-W", "0.3", sites.PC_B["v4"], check=False)
        inner = bytes(map(int, sites.PC_B["v4"].split(".")))
        leaked = [ip for ip in wire.packets() if ip[0] >> 4 == 4 and ip[16:20] == inner]
        assert not leaked, f"{len(leaked)} packets in the clear"
    assert "No route to host" in lab.gw_a.run("sh", "-c", f"ip route get {sites.PC_B['v4']} 2>&1", check=False)
    lab.a.start_again()
    traffic.ping(lab.pc_a, sites.PC_B["v4"])
    lab.a.stop()
    for box in (lab.gw_a, lab.gw_b):
        box.ip("route del default")
    assert state_of(lab) == before, "the route that a crash left is still there"
    lab.a.start()
    print("ok: after a crash nothing leaves in the clear, and a clean stop takes that back")


def refuses_to_start(lab, word):
    before = state_of(lab)
    mark = lab.a.mark()
    lab.a.start(wait=False)
    assert lab.a.process.wait(20) not in (0, 99), "started"
    lab.a.reader.join()
    said = lab.a.lines[mark:]
    assert any(word in line and "keygen" in line for line in said), said
    assert state_of(lab) == before


def state_file(lab):
    """Missing, old, damaged, another's, in use: each time it refuses and says what to do."""
    lab.a.stop()
    name = lab.path("keys", "left", f"{sites.CONN}.state")
    shutil.copy2(name, lab.path("old"))
    lab.a.start()
    traffic.ping(lab.pc_a, sites.PC_B["v4"])
    twin = lab.daemon(lab.gw_a, lab.a.config)
    twin.control = lab.path("twin.sock")
    twin.start(wait=False)
    assert twin.process.wait(20) not in (0, 99), "two daemons with the same keys"
    twin.reader.join()
    assert "another espalierd" in twin.log, twin.log
    lab.a.stop()
    shutil.copy2(name, lab.path("newest"))

    os.remove(name)
    refuses_to_start(lab, "missing")
    shutil.copy2(lab.path("old"), name)
    refuses_to_start(lab, "older")
    shutil.copy2(lab.path("keys", "right", f"{sites.CONN}.state"), name)
    refuses_to_start(lab, "other keys")
    with open(lab.path("newest"), "rb") as good, open(name, "wb") as damaged:
        damaged.write(good.read().replace(b"next ", b"next 1"))
    refuses_to_start(lab, "damaged")
    shutil.copy2(lab.path("newest"), name)
    lab.a.start()
    traffic.ping(lab.pc_a, sites.PC_B["v4"])
    print("ok: refuses without its state file, and with one that is old, damaged or another's")


def main():
    options = sites.arguments(__doc__)
    with sites.Sites(options) as lab:
        before = state_of(lab)
        keys = lab.keygen()
        lab.a = lab.daemon(lab.gw_a, os.path.join(keys, "left", "espalier.conf"))
        lab.b = lab.daemon(lab.gw_b, os.path.join(keys, "right", "espalier.conf"))
        clean_stop(lab, before)
        no_iv_twice(lab)
        no_replay_after_restart(lab)
        no_clear_text_after_a_crash(lab)
        state_file(lab)


if __name__ == "__main__":
    main()
