"""What a seed's test stands on: hosts, wires between them, and a NAT if the variant wants one."""

import argparse
import ipaddress
import os
import sys

from lab.namespace import Namespace, exit_on_signals, require_root

from .libreswan import Libreswan
from .strongswan import Strongswan

BEHIND_NAT = "10.77.0.2/24"
LOG_SHOWN = 60  # lines of each program, when a test fails


def arguments(description, **extra):
    """The options that every test has. `extra`: further options and their defaults."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--programs", default="build/dev/tools", help="folder of the programs")
    parser.add_argument("--nat", action="store_true", help="a NAT between the gateways")
    parser.add_argument("--outer", choices=("v4", "v6"), default="v4")
    for name, default in extra.items():
        parser.add_argument(f"--{name}", default=default, type=type(default))
    chosen = parser.parse_args()
    chosen.programs = os.path.abspath(chosen.programs)
    return chosen


def neighbour(address):
    """The other end of a wire: (address, prefix length)."""
    address, length = address.split("/")
    if ":" in address:
        return address.rsplit(":", 1)[0] + ":fe", length
    return address.rsplit(".", 1)[0] + ".254", length


class Picture:
    """A context manager: stops what runs, and shows the logs of a test that failed."""

    def __init__(self, options):
        require_root()
        exit_on_signals()
        self.options = options
        self.hosts = []
        self.boxes = []  # kept: a namespace ends with its last descriptor

    def add(self, host):
        self.hosts.append(host)
        return host

    def libreswan(self, name, packages=()):
        return self.add(Libreswan(name, self.options.programs, packages))

    def strongswan(self, name):
        return self.add(Strongswan(name, self.options.programs))

    @staticmethod
    def wire(one, device, address, other, other_device, other_address):
        """A cable; addresses with their prefix length."""
        one.join(device, other, other_device)
        for box, name, own in ((one, device, address), (other, other_device, other_address)):
            box.ip(f"address add {own} dev {name}" + (" nodad" if ":" in own else ""))

    def network(self, host, device, address):
        """A network behind a host; returns what is in it: the next address, routed by way of it."""
        inside = Namespace(f"behind {host.name}")
        own, length = address.split("/")
        self.wire(host, device, address, inside, "eth0", f"{ipaddress.ip_address(own) + 1}/{length}")
        inside.ip(f"{'-6 ' if ':' in own else ''}route add default via {own}")
        self.boxes.append(inside)
        return inside

    def nat(self, inside, inside_address, outside, outside_address, public):
        """`inside` reaches `outside` through a router that puts the address `public` and ports of
        its own before all that it sends. Returns the router."""
        router = Namespace("nat")
        gateway, length = neighbour(inside_address)
        self.wire(inside, "eth0", inside_address, router, "eth0", f"{gateway}/{length}")
        self.wire(outside, "eth0", outside_address, router, "eth1", public)
        inside.ip(f"route add default via {gateway}")
        self.masquerade(router, "eth1")
        self.boxes.append(router)
        return router

    def internet(self, places):
        """A router with a leg to each host. `places`: {host: (address/length, whether there is a NAT before
        it)}; behind its NAT a host has BEHIND_NAT, and is seen as the address that is written."""
        router = Namespace("internet")
        self.boxes.append(router)
        for number, (host, (address, behind_nat)) in enumerate(places.items()):
            box = host
            if behind_nat:
                box = Namespace(f"nat of {host.name}")
                self.boxes.append(box)
                gateway, length = neighbour(BEHIND_NAT)
                self.wire(host, "eth0", BEHIND_NAT, box, "eth1", f"{gateway}/{length}")
                host.ip(f"route add default via {gateway}")
                self.masquerade(box, "eth0")
            gateway, length = neighbour(address)
            self.wire(box, "eth0", address, router, f"eth{number}", f"{gateway}/{length}")
            box.ip(f"{'-6 ' if ':' in gateway else ''}route add default via {gateway}")
        return router

    @staticmethod
    def masquerade(router, device):
        router.run("nft", "add table inet nat; add chain inet nat post { type nat hook postrouting "
                   "priority 100; }; add rule inet nat post meta l4proto udp oifname "
                   f"{device} masquerade to :20000-30000; add rule inet nat post oifname "
                   f"{device} masquerade")  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        failed = kind is not None and kind is not SystemExit
        for host in reversed(self.hosts):
            host.kill() if failed else host.stop()
        if failed:
            for log in (log for host in self.hosts for log in host.logs):
                print(f"--- {log.name}", *log.lines[-LOG_SHOWN:], sep="\n", file=sys.stderr)
