"""A real Linux kernel with ESP and VTI, as a box of the picture: Debian's User-Mode Linux.

It runs as a program in a namespace. Its network devices are TAPs, whose host ends are then given to the
boxes that it is cabled to. Commands go in over a serial line, one after the other.
"""

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

from .namespace import SKIPPED

SIOCETHTOOL, ETHTOOL_STSO = 0x8946, 0x1F
HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAM = "linux.uml"
MODULES = "/usr/lib/uml/modules"
# See uml_launch.py: what the kernel may not be able to keep, its programs do not use.
NO_AVX = "-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-FMA,-XSAVE,-XSAVEC,-AVX_Fast_Unaligned_Load"


def require_uml():
    """Ends the test as skipped, with the reason, where there is no such kernel."""
    reason = None
    if not shutil.which(PROGRAM) or not os.path.isdir(MODULES):
        reason = f"no {PROGRAM} (Debian's package user-mode-linux, amd64)"
    elif not shutil.which("modprobe", path="/usr/sbin:/usr/bin:/sbin:/bin"):
        reason = "no modprobe (Debian's package kmod)"
    if reason:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)


def whole_packets(box, device):
    """The TAP's host end cuts its super-packets up: the kernel inside would cut them off."""
    value = ctypes.create_string_buffer(struct.pack("II", ETHTOOL_STSO, 0))
    request = struct.pack("16sP", device.encode(), ctypes.addressof(value))
    with box.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCETHTOOL, request)


# Run inside, with the names of devices.
NO_GRO = """
import array, fcntl, socket, struct, sys
control = socket.socket()
for device in sys.argv[1:]:
    value = array.array("I", [0x2C, 0])  # ETHTOOL_SGRO
    request = struct.pack("16sP", device.encode(), value.buffer_info()[0])
    fcntl.ioctl(control, 0x8946, request)
"""


class Uml:
    """A running kernel. `cables`: the boxes that its vec0, vec1 … lead to, as (Namespace, name of the
    device there)."""

    def __init__(self, namespace, folder, cables):
        self.name = "uml"
        self.folder = os.path.join(folder, "uml")
        os.mkdir(self.folder)
        self.console = os.path.join(self.folder, "console")
        self.number = 0
        self._buffer = b""
        devices = []
        for number in range(len(cables)):
            namespace.ip(f"tuntap add dev uml{number} mode tap")
            devices.append(f"vec{number}:transport=tap,ifname=uml{number},depth=128,gro=0")
        its_input, self._input = os.pipe()
        self._output, its_output = os.pipe()
        with open(self.console, "wb") as console:
            self.process = namespace.start(
                # It is the first process of a PID namespace: nothing of it outlives it.
                *("unshare", "--pid", "--mount", "--fork", "--kill-child", "--"),
                *(sys.executable, "-B", os.path.join(HERE, "uml_launch.py"), PROGRAM, "mem=256M"),
                *("root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=-1"),
                *(f"init={HERE}/uml_init", f"FOLDER={self.folder}"),
                f"GLIBC_TUNABLES=glibc.cpu.hwcaps={NO_AVX}",
                *("con=null", "con0=null,fd:1", "ssl=null", f"ssl0=fd:{its_input},fd:{its_output}"),
                *devices,
                stdout=console,
                stderr=subprocess.STDOUT,
                pass_fds=(its_input, its_output),
            )
        os.close(its_input)
        os.close(its_output)
        assert self._answer(60) == "ready"
        self._off = threading.Event()
        self._waker = threading.Thread(target=self._wake, daemon=True)
        self._waker.start()
        # Nothing may leave a device before its other end is where it belongs: a packet that the TAP
        # refuses takes the carrier away for good.
        for number, (box, device) in enumerate(cables):
            ipv6 = f"/proc/sys/net/ipv6/conf/vec{number}/disable_ipv6"
            self.shell(f"echo 1 >{ipv6} && ip link set vec{number} up")
            namespace.ip(f"link set uml{number} netns {box.path} name {device}")
            whole_packets(box, device)
            box.ip(f"link set {device} up")
            self.shell(f"echo 0 >{ipv6}")
        self.no_gro(*(f"vec{number}" for number in range(len(cables))))

    def _wake(self):
        """On a busy machine this kernel misses that a TAP has something for it, and sleeps until the
        next signal: then let there be one."""
        unshare = self.process.pid
        with open(f"/proc/{unshare}/task/{unshare}/children", encoding="ascii") as file:
            kernel = int(file.read())
        with contextlib.suppress(ProcessLookupError):
            while not self._off.wait(0.02):
                os.kill(kernel, signal.SIGIO)

    def _answer(self, timeout):
        """The next line from the other side."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._output], [], [], max(0, deadline - time.monotonic()))
            part = os.read(self._output, 4096) if ready else b""
            if not part:
                raise AssertionError(f"the kernel does not answer:\n{self.messages()}")
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode()

    def messages(self):
        with open(self.console, encoding="utf-8", errors="replace") as file:
            return file.read()

    def shell(self, script, check=True, timeout=60):
        """Runs a script inside; returns what it printed. Raises with the output if it failed."""
        self.number += 1
        base = os.path.join(self.folder, str(self.number))
        with open(f"{base}.sh", "w", encoding="utf-8") as file:
            file.write(script)
        os.write(self._input, b"%d\n" % self.number)
        number, status = self._answer(timeout).split()
        assert number == str(self.number), number
        with open(f"{base}.out", encoding="utf-8", errors="replace") as file:
            output = file.read()
        os.unlink(f"{base}.sh")
        os.unlink(f"{base}.out")
        assert not check or status == "0", f"uml: {script}\n{output}"
        return output

    def no_gro(self, *devices):
        """No joining of packets: the driver of this kernel sends what was joined with other content."""
        self.shell(f"python3 -I -S - {' '.join(devices)} <<'END'\n{NO_GRO}END\n")

    def ip(self, words, check=True):
        return self.shell(f"ip {words}", check=check)

    def batch(self, lines):
        """Many `ip` commands for the price of one."""
        return self.shell("ip -batch - <<'END'\n" + "\n".join(lines) + "\nEND\n")

    def close(self):
        """Powers it off; what does not go is killed."""
        with contextlib.suppress(OSError):
            os.write(self._input, b"off\n")
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._off.set()
        self._waker.join()
        os.close(self._input)
        os.close(self._output)
