#!/usr/bin/python3
"""Our VTI against the kernel's: devices with marks that are each end's own business.

    PC-A ─── gateway A │ vti01 mark 5 ═══════════ vti01 ikey 21, okey 42 │ Linux │ ─── PC-B
                         10.0.1.1                 10.0.1.2
"""

import socket

from kernel import KernelSites, sites
from lab import traffic
from lab.wait import until
from lab.wire import Capture

IKEY, OKEY = 21, 42
EVERYTHING = {"leftsubnet": "0.0.0.0/0,::/0", "rightsubnet": "0.0.0.0/0,::/0", "vti_routing": "no"}
RIP = "224.0.0.9"


def device(lab, ikey=IKEY, okey=OKEY):
    """The commands that make the kernel's device, as updown scripts give them."""
    kind = "vti6" if ":" in lab.left else "vti"
    return [
        f"link add vti01 type {kind} local {lab.right} remote {lab.left} ikey {ikey} okey {okey}",
        "link set vti01 up multicast on",
        "address add 10.0.1.2/24 dev vti01",
        *lab.routes("vti01"),
    ]


def policies(lab, mark_in=IKEY, mark_out=OKEY):
    return lab.policies("0.0.0.0/0,::/0", "0.0.0.0/0,::/0",
                        f"mark {mark_in} mask 0xffffffff", f"mark {mark_out} mask 0xffffffff")


def our_routes(lab):
    for subnet in sites.RIGHT_SUBNETS.split(","):
        lab.gw_a.ip(f"route replace {subnet} dev vti01")


def kernel_device(lab):
    """Packets and bytes of the kernel's device."""
    lines = lab.kernel.shell(
        "cd /sys/class/net/vti01/statistics; cat rx_packets rx_bytes tx_packets").split()
    return tuple(map(int, lines))


def multicast(lab):
    """As a routing daemon sends it: out of one device, in at the other."""
    sender = lab.gw_a.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.0.1.1"))
    before = kernel_device(lab)[0]
    for _ in range(10):
        sender.sendto(b"rip", (RIP, 520))
    until(lambda: kernel_device(lab)[0] >= before + 10, "multicast in the kernel's device")
    with Capture(lab.gw_a, "vti01", incoming_only=True) as inside:
        lab.kernel.shell(f"ping -c 1 -W 0.1 -I vti01 {RIP}", check=False)
        inside.wait(lambda ip: ip[16:20] == socket.inet_aton(RIP))


def devices_agree(lab):
    """Our device has sent what the kernel's has received, and the other way round."""
    def counts():
        (ours,) = lab.a.status()["devices"]
        rx, rx_bytes, tx = kernel_device(lab)
        return (ours["tx_packets"], ours["tx_bytes"], ours["rx_packets"]), (rx, rx_bytes, tx)

    until(lambda: len(set(counts())) == 1, f"{counts()}")


def both_ways(lab):
    with lab.tunnel(kernel=[*device(lab), *policies(lab)], **EVERYTHING):
        our_routes(lab)
        traffic.ping(lab.gw_a, "10.0.1.2")
        lab.kernel.shell("ping -q -c 3 -i 0.01 10.0.1.1")
        lab.all_traffic()
        multicast(lab)
        devices_agree(lab)
        lab.both_agree()
        lab.kernel.ip("link del vti01")
    print("ok: VTI against VTI")


def carries(ip):
    """ESP, raw or in UDP, or a host's own packet; not what a kernel says to its neighbours."""
    if ip[0] >> 4 == 6:
        return ip[6] in (17, 50) or ip[8:14] == bytes.fromhex("fd0000100001")
    return ip[9] in (17, 50) or ip[12:14] == bytes((10, 1))


def no_clear_text(lab):
    """A mark that no policy of the kernel's has: nothing passes in either direction, neither sealed
    nor in the clear, and the kernel counts what it refused."""
    wrong = [*device(lab, ikey=IKEY + 1, okey=OKEY + 1), *policies(lab)]
    with lab.tunnel(kernel=wrong, **EVERYTHING):
        our_routes(lab)

        def refused():
            return lab.xfrm_errors().get("XfrmInNoPols", 0) - lab.errors_before.get("XfrmInNoPols", 0)

        with Capture(lab.gw_a, "eth0", incoming_only=True) as wire, Capture(
            lab.pc_b, "eth0", incoming_only=True
        ) as behind:
            lab.pc_a.run("ping", "-q", "-c", "3", "-i", "0.01", "-W", "0.1", sites.PC_B["v4"],
                         check=False)
            lab.pc_b.run("ping", "-q", "-c", "3", "-i", "0.01", "-W", "0.1", sites.PC_A["v4"],
                         check=False)
            until(lambda: refused() >= 3, f"three packets refused: {lab.xfrm_errors()}")
            sent = [ip.hex() for ip in wire.packets() if carries(ip)]
            assert not sent, f"the kernel sent {sent}"
            assert not [ip for ip in behind.packets() if ip[12:16] == socket.inet_aton("10.1.3.2")]
        lab.kernel.ip("link del vti01")
    print("ok: no clear text through a device whose marks match nothing")


def main():
    options = sites.arguments(__doc__)
    with KernelSites(options) as lab:
        both_ways(lab)
        no_clear_text(lab)


if __name__ == "__main__":
    main()
