"""The loads: what is sent through a system, and the figures that come of it."""

import json
import os
import time
from dataclasses import dataclass

from .process import Failed, cpu_seconds, resident_mib, wait_for

IPERF_PORT, RR_PORT, SINK_PORT = 5201, 7000, 7001
WARM_UP_S = 0.15
LOW_LOSS = 0.01


@dataclass(frozen=True)
class Lengths:
    """How long each load runs, in seconds, and how far the search for the rate goes."""

    tcp: int
    reverse: int
    blast: float
    probe: float
    probes: int
    rtt: float
    idle: float


QUICK = Lengths(tcp=2, reverse=1, blast=0.8, probe=0.35, probes=4, rtt=0.8, idle=1.0)
FULL = Lengths(tcp=4, reverse=3, blast=2.0, probe=1.0, probes=7, rtt=3.0, idle=5.0)


class Bench:
    """One system under load: the helpers that run beside it for as long as it is up."""

    def __init__(self, system, topology, build):
        self.system, self.topology = system, topology
        self.rr = os.path.join(build, "bench", "espalier_rr")
        self.blaster = os.path.join(build, "bench", "espalier_udpblast")
        target = system.target["b"]
        self.echo = topology.spawn("b", [self.rr, "serve", target, str(RR_PORT)], piped=True)
        self.sink = topology.spawn("b", [self.blaster, "sink", target, str(SINK_PORT)], piped=True)
        for helper in (self.echo, self.sink):
            if helper.line(5) != "ready":
                raise Failed(f"{helper.name} did not start")

    def _client(self, argv):
        return self.topology.spawn("a", argv, piped=True)

    def cpu(self):
        return cpu_seconds(self.system.daemons)

    def _ping(self, seconds, gap_us):
        client = self._client([self.rr, "ping", self.system.target["b"], str(RR_PORT),
                               "--seconds", str(seconds), "--gap-us", str(gap_us)])
        return client.finish_json(seconds + 5)

    def await_path(self, seconds=8.0):
        """Until a packet comes back. Throws Failed if none does."""
        def answered():
            self.system.check()
            try:
                return self._ping(0.01, 0)["count"] > 0
            except Failed:
                return False  # no route yet: the device comes up after its daemon
        wait_for(answered, "it came up, but no packet passes", seconds)

    # The clock of the loads below is the generator's; the processor time is read around them.

    def _iperf(self, seconds, streams, reverse):
        server = self.topology.spawn("b", ["iperf3", "-s", "-1", "--forceflush", "-B",
                                           self.system.target["b"], "-p", str(IPERF_PORT)],
                                     piped=True)
        while "listening" not in server.line(3):
            pass
        words = ["iperf3", "-c", self.system.target["b"], "-p", str(IPERF_PORT), "-t",
                 str(seconds), "-P", str(streams), "-J"]
        return server, self._client(words + (["-R"] if reverse else []))

    def _iperf_result(self, server, client, seconds):
        try:
            result = client.finish_json(seconds + 6)
        finally:
            server.stop()
        if "error" in result:
            raise Failed(f"iperf3: {result['error']}")
        return result["end"]["sum_received"]

    def tcp(self, name, seconds, streams, reverse):
        before = self.cpu()
        received = self._iperf_result(*self._iperf(seconds, streams, reverse), seconds)
        cpu = self.cpu() - before
        return {f"{name}_gbps": received["bits_per_second"] / 1e9,
                f"{name}_gb_per_cpu_s": per_cpu(received["bytes"] / 1e9, cpu),
                f"{name}_cores": self._cores(cpu, received["seconds"])}

    def rtt(self, seconds):
        before = self.cpu()
        result = self._ping(seconds, 0)
        cpu = self.cpu() - before
        if result["count"] == 0:
            raise Failed("no round trip in time")
        return {"rtt_p50_us": result["p50_us"], "rtt_p99_us": result["p99_us"],
                "rtt_cpu_us": cpu / result["count"] * 1e6 if self.system.daemons else None}

    def rtt_under_load(self, seconds):
        """The same, paced, while one TCP stream runs the same way."""
        length = int(seconds + 2)
        server, client = self._iperf(length, 1, False)
        time.sleep(2 * WARM_UP_S)  # until the stream is at speed
        result = self._ping(seconds, 500)
        self._iperf_result(server, client, length)
        if result["count"] == 0:
            raise Failed("no round trip in time")
        return {"rtt_load_p50_us": result["p50_us"], "rtt_load_p99_us": result["p99_us"]}

    def _read_sink(self):
        return json.loads(self.sink.ask())

    def _drained_sink(self):
        """A reading after which nothing more arrives for a while."""
        last = self._read_sink()
        for _ in range(50):
            time.sleep(0.02)
            now = self._read_sink()
            if now["packets"] == last["packets"]:
                break
            last = now
        return last

    def _blast(self, size, seconds, rate=0.0):
        """Datagrams at `rate` a second, or as many as the socket takes. What is delivered is
        counted in a window inside the blast, what is lost over the whole of it."""
        start = self._drained_sink()
        total = WARM_UP_S + seconds + 0.05
        sender = self._client([self.blaster, "send", self.system.target["b"], str(SINK_PORT),
                               "--size", str(size), "--seconds", f"{total:.2f}",
                               "--rate", f"{rate:.0f}"])
        time.sleep(WARM_UP_S)
        first, cpu = self._read_sink(), self.cpu()
        time.sleep(seconds)
        last, cpu = self._read_sink(), self.cpu() - cpu
        sent = sender.finish_json(total + 5)
        arrived = self._drained_sink()["packets"] - start["packets"]
        tried = sent["sent"] + sent["refused"]
        packets = last["packets"] - first["packets"]
        window = (last["ns"] - first["ns"]) / 1e9
        return Blast(pps=packets / window, packets=packets, seconds=window, cpu=cpu,
                     offered_pps=tried / sent["seconds"], loss=1 - arrived / max(1, tried))

    def udp(self, name, size, lengths):
        figure, efficiency, scale = (
            (f"{name}_kpps", f"{name}_kpackets_per_cpu_s", 1e-3) if size < 512 else
            (f"{name}_gbps", f"{name}_gb_per_cpu_s", size * 8e-9))
        per_packet = 1e-3 if size < 512 else size * 1e-9
        full = self._blast(size, lengths.blast)
        best = search_low_loss(lambda rate: self._blast(size, lengths.probe, rate), full,
                               lengths.probes)
        out = {figure: full.pps * scale, f"{name}_loss": max(0.0, full.loss),
               efficiency: per_cpu(full.packets * per_packet, full.cpu),
               f"{name}_cores": self._cores(full.cpu, full.seconds)}
        out[f"{figure}_low_loss"] = best.pps * scale if best else None
        out[f"{efficiency}_low_loss"] = (
            per_cpu(best.packets * per_packet, best.cpu) if best else None)
        return out

    def _cores(self, cpu, seconds):
        return cpu / seconds if self.system.daemons else None

    def memory(self):
        """Resident memory of the larger daemon."""
        return {"rss_mib": max(map(resident_mib, self.system.daemons), default=None)}


