#!/usr/bin/python3
"""Seed 001: strongSwan with an updown script that makes the VTI; virtual addresses, mark=2, auto=route.

    client 192.0.2.10 ══════════════ 192.0.2.1 gateway
     └ vti1 10.99.0.1             vti7 ┘ └ a host, 10.3.0.2

With --nat the client has 10.77.0.2 and is seen as 192.0.2.10. With --outer v6 the client's script makes
a vti6, for which iproute2 has another command.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from hosts import picture  # noqa: E402
from hosts.document import Document  # noqa: E402
from lab import traffic  # noqa: E402
from lab.wait import until  # noqa: E402

ENDS = {"v4": ("192.0.2.10", "192.0.2.1", 24), "v6": ("2001:db8:1::10", "2001:db8:1::1", 64)}
BEHIND_NAT = "10.77.0.2"
NETWORK, INSIDE = "10.3.0.0/24", "10.3.0.2"
SECRETS = "gateway.example : PSK not-a-secret\n"
# The document has nothing about the other end: any gateway that gives addresses away.
GATEWAY = """conn clients
    left={left}
    leftid=gateway.example
    leftsubnet=0.0.0.0/0,::/0
    right=%any
    rightsourceip=10.99.0.0/24,fd99::/120
    authby=secret
    auto=add
    mark=7
"""
V6 = {
    'ip tunnel add "${VTI_IF}" mode vti': 'ip link add "${VTI_IF}" type vti6',
}


def gateway_of(host, address, options):
    host.charon_settings(Document(__file__, "charon.conf").text)
    kind = ("ip", "tunnel", "add", "vti7", "mode", "vti", "local", address, "remote", "0.0.0.0")
    if options.outer == "v6":
        kind = ("ip", "link", "add", "vti7", "type", "vti6", "local", address, "remote", "::")
    host.start_daemon()
    host.run(*host.exec(*kind, "key", "7"))
    host.ip("link set vti7 up")
    host.ip("route add 10.99.0.0/24 dev vti7")
    host.start_ipsec(GATEWAY.format(left=address), SECRETS)


def client_of(host, gateway, options):
    host.run("mount", "-t", "tmpfs", "tmpfs", "/usr/local/sbin")
    script = Document(__file__, "ipsec-notify.sh").filled(
        "client", {"<tunneled-network>": NETWORK, **(V6 if options.outer == "v6" else {})})
    host.write("/usr/local/sbin/ipsec-notify.sh", script, mode=0o755)
    host.charon_settings(Document(__file__, "charon.conf").text)
    conf = Document(__file__, "ipsec.conf").filled(
        "client", {"<vpngw>": "vpngw", "<vpngw_ip>": gateway, "<vpngw_id>": "gateway.example"},
        "    authby=secret\n")
    host.start_daemon()
    host.start_ipsec(conf, SECRETS)


def devices(host):
    return host.ip("-brief link")


def main():
    options = picture.arguments(__doc__)
    here, there, length = ENDS[options.outer]
    with picture.Picture(options) as lab:
        client, gateway = lab.strongswan("client"), lab.strongswan("gateway")
        if options.nat:
            lab.nat(client, f"{BEHIND_NAT}/24", gateway, f"{there}/{length}", f"{here}/{length}")
        else:
            lab.wire(client, "eth0", f"{here}/{length}", gateway, "eth0", f"{there}/{length}")
            client.ip(f"{'-6 ' if options.outer == 'v6' else ''}route add default via {there}")
        lab.network(gateway, "inside", "10.3.0.1/24")
        gateway_of(gateway, there, options)
        client_of(client, there, options)
        until(lambda: "mark 0x2/0xffffffff" in client.run(*client.exec("ip", "xfrm", "policy")),
              "auto=route: a policy that waits for traffic")  # fmt: skip

        for _ in range(2):
            client.run("ipsec", "up", "vpngw")
            until(lambda: "10.99.0.1" in client.ip("-brief address") and NETWORK in client.ip("route"),
                  "what the script makes")
            traffic.ping(client, INSIDE)
            traffic.ping(client, INSIDE, size=1300)
            until(lambda: "fd99::1/128" in client.run("ipsec", "status"), "the IPv6 address in the status")
            status = client.run("ipsec", "status")
            assert ("ESP in UDP" in status) == options.nat, status
            client.run("ipsec", "down", "vpngw")
            until(lambda: "vti" not in devices(client), "the script takes its device away")
        assert not client.drops() or set(client.drops()) <= {"no_policy", "no_sa"}, client.drops()


if __name__ == "__main__":
    main()
