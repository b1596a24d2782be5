"""What every seed must hold to."""

import ipaddress

from lab.wait import until
from lab.wire import esp_packet


def settle(host, address):
    """Waits until a second of echo requests is answered. Where both ends start a tunnel there may be two,
    and libreswan loses packets while the second one takes over."""
    words = f"ping -c 20 -i 0.05 -W 1 {address}".split()
    until(lambda: "20 received" in host.run(*words, check=False), f"{address} answers", timeout=30)


def only_esp(packets, *networks):
    """Of packets on the wire: nothing from or to `networks` is in clear. Returns how many were ESP."""
    inner = [ipaddress.ip_network(network) for network in networks]
    for ip in packets:
        size, first = (4, 12) if ip[0] >> 4 == 4 else (16, 8)
        ends = [ipaddress.ip_address(ip[at : at + size]) for at in (first, first + size)]
        assert not any(end in network for end in ends for network in inner), f"in clear: {ends}"
    return sum(esp_packet(ip) is not None for ip in packets)
