#!/usr/bin/python3
"""A thousand reloads, while traffic runs: the conn that stays is not touched, the one that comes and
goes leaves nothing.

    PC-A ─── gateway A ═══ vti01: always there ═══ gateway B ─── PC-B
                       ═══ vti02: every other file, changed, gone
"""

import os

from lab import sites, traffic

RELOADS = 1000
WARM_UP = 100  # what the allocator and the kernel keep for later is there by then
SLACK_KIB = 512  # what a thousand reloads may add


def seen(daemon):
    """What must be the same after every round."""
    fds = sorted(
        os.readlink(f"/proc/{daemon.pid}/fd/{fd}").split(":")[0]
        for fd in os.listdir(f"/proc/{daemon.pid}/fd")
    )
    return {
        "descriptors": fds,
        "threads": len(os.listdir(f"/proc/{daemon.pid}/task")),
        "links": daemon.namespace.links(),
        "routes": daemon.namespace.ip("route show table all"),
        "routes6": daemon.namespace.ip("-6 route show table all"),
        "sas": [sa["spi"] for sa in daemon.status()["sas"]],
    }


def replace(config, text):
    """As an editor does it: the daemon never sees half a file."""
    with open(config + ".new", "w", encoding="ascii") as file:
        file.write(text)
    os.rename(config + ".new", config)


OTHER = {
    "leftsubnet": "10.1.33.0/24", "rightsubnet": "10.1.44.0/24", "mark": "6/0xffffffff",
    "vti_interface": "vti02", "leftvti": "10.0.2.1/24", "rightvti": "10.0.2.2/24",
}


def configurations(config):
    """With the second conn; with that conn changed, twice; without it. And one that is refused."""
    with open(config, encoding="ascii") as file:
        both = file.read()
    alone = both[: both.index("[conn other]")]
    changed = both.replace("10.1.44.0/24", "10.1.45.0/24")
    return [both, changed, both + "mtu = 1300\n", alone], both + "colour = blue\n"


def main():
    options = sites.arguments(__doc__, reloads=RELOADS)
    with sites.Sites(options) as lab:
        a, _ = lab.gateways(lab.keygen_all({sites.CONN: {}, "other": OTHER}))
        good, bad = configurations(a.config)

        def load(text, answer):
            mark = a.mark()
            replace(a.config, text)
            a.reload()
            return a.wait_line(answer, since=mark)

        background = traffic.Exchanges(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"],
                                       pause=0.001)
        background.start()
        try:
            for number in range(WARM_UP + options.reloads):
                if number == WARM_UP:
                    start, start_kib = seen(a), a.rss_kib()
                load(good[number % len(good)], r"\breloaded\b")
                if number % 10 == 9:
                    load(bad, r"not reloaded.*colour")
            load(good[-1], r"\breloaded\b")
        finally:
            background.stop()
        assert seen(a) == start, f"after: {seen(a)}\nbefore: {start}"
        grown = a.rss_kib() - start_kib
        assert grown < SLACK_KIB or a.is_sanitized(), (
            f"{grown} KiB more after {options.reloads} reloads"
        )
        lost = {name: n for name, n in a.drops().items() if n}
        assert not lost, lost
        print(f"ok: {options.reloads} reloads, {background.count} round trips, {grown} KiB more")


if __name__ == "__main__":
    main()
