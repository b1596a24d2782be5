#!/usr/bin/python3
"""A daemon with nothing to do costs no processor time.

    gateway A ═════ gateway B, silent
"""

import os
import time

from lab import sites, traffic


def ticks(daemon):
    with open(f"/proc/{daemon.pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # utime, stime: fields 14 and 15


def main():
    options = sites.arguments(__doc__)
    with sites.Sites(options) as lab:
        lab.gateways()
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        before = [ticks(daemon) for daemon in (lab.a, lab.b)]
        time.sleep(2)  # the measurement itself
        spent = [ticks(daemon) - start for daemon, start in zip((lab.a, lab.b), before)]
        assert max(spent) <= 1, f"{spent} ticks of 1/{os.sysconf('SC_CLK_TCK')} s in 2 s"


if __name__ == "__main__":
    main()
