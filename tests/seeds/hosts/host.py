"""A host of a seed: a network namespace and a mount namespace of its own, with espalierd at its usual
place, so that what runs inside needs no option and finds /etc, /var and /run to itself.

    /usr   this machine's, with packages of build/packages over it
    /etc, /var   this machine's; what is written stays in the host
    /run   empty
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import threading

from lab.daemon import SANITIZERS
from lab.namespace import SKIPPED, Namespace
from lab.wait import until

from . import PACKAGES


class Log:
    """What a program prints, line by line."""

    def __init__(self, name):
        self.name = name
        self.lines = []
        self.changed = threading.Condition()

    def follow(self, process):
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process):
        for line in process.stdout:
            with self.changed:
                self.lines.append(line.rstrip("\n"))
                self.changed.notify_all()

    def wait(self, pattern, since=0, timeout=60):
        """The first match from line `since` on."""
        search = re.compile(pattern).search
        found = []

        def there():
            found[:] = [m for m in map(search, self.lines[since:]) if m]
            return bool(found)

        with self.changed:
            if not self.changed.wait_for(there, timeout):
                raise AssertionError(f"{self.name}: no line '{pattern}' within {timeout} s")
        return found[0]

    @property
    def text(self):
        return "\n".join(self.lines)


class Host(Namespace):
    """`packages`: those of build/packages that it has. Programs run through `run` and `start` are
    inside; `exec` puts `espalier exec` before a command."""

    def __init__(self, name, programs, packages=()):
        self.mounts = None
        super().__init__(name)
        self.programs = programs
        self.logs = []
        self.processes = []  # in the order of their start
        self._mount([os.path.join(PACKAGES, package) for package in packages])
        self.daemon = None

    def _mount(self, trees):
        for tree in trees:
            if not os.path.isdir(tree):
                print(f"skipped: needs {tree} (tools/install_packages unpacked)")
                sys.exit(SKIPPED)

        def over(top, options=""):
            lower = ":".join([*(f"{t}/{top}" for t in trees if os.path.isdir(f"{t}/{top}")), f"/{top}"])
            return f"mount -t overlay overlay -o {shlex.quote(f'lowerdir={lower}{options}')} /{top}\n"

        script = "set -e\nmount -t tmpfs tmpfs /run\nmkdir -p /run/lock /run/espalier\n"
        for top in ("etc", "var"):
            script += f"mkdir -p /run/.{top}/new /run/.{top}/work\n"
            script += over(top, f",upperdir=/run/.{top}/new,workdir=/run/.{top}/work")
        if trees:
            script += over("usr")
        with subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script + "echo ready; read _"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as holder:  # fmt: skip
            said = holder.stdout.readline()
            assert said == "ready\n", f"{self.name}: {said}{holder.stdout.read()}"
            self.mounts = os.open(f"/proc/{holder.pid}/ns/mnt", os.O_RDONLY)
            holder.stdin.close()

    def command(self, *words):
        if self.mounts is None:
            return super().command(*words)
        return ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net={self.path}",
                f"--mount=/proc/{os.getpid()}/fd/{self.mounts}", "--", *words]  # fmt: skip

    def write(self, path, text, mode=0o644):
        """A file of the host."""
        subprocess.run(self.command("sh", "-c", f'mkdir -p "$(dirname {path})"; cat >{path}; '
                                    f"chmod {mode:o} {path}"),
                       input=text, text=True, check=True, timeout=30)  # fmt: skip

    def read(self, path):
        return self.run("cat", path)

    def wait_file(self, path, log):
        until(lambda: self.run("sh", "-c", f"test -e {path} && echo there", check=False), f"{path}\n{log.text}")

    def start_logged(self, name, *words, **options):
        """A program whose output is kept: (process, log)."""
        log = Log(f"{self.name} {name}")
        process = self.start(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             errors="replace", **options)  # fmt: skip
        log.follow(process)
        self.logs.append(log)
        self.processes.append(process)
        return process, log

    def exec(self, *words):
        return [os.path.join(self.programs, "espalier"), "exec", "--", *words]

    # espalierd

    def start_daemon(self, *options):
        self.daemon, log = self.start_logged(
            "espalierd", os.path.join(self.programs, "espalierd"), *options,
            env={**os.environ, **SANITIZERS})  # fmt: skip
        log.wait("espalierd .*engine")
        return self

    def status(self):
        return json.loads(self.run(os.path.join(self.programs, "espalier"), "status", "--json"))

    def drops(self):
        """Of packets, by name; those that happened."""
        return {name: n for name, n in self.status()["drops"].items() if n}

    def stop(self):
        """Everything, the newest first."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
                process.wait(30)
        if self.daemon is not None:
            assert self.daemon.returncode in (0, -9), f"{self.name}: espalierd: {self.daemon.returncode}"

    def kill(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()

    def listen(self, address, port):
        """A TCP listener inside, for a program that is to reach it or not."""
        made = self.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen()
        return made
