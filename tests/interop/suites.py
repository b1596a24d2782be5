#!/usr/bin/python3
"""Every suite against a Linux kernel: what either seals the other opens.

    PC-A ─── gateway A │ espalierd ═══ {raw ESP, UDP 4500} over {IPv4, IPv6} ═══ Linux │ ─── PC-B
                              with {IPv4, IPv6} inside
"""

import time

from kernel import KernelSites, sites
from kernel_suites import SUITES


def main():
    options = sites.arguments(__doc__, esn="yes", only="")
    esn = options.esn == "yes"
    with KernelSites(options) as lab:
        for suite in SUITES:
            if options.only not in suite.esp:
                continue
            start = time.monotonic()
            with lab.tunnel(suite.esp, esn):
                assert lab.a.sa("out")["suite"] == suite.esp
                assert lab.a.sa("out")["esn"] == esn
                lab.all_traffic()
                lab.both_agree()
            print(f"ok: {suite.esp}: {time.monotonic() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
