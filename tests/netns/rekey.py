#!/usr/bin/python3
"""L1: a rekey a second, make before break, under full TCP and UDP load: every packet arrives.

    PC-A ─── gateway A ═══ SA 1, 2, 3, … each a second long ═══ gateway B ─── PC-B

Neither gateway has a configuration: all comes over the control sockets, as from an IKE daemon. A
longer run by hand: sudo tests/netns/rekey.py --seconds 120
"""

import subprocess
import time

from lab import sites, traffic
from lab.control import Control, fresh_key
from lab.wait import until

SAS = 1000
OVERLAP_S = 1  # that an old inbound SA stays for what is under way


class Gateway:
    """What an IKE daemon knows of one end."""

    def __init__(self, daemon, box, own, peer, near, far, address, overlap):
        self.control = Control(daemon.control)
        self.daemon, self.box, self.own, self.peer = daemon, box, own, peer
        self.inbound, self.outbound, self.overlap = [], [], overlap
        self.control.ask("vti-add", name="vti01", local=own, remote=peer, key=5, addresses=[address])
        for direction, source, destination in (("out", near, far), ("in", far, near)):
            self.control.ask("policy-add", direction=direction, source=source,
                             destination=destination, mark="5", reqid=1)
        box.ip(f"route add {far} dev vti01")

    def sa(self, direction, spi, key, encap):
        source, destination = (self.own, self.peer) if direction == "out" else (self.peer, self.own)
        return {"op": "sa-add", "direction": direction, "source": source, "destination": destination,
                "spi": spi, "suite": "aes_gcm256", "key": key, "reqid": 1, "encapsulation": encap}

    def add_inbound(self, spi, key, encap):
        """And the oldest goes."""
        ops = [self.sa("in", spi, key, encap)]
        if len(self.inbound) > self.overlap:
            ops.append({"op": "sa-delete", "id": self.inbound.pop(0)})
        self.inbound.append(self.control.ask("batch", ops=ops)["ids"][0])

    def add_outbound(self, spi, key, encap):
        """The old one goes in the same moment, with packets under way."""
        ops = [self.sa("out", spi, key, encap)]
        ops += [{"op": "sa-delete", "id": old} for old in self.outbound]
        self.outbound = self.control.ask("batch", ops=ops)["ids"]

    def counters(self):
        (vti,) = self.control.ask("vti-list")["vtis"]
        return vti

    def overflows(self):
        """Datagrams that the kernel could not queue for anybody, espalierd or a PC."""
        with self.box.entered(), open("/proc/thread-self/net/snmp", encoding="ascii") as file:
            names, values = [line.split() for line in file if line.startswith("Udp:")]
        return int(values[names.index("RcvbufErrors")])


def rekey(a, b, number, encap):
    """The order of RFC 7296 §2.8: who receives is ready before who sends begins."""
    spi, keys = 0x10000 + 2 * number, (fresh_key(), fresh_key())
    b.add_inbound(spi, keys[0], encap)
    a.add_inbound(spi + 1, keys[1], encap)
    a.add_outbound(spi, keys[0], encap)
    b.add_outbound(spi + 1, keys[1], encap)


