#!/usr/bin/python3
"""tools/demo does what it says, and leaves nothing behind however it ends.

    PC-A ─── gateway A ═════════ gateway B ─── PC-B, all of it made by the demo
"""

import argparse
import glob
import os
import signal
import subprocess
import tempfile

from lab.namespace import require_root

DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "demo")


def start(build, *flags):
    return subprocess.Popen(
        [DEMO, "--build", build, *flags],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
    )


def left_behind(process):
    """What carries the process number of the demo, and its folder."""
    listed = subprocess.run(["ip", "netns", "list"], stdout=subprocess.PIPE, text=True, check=True)
    spaces = [line for line in listed.stdout.splitlines() if line.startswith(f"esp{process.pid}-")]
    return spaces + glob.glob(f"/tmp/espalier-demo.{process.pid}.*")


def shows(build, flags, wire):
    process = start(build, *flags)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    for word in ("5 received", "ICMP echo request", wire, "conn routed-vpn: up", "Gb/s"):
        assert word in output, f"no '{word}' in:\n{output}"
    assert not left_behind(process), left_behind(process)


def interrupted(build, number, at):
    """Stopped in the middle: at the line that has `at`."""
    process = start(build)
    for line in process.stdout:
        if at in line:
            assert left_behind(process), "nothing was up"
            process.send_signal(number)
            break
    process.communicate(timeout=60)
    assert process.returncode == 128 + number, process.returncode
    assert not left_behind(process), left_behind(process)


def fails(build):
    """A daemon that does not start: said, counted as a failure, cleaned up."""
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(os.path.join(folder, "tools"))
        os.symlink("/bin/false", os.path.join(folder, "tools", "espalierd"))
        os.symlink(os.path.join(build, "tools", "espalier"), os.path.join(folder, "tools", "espalier"))
        process = start(folder)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1 and "FAILED" in output, output
        assert not left_behind(process), left_behind(process)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build/dev")
    parser.add_argument("--case", choices=("natt", "esp", "ipv6", "esp-ipv6", "ends"), required=True)
    options = parser.parse_args()
    build = os.path.abspath(options.build)
    require_root()
    if options.case == "ends":
        interrupted(build, signal.SIGTERM, "iperf3, TCP")
        interrupted(build, signal.SIGINT, "ping from PC-A")
        fails(build)
        return
    flags = [f"--{flag}" for flag in options.case.split("-")]
    shows(build, flags, "ESP(spi=0x" if "esp" in options.case else "UDP-encap: ESP(spi=0x")


if __name__ == "__main__":
    main()
