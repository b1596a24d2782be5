#!/usr/bin/python3
"""`espalier explain` says what then happens, and `espalier top` what happens now.

    PC-A ─── gateway A ═══ vti01: mark 5 ═══ gateway B ─── PC-B
"""

import json
import os

from lab import sites, traffic
from lab.wait import until
from lab.wire import Capture


def explain(lab, *words):
    output, _ = lab.espalier("explain", *words, "--json", "--control", lab.a.control)
    return json.loads(output)


def says(lab, words, drop):
    """What is told, and the counter that then grows."""
    told = explain(lab, *words)
    assert told.get("drop") == drop, told
    return told


def leaves(lab):
    """Device, mark, policy and SA; and the outer packet has the length that was told."""
    with Capture(lab.gw_a, "eth0") as wire:
        for size in (56, 1000):
            length = size + 28
            told = explain(lab, "src", sites.PC_A["v4"], "dst", sites.PC_B["v4"], "proto", "icmp",
                           "type", "8", "length", str(length))
            assert told["device"] == "vti01" and told["routed"] and told["mark"] == 5, told
            assert told["policy"]["action"] == "protect" and told["pieces"] == 1, told
            assert told["sa"]["spi"] == lab.a.sa("out")["spi"], told
            wire.packets()
            traffic.ping(lab.pc_a, sites.PC_B["v4"], count=1, size=size)
            assert told["outer_length"] in {len(ip) for ip in wire.packets()}, told
    before = lab.a.sa("out")["packets"]
    text, _ = lab.espalier("explain", "src", sites.PC_A["v4"], "dst", sites.PC_B["v4"], "--control",
                           lab.a.control)
    assert "leaves   as one packet of " in text and "device   vti01 mark 5" in text, text
    assert lab.a.sa("out")["packets"] == before, "something was sent"


def does_not_leave(lab):
    pc_a, pc_b = sites.PC_A["v4"], sites.PC_B["v4"]
    says(lab, ("src", "10.9.9.9", "dst", pc_b), "no_policy")
    says(lab, ("src", pc_a, "dst", "10.1.4.65"), "policy_discard")
    says(lab, ("src", pc_a, "dst", sites.OUTER["v4"][1]), "not-ours")
    says(lab, ("src", pc_a, "dst", pc_b, "dev", "eth0"), "not-ours")
    before = lab.a.status()["drops"]
    lab.pc_a.run("ping", "-c", "1", "-W", "0.1", "10.1.4.65", check=False)
    until(lambda: lab.a.status()["drops"]["policy_discard"] > before["policy_discard"], "a drop")
    for words, text in ((("dst", pc_b), "source"), (("src", pc_a, "dst", "fd00::1"), "family"),
                        (("src", pc_a, "dst", pc_b, "dport", "7"), "protocol"),
                        (("src", pc_a, "dst", "203.0.113.9"), "no route leads to 203.0.113.9")):
        output, status = lab.espalier("explain", *words, "--control", lab.a.control, check=False)
        assert status != 0 and text in output and output.count("\n") == 1, output


def top(lab):
    exchanges = traffic.Exchanges(lab.pc_a, lab.pc_b, sites.PC_A["v4"], sites.PC_B["v4"])
    exchanges.start()
    try:
        output, _ = lab.espalier("top", "--once", "--json", "--control", lab.a.control)
        text, _ = lab.espalier("top", "--once", "--interval", "0.2", "--control", lab.a.control)
    finally:
        exchanges.stop()
    now = json.loads(output)
    (device,) = now["devices"]
    assert device["name"] == "vti01" and device["tx_packets"] > 1 and device["rx_bits"] > 100, now
    assert {sa["direction"] for sa in now["sas"]} == {"in", "out"}, now
    assert set(now["drops"]) <= {"no_policy"}, now  # the kernel's own multicast reports
    assert "vti01" in text and lab.a.sa("out")["spi"] in text, text


def main():
    options = sites.arguments(__doc__)
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        with open(os.path.join(keys, "left", "espalier.conf"), "a", encoding="ascii") as file:
            file.write("[conn never]\ntype = drop\nvti-routing = no\nleftsubnet = 10.1.3.0/24\nmark = 5\n"
                       "rightsubnet = 10.1.4.64/26\n")
        lab.gateways(keys)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        leaves(lab)
        does_not_leave(lab)
        top(lab)
        print("ok: explain and top")


if __name__ == "__main__":
    main()
