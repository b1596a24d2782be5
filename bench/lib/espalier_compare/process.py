"""Child processes that never outlive the run, and what they cost."""

import ctypes
import json
import os
import selectors
import signal
import subprocess
import time

_TICKS = os.sysconf("SC_CLK_TCK")
_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class Failed(Exception):
    """A system or a load cannot be had; the text is the one line that says why."""


def _die_with_parent():
    # Survives execve, so that even a killed comparison leaves no process behind.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def run(argv, timeout=20):
    """Runs a command to its end and returns its output. Throws Failed with its last line."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=timeout, text=True,
                              errors="replace", start_new_session=True,
                              preexec_fn=_die_with_parent, check=False)
    except FileNotFoundError:
        raise Failed(f"{argv[0]}: not installed") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"{' '.join(argv[:3])} …: no end after {timeout} s") from None
    if done.returncode != 0:
        raise Failed(f"{' '.join(argv[:3])} …: {last_line(done.stdout)}")
    return done.stdout


def last_line(text):
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def wait_for(condition, what, seconds=8.0):
    """Polls until `condition()` is true. Throws Failed(`what`) when it does not become so."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            raise Failed(what)
        time.sleep(0.02)


class Process:
    """A background process. Its standard error goes to `log`, so does its output unless piped."""

    def __init__(self, argv, log, piped=False, env=None):
        self.name = os.path.basename(argv[0])
        self.log = log
        with open(log, "ab") as sink:
            self.popen = subprocess.Popen(
                argv, stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else sink, stderr=sink, bufsize=0,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True, preexec_fn=_die_with_parent)
        self._pending = b""

    @property
    def pid(self):
        return self.popen.pid

    def alive(self):
        return self.popen.poll() is None

    def check(self, name=None):
        """Throws Failed if the process has ended."""
        if not self.alive():
            with open(self.log, encoding="utf-8", errors="replace") as log:
                said = last_line(log.read())
            raise Failed(f"{name or self.name} ended with {self.popen.returncode}: {said}")

    def line(self, seconds):
        """The next line of the piped output. Throws Failed if none comes."""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.popen.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise Failed(f"{self.name}: no answer in {seconds} s")
                chunk = os.read(self.popen.stdout.fileno(), 65536)
                if not chunk:
                    self.popen.wait()
                    self.check()
                self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode(errors="replace")

    def ask(self, seconds=2.0):
        """Sends an empty line and returns the answer."""
        try:
            self.popen.stdin.write(b"\n")
        except BrokenPipeError:
            self.popen.wait()
            self.check()
        return self.line(seconds)

    def finish(self, seconds):
        """Waits for the end; returns what is left of the output. Throws Failed on a timeout."""
        try:
            rest, _ = self.popen.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise Failed(f"{self.name}: no end after {seconds:.0f} s") from None
        return (self._pending + (rest or b"")).decode(errors="replace")

    def finish_json(self, seconds):
        """The same, for a program that prints one JSON value, whatever its exit status."""
        text = self.finish(seconds)
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            self.check()
            raise Failed(f"{self.name}: no result: {last_line(text)}") from None

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not self.alive():
                break
            self.popen.send_signal(number)
            try:
                self.popen.wait(3)
            except subprocess.TimeoutExpired:
                continue
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


def cpu_seconds(processes):
    """User and system time of the processes so far, their threads included (proc(5))."""
    ticks = 0
    for process in processes:
        try:
            with open(f"/proc/{process.pid}/stat", encoding="ascii", errors="replace") as stat:
                # The name may hold blanks and parentheses: count the fields behind its last one.
                fields = stat.read().rpartition(")")[2].split()
        except OSError:
            raise Failed(f"{process.name}: gone") from None
        ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS


def resident_mib(process):
    """Resident memory (proc(5): VmRSS, in kB)."""
    try:
        with open(f"/proc/{process.pid}/status", encoding="utf-8", errors="replace") as status:
            words = next(line for line in status if line.startswith("VmRSS:")).split()
    except (OSError, StopIteration):
        raise Failed(f"{process.name}: gone") from None
    return int(words[1]) / 1024