def tcp_load(lab, seconds):
    """As much TCP as goes, both ways at once."""
    server = lab.pc_b.start("iperf3", "-s", "-1", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(lambda: ":5201" in lab.pc_b.run("ss", "-Hltn"), "the iperf3 server", timeout=10)
    client = lab.pc_a.start(
        "iperf3", "-c", sites.PC_B["v4"], "--bidir", "-t", str(seconds), "-f", "m",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    return client, server


def under_load(lab, a, b, options):
    """TCP as much as goes, UDP as much as goes, both ways, and single datagrams between."""
    addresses = sites.PC_A["v4"], sites.PC_B["v4"]
    client, server = tcp_load(lab, options.seconds)
    loads = [traffic.Exchanges(lab.pc_a, lab.pc_b, *addresses),
             traffic.Flood(lab.pc_a, lab.pc_b, *addresses),
             traffic.Flood(lab.pc_b, lab.pc_a, *reversed(addresses))]
    for load in loads:
        load.start()
    number = 1
    try:
        while client.poll() is None:
            begun = time.monotonic()
            rekey(a, b, number, options.encap)
            number += 1
            try:  # the pace is the task: one rekey in --period seconds
                client.wait(max(0.0, begun + options.period - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass
    finally:
        for load in loads:
            load.stop()
        server.wait(10)
    output = client.stdout.read()
    assert client.returncode == 0, output
    there_and_back, *floods = loads
    counts = f"{there_and_back.count} round trips, {' and '.join(str(f.sent) for f in floods)} datagrams"
    return number - 1, counts, [line for line in output.splitlines() if "receiver" in line]


def a_thousand(lab, a, b, encap):
    """L1: as many SAs of other policies are replaced in one batch; nobody waits for that."""
    addresses = sites.PC_A["v4"], sites.PC_B["v4"]
    crossing = traffic.Exchanges(lab.pc_a, lab.pc_b, *addresses)
    crossing.start()
    ids = {a: [], b: []}
    try:
        for generation in range(3):
            for end in (a, b):
                ops = []
                for number in range(SAS):
                    op = end.sa(("in", "out")[number % 2], 0x100000 + SAS * generation + number,
                                fresh_key(), encap)
                    ops.append({**op, "reqid": 1000 + number // 2})
                ops += [{"op": "sa-delete", "id": old} for old in ids[end]]
                ids[end] = end.control.ask("batch", ops=ops)["ids"][:SAS]
                assert end.control.ask("sa-count")["count"] >= SAS
    finally:
        crossing.stop()
    for end in (a, b):
        end.control.ask("batch", ops=[{"op": "sa-delete", "id": old} for old in ids[end]])
    print(f"ok: L1 {SAS} SAs replaced at once, {crossing.count} round trips meanwhile")


def main():
    options = sites.arguments(__doc__, seconds=20, period=1.0)
    with sites.Sites(options) as lab:
        ends = []
        overlap = max(1, round(OVERLAP_S / options.period))
        for box, own, peer, near, far, address in (
            (lab.gw_a, lab.left, lab.right, "10.1.3.0/24", "10.1.4.0/24", "10.0.1.1/24"),
            (lab.gw_b, lab.right, lab.left, "10.1.4.0/24", "10.1.3.0/24", "10.0.1.2/24"),
        ):
            empty = lab.path(f"{box.name}.conf")
            with open(empty, "w", encoding="ascii"):
                pass
            daemon = lab.daemon(box, empty).start(wait=False)
            daemon.wait_line("espalierd .*engine")
            ends.append(Gateway(daemon, box, own, peer, near, far, address, overlap))
        a, b = ends
        rekey(a, b, 0, options.encap)
        for end in ends:
            end.box.wait_carrier("vti01")
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        rounds, counts, rates = under_load(lab, a, b, options)
        a_thousand(lab, a, b, options.encap)
        for here, there in ((a, b), (b, a)):
            lost = {name: count for name, count in there.daemon.drops().items() if count}
            assert not lost, f"{there.box.name} dropped {lost}"
            sent, got = here.counters(), there.counters()
            for unit in ("packets", "bytes"):
                assert sent[f"tx_{unit}"] == got[f"rx_{unit}"], (
                    f"{unit} from {here.box.name}: {sent[f'tx_{unit}']} sent, "
                    f"{got[f'rx_{unit}']} arrived; the kernel's queues lost {there.overflows()} packets"
                )
        assert rounds >= options.seconds / options.period / 2, f"{rounds} rekeys only"
        print(f"ok: {rounds} rekeys, {counts}, {a.counters()['tx_packets']} and "
              f"{b.counters()['tx_packets']} packets, none lost")
        print("\n".join(rates))


if __name__ == "__main__":
    main()