@dataclass(frozen=True)
class Blast:
    pps: float
    packets: int
    seconds: float
    cpu: float
    offered_pps: float
    loss: float


def search_low_loss(blast, full, probes):
    """The best of `full` and at most `probes` further blasts with less than LOW_LOSS lost; None if
    there was none. `blast(rate)` makes one. Starts from what full blast delivers: below it a path
    that wastes work on what it drops does better, so the search goes both ways from there."""
    if full.loss < LOW_LOSS:
        return full
    best, above, rate = None, None, full.pps
    for _ in range(probes):
        probe = blast(rate)
        if probe.loss < LOW_LOSS:
            if best is None or probe.pps > best.pps:
                best = probe
            if probe.offered_pps < 0.9 * rate:
                break  # the sender cannot offer more
            rate = rate * 1.3 if above is None else (rate + above) / 2
        else:
            above = rate
            rate = rate * 0.6 if best is None else (best.offered_pps + above) / 2
    return best


def idle(benches, seconds):
    """What every system costs while nothing is sent, all at once: name → figures."""
    before = {name: cpu_or_none(bench) for name, bench in benches.items()}
    time.sleep(seconds)
    after = {name: cpu_or_none(bench) for name, bench in benches.items()}
    return {name: {"idle_cores": (after[name] - before[name]) / seconds}
            for name in benches if None not in (before[name], after[name])}


def cpu_or_none(bench):
    """None without daemons, and where one is gone: the next load says so."""
    try:
        return bench.cpu() if bench.system.daemons else None
    except Failed:
        return None


def per_cpu(amount, cpu):
    """None where no processor time was spent, or too little for the clock."""
    return amount / cpu if cpu > 0 else None


def loads(lengths):
    """(name, function of a Bench) in order of weight: a run cut short keeps the first."""
    return (
        ("tcp1", lambda b: b.tcp("tcp1", lengths.tcp, 1, False)),
        ("udp64", lambda b: b.udp("udp64", 64, lengths)),
        ("rtt", lambda b: b.rtt(lengths.rtt)),
        ("tcp4", lambda b: b.tcp("tcp4", lengths.tcp, 4, False)),
        ("udp1300", lambda b: b.udp("udp1300", 1300, lengths)),
        ("rtt_load", lambda b: b.rtt_under_load(lengths.rtt)),
        ("tcp1_rev", lambda b: b.tcp("tcp1_rev", lengths.reverse, 1, True)),
        ("tcp4_rev", lambda b: b.tcp("tcp4_rev", lengths.reverse, 4, True)),
        ("memory", Bench.memory),
    )
