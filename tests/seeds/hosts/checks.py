"""What every seed must hold to."""

import ipaddress

from lab.wire import esp_packet


def only_esp(packets, *networks):
    """Of IPv4 packets on the wire: ESP is among them, and nothing from or to `networks` is in clear.
    Returns how many were ESP."""
    inner = [ipaddress.ip_network(network) for network in networks]
    for ip in packets:
        if ip[0] >> 4 == 4:
            ends = [ipaddress.ip_address(ip[at : at + 4]) for at in (12, 16)]
            assert not any(end in network for end in ends for network in inner), f"in clear: {ends}"
    return sum(esp_packet(ip) is not None for ip in packets)
