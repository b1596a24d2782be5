"""What is reported: the keys of the JSON, the columns of the table, medians, spreads, ratios."""

import statistics
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    key: str
    title: str
    more_is_better: bool = True


# The keys that others read. The order is the table's.
FIGURES = (
    Figure("tcp1_gbps", "TCP 1, Gb/s"),
    Figure("tcp4_gbps", "TCP 4, Gb/s"),
    Figure("tcp1_rev_gbps", "TCP 1 back, Gb/s"),
    Figure("tcp4_rev_gbps", "TCP 4 back, Gb/s"),
    Figure("udp64_kpps", "UDP 64 B blast, kpps"),
    Figure("udp64_kpps_low_loss", "… loss < 1 %, kpps"),
    Figure("udp1300_gbps", "UDP 1300 B blast, Gb/s"),
    Figure("udp1300_gbps_low_loss", "… loss < 1 %, Gb/s"),
    Figure("rtt_p50_us", "RTT p50, µs", False),
    Figure("rtt_p99_us", "RTT p99, µs", False),
    Figure("rtt_load_p50_us", "RTT p50 loaded, µs", False),
    Figure("rtt_load_p99_us", "RTT p99 loaded, µs", False),
    Figure("tcp1_gb_per_cpu_s", "TCP 1, GB/CPU-s"),
    Figure("tcp4_gb_per_cpu_s", "TCP 4, GB/CPU-s"),
    Figure("tcp1_rev_gb_per_cpu_s", "TCP 1 back, GB/CPU-s"),
    Figure("tcp4_rev_gb_per_cpu_s", "TCP 4 back, GB/CPU-s"),
    Figure("udp64_kpackets_per_cpu_s", "UDP 64 B blast, kp/CPU-s"),
    Figure("udp64_kpackets_per_cpu_s_low_loss", "… loss < 1 %, kp/CPU-s"),
    Figure("udp1300_gb_per_cpu_s", "UDP 1300 B blast, GB/CPU-s"),
    Figure("udp1300_gb_per_cpu_s_low_loss", "… loss < 1 %, GB/CPU-s"),
    Figure("rtt_cpu_us", "CPU a round trip, µs", False),
    Figure("tcp1_cores", "TCP 1, CPU-s/s", False),
    Figure("tcp4_cores", "TCP 4, CPU-s/s", False),
    Figure("tcp1_rev_cores", "TCP 1 back, CPU-s/s", False),
    Figure("tcp4_rev_cores", "TCP 4 back, CPU-s/s", False),
    Figure("udp64_cores", "UDP 64 B blast, CPU-s/s", False),
    Figure("udp1300_cores", "UDP 1300 B blast, CPU-s/s", False),
    Figure("idle_cores", "idle, CPU-s/s", False),
    Figure("rss_mib", "resident, MiB", False),
    Figure("udp64_loss", "UDP 64 B blast, lost", False),
    Figure("udp1300_loss", "UDP 1300 B blast, lost", False),
)

# What the ratios and the picture show.
MAIN = tuple(f for f in FIGURES if f.key in (
    "tcp1_gbps", "tcp4_gbps", "tcp1_gb_per_cpu_s", "udp64_kpps", "udp1300_gbps", "rtt_p50_us",
    "rtt_p99_us"))


def rounded(value):
    """Four digits: more would be noise."""
    return None if value is None else float(f"{value:.4g}")


class Results:
    """The samples of every figure of every system."""

    def __init__(self, systems):
        self.systems = list(systems)
        self._samples = {(s, f.key): [] for s in self.systems for f in FIGURES}

    def add(self, system, figures):
        for key, value in figures.items():
            if value is not None:
                self._samples[system, key].append(value)

    def median(self, system, key):
        samples = self._samples[system, key]
        return statistics.median(samples) if samples else None

    def spread(self, system, key):
        samples = self._samples[system, key]
        return (min(samples), max(samples)) if samples else (None, None)

    def ratio(self, system, base, key):
        """None where either has no figure."""
        value, unit = self.median(system, key), self.median(base, key)
        return value / unit if value is not None and unit else None

    def as_json(self):
        """An object of objects: every system has the same keys, null where it has no figure."""
        out = {}
        for system in self.systems:
            row = out[system] = {}
            for figure in FIGURES:
                row[figure.key] = rounded(self.median(system, figure.key))
            for figure in FIGURES:
                low, high = self.spread(system, figure.key)
                row[f"{figure.key}_min"], row[f"{figure.key}_max"] = rounded(low), rounded(high)
        return out
