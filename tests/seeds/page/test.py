#!/usr/bin/python3
"""IKE.md, tried as it is written: its files, then its commands, on both gateways.

    10.1.3.2 ── A 192.0.2.1 ═════════ 192.0.2.2 B ── 10.1.4.2
"""

import argparse
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))

from hosts import picture  # noqa: E402
from hosts.checks import only_esp  # noqa: E402
from hosts.host import Host  # noqa: E402
from lab.wait import until  # noqa: E402
from lab.wire import Capture  # noqa: E402

PAGE = os.path.join(HERE, "..", "..", "..", "IKE.md")
# What a user sees before the next command is typed.
READY = {"espalierd": r"espalierd .*engine", "charon-systemd": None, "pluto": r"listening for IKE"}
SWAPPED = {"192.0.2.1": "192.0.2.2", "10.1.4.0": "10.1.3.0"}


def section(title):
    """({path: text}, [command])"""
    with open(PAGE, encoding="utf-8") as file:
        text = re.search(rf"^## {title}\n(.*?)^## ", file.read(), re.MULTILINE | re.DOTALL)[1]
    files = dict(re.findall(r"^```ini\n# (/\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    commands = re.search(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[1].splitlines()
    assert files and 0 < len(commands) <= 5, (files, commands)
    return files, commands


def swap(text):
    both = {**SWAPPED, **{other: one for one, other in SWAPPED.items()}}
    return re.sub("|".join(map(re.escape, both)), lambda found: both[found[0]], text)


def type_in(host, command):
    shell = f'PATH={host.programs}:$PATH; sudo() {{ "$@"; }}; '
    if not command.endswith("&"):
        if device := re.search(r"route add .* dev (\S+)$", command):
            until(lambda: device[1] in host.links(), f"{host.name}: {device[1]}")
        host.run("sh", "-c", shell + command)
        return
    name, ready = next((n, r) for n, r in READY.items() if n in command)
    _, log = host.start_logged(name, "sh", "-c", shell + command.rstrip("& ").replace("sudo ", "exec "))
    if ready:
        log.wait(ready)
    else:  # it logs to the journal
        host.wait_file("/run/charon.vici", log)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", default="build/dev/tools")
    parser.add_argument("daemon", choices=("strongSwan", "libreswan"))
    options = parser.parse_args()
    options.programs = os.path.abspath(options.programs)
    packages = ["libreswan"] if options.daemon == "libreswan" else []
    files, commands = section(options.daemon)
    with picture.Picture(options) as lab:
        a, b = (lab.add(Host(name, options.programs, packages)) for name in "ab")
        lab.wire(a, "eth0", "192.0.2.1/24", b, "eth0", "192.0.2.2/24")
        pc_a, pc_b = lab.network(a, "eth1", "10.1.3.1/24"), lab.network(b, "eth1", "10.1.4.1/24")
        for host in (a, b):
            host.sysctl("net/ipv4/ip_forward", 1)
            for path, text in files.items():
                host.write(path, swap(text) if host is b else text, mode=0o600)
        for command in commands:
            type_in(a, command)
            type_in(b, swap(command))
        underlay = Capture(a, "eth0")
        until(lambda: subprocess.run(pc_a.command("ping", "-c", "1", "-W", "1", "10.1.4.2"), check=False,
                                     stdout=subprocess.DEVNULL).returncode == 0, "an answer from 10.1.4.2")  # fmt: skip
        pc_b.run("ping", "-c", "5", "-i", "0.01", "10.1.3.2")
        assert only_esp(underlay.packets(), "10.1.0.0/16") >= 12
    print(f"ok: {options.daemon} as IKE.md has it, {len(commands)} commands")


if __name__ == "__main__":
    main()
