#!/usr/bin/python3
"""`cmake --install`: what is installed runs from there, tells systemd when it is ready and when it
stops, and systemd takes the units."""

import argparse
import glob
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from lab.daemon import SANITIZERS
from lab.namespace import Namespace


def installed(programs, prefix):
    build = os.path.dirname(os.path.abspath(programs))
    subprocess.run(["cmake", "--install", build, "--prefix", prefix], check=True, stdout=subprocess.DEVNULL)
    for name in ("bin/espalier", "sbin/espalierd", "share/doc/espalier/README.md"):
        assert os.path.exists(os.path.join(prefix, name)), f"{name} is not installed"


def notifies(prefix, folder):
    box = Namespace("service")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(os.path.join(folder, "notify"))
        manager.settimeout(20)
        control = os.path.join(folder, "control.sock")
        daemon = box.start(os.path.join(prefix, "sbin/espalierd"), "--control", control,
                           env={**os.environ, **SANITIZERS, "NOTIFY_SOCKET": manager.getsockname()})  # fmt: skip
        assert manager.recv(100) == b"READY=1"
        # Ready is who answers, and no sooner.
        box.run(os.path.join(prefix, "bin/espalier"), "status", "--control", control)
        daemon.send_signal(signal.SIGTERM)
        assert manager.recv(100) == b"STOPPING=1"
        assert daemon.wait(20) == 0
    print("ok: READY=1 when it answers, STOPPING=1 before it ends")


def units(prefix, folder):
    """As an administrator puts them in place: the drop-ins beside units like the packages'."""
    place = os.path.join(folder, "units")
    shutil.copytree(os.path.join(prefix, "lib/systemd/system"), place)
    for name in ("strongswan", "ipsec"):
        with open(os.path.join(place, f"{name}.service"), "w", encoding="ascii") as unit:
            unit.write("[Service]\nType=notify\nExecStart=/bin/true\nExecStopPost=/bin/false\n")
        os.mkdir(os.path.join(place, f"{name}.service.d"))
        shutil.copy(os.path.join(prefix, f"share/espalier/systemd/{name}.conf"),
                    os.path.join(place, f"{name}.service.d/espalier.conf"))
    for unit in sorted(glob.glob(os.path.join(place, "*.service"))):
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], text=True, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
                              env={**os.environ, "SYSTEMD_UNIT_PATH": f"{place}:"})  # fmt: skip
        said = [line for line in done.stdout.splitlines() if place in line or "espalier" in line]
        # Neither ours nor other packages' programs are where the units say.
        said = [line for line in said if "is not executable" not in line]
        assert not said, "\n".join(said)
    print("ok: systemd takes the units")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", required=True)
    programs = parser.parse_args().programs
    with tempfile.TemporaryDirectory(prefix="espalier-test.") as folder:
        prefix = os.path.join(folder, "prefix")
        installed(programs, prefix)
        notifies(prefix, folder)
        units(prefix, folder)


if __name__ == "__main__":
    main()
