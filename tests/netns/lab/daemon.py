"""espalierd in a namespace: started, watched, asked, stopped."""

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

from .wait import until

# With sanitizers a report must fail the test, whatever the program makes of it.
SANITIZERS = {
    "ASAN_OPTIONS": "exitcode=99:detect_leaks=1",
    "TSAN_OPTIONS": "exitcode=66:halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}


class Daemon:
    """One running espalierd. Its log is kept, line by line."""

    def __init__(self, programs, namespace, config, options=(), control=None):
        """`config`: None to run without one; then `control` is where its socket will be."""
        self.programs = programs
        self.namespace = namespace
        self.config = config
        self.control = control or os.path.splitext(config)[0] + ".sock"
        self.options = list(options)
        self.lines = []
        self.process = None
        self.reader = None
        self.baseline = {}
        self._changed = threading.Condition()

    def start(self, wait=True):
        """Starts it and waits until every conn of its file is up."""
        self.process = self.namespace.start(
            os.path.join(self.programs, "espalierd"),
            *(("--config", self.config) if self.config else ()),
            "--control",
            self.control,
            *self.options,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **SANITIZERS},
        )
        mark = len(self.lines)
        self.reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self.reader.start()
        if wait and not self.config:
            self.wait_line("espalierd .*engine", since=mark)
        elif wait:
            with open(self.config, encoding="utf-8") as file:
                conns = [line.split()[1].rstrip("]\n") for line in file if line.startswith("[conn")]
            for conn in conns:
                self.wait_line(rf"\bconn {conn} up:", since=mark)
        return self

    def start_again(self):
        """After kill(), as a supervisor would: the kernel takes a killed ring apart in its own time,
        and keeps the port until then."""

        def up():
            try:
                self.start()
                return True
            except AssertionError:
                assert "in use" in self.lines[-1] or "busy" in self.lines[-1], self.log
                return False

        until(up, "a daemon again after a crash", timeout=2)

    def _read(self, process):
        for line in process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def pid(self):
        return self.process.pid

    @property
    def log(self):
        return "\n".join(self.lines)

    def rss_kib(self):
        with open(f"/proc/{self.pid}/status", encoding="ascii") as file:
            return int(next(line for line in file if line.startswith("VmRSS:")).split()[1])

    def is_sanitized(self):
        """AddressSanitizer keeps what is freed; there its leak check at the end has the last word."""
        with open(f"/proc/{self.pid}/maps", encoding="ascii") as file:
            return "libasan" in file.read()

    def mark(self):
        """Where the log is now, for wait_line(since=…)."""
        return len(self.lines)

    def wait_line(self, pattern, since=0, timeout=30):
        """The first line from `since` on that matches; raises if it does not come."""
        search = re.compile(pattern).search
        deadline = time.monotonic() + timeout
        seen = since
        with self._changed:
            while True:
                while seen < len(self.lines):
                    if search(self.lines[seen]):
                        return self.lines[seen]
                    seen += 1
                left = deadline - time.monotonic()
                if left <= 0 or self.process.poll() is not None:
                    raise AssertionError(
                        f"no line '{pattern}' from espalierd (status {self.process.poll()}):\n"
                        + "\n".join(self.lines[since:])
                    )
                self._changed.wait(min(left, 0.2))

    def ask(self, request):
        """One request over the control socket."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(10)
            connection.connect(self.control)
            connection.sendall(json.dumps({"version": 1, **request}).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                part = connection.recv(1 << 16)
                assert part, "the daemon closed the control connection"
                answer += part
        answer = json.loads(answer)
        assert answer["ok"], answer
        return answer

    def status(self):
        return self.ask({"op": "status"})

    def drops(self):
        """The counters by name; those at zero included. Without no_policy: the kernel itself sends
        multicast reports into every device, which no policy asks for."""
        counters = self.status()["drops"]
        del counters["no_policy"]
        return counters

    def sa(self, direction, conn=None):
        (found,) = [
            sa
            for sa in self.status()["sas"]
            if sa["direction"] == direction and conn in (None, sa["conn"])
        ]
        return found

    def sa_id(self, direction):
        """As the control socket's operations name it."""
        (found,) = [sa["id"] for sa in self.ask({"op": "sa-list"})["sas"] if sa["direction"] == direction]
        return found

    def grown(self):
        """The counters that differ from the baseline, and by how much."""
        now = self.drops()
        return {name: n - self.baseline.get(name, 0) for name, n in now.items()
                if n != self.baseline.get(name, 0)}

    def wait_drops(self, **counters):
        """Waits until exactly these counters have grown, by exactly so much."""
        try:
            until(lambda: self.grown() == counters, "the counters", timeout=5)
        except AssertionError:
            raise AssertionError(f"drops: {self.grown()} instead of {counters}") from None

    def take_baseline(self):
        self.baseline = self.drops()

    def reload(self):
        os.kill(self.pid, signal.SIGHUP)

    def stop(self, number=signal.SIGTERM, timeout=30):
        """Ends it; a clean stop has status 0, and no sanitizer has anything to say."""
        if self.process is None or self.process.poll() is not None:
            return self.process and self.process.returncode
        os.kill(self.pid, number)
        status = self.process.wait(timeout)
        if number == signal.SIGTERM:
            assert status == 0, f"espalierd ended with {status}:\n{self.log}"
        return status

    def kill(self):
        """As a crash would: nothing is cleaned up."""
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait()
