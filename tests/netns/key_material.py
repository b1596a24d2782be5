#!/usr/bin/python3
"""T25, C4: keys are where they are used, and nowhere else.

    key files ─┐
    control ───┼─► espalierd ─► core file, log, listings, /proc: no key
    ip xfrm ───┘                and after a flush: no memory of it, either

Keys are searched for as bytes, as hex digits and as base64. Salts are where their SAs are, on the
heap: worth nothing without the key, and nowhere once the SA is gone. Four bytes are found by chance
as well, so each of a few salts is that of many SAs: all of them found is no chance.
"""

import base64
import os
import resource
import secrets
import signal
import subprocess

from lab import sites, traffic
from lab.control import Control
from lab.keyfile import read_keys

CHUNK = 1 << 20
SALTS, SAS_OF_A_SALT = 3, 16


def forms(key):
    """What would give `key` away: half of it is enough."""
    half = key[: len(key) // 2]
    yield half
    yield half.hex().encode()
    yield half.hex().upper().encode()
    # Of three bytes four letters are made, so the first of them are those of the whole.
    yield base64.b64encode(key)[: len(half) // 3 * 4]


class Needles:
    """The keys, by where they came in."""

    def __init__(self):
        self.forms = {}

    def add(self, way, key):
        for form in forms(key):
            self.forms[form] = way

    def found_in(self, data):
        return {way for form, way in self.forms.items() if form in data}


class Salts:
    """Salts, and how often each is found; in hex digits it is long enough to be no chance."""

    def __init__(self):
        self.all = [secrets.token_bytes(4) for _ in range(SALTS)]
        self.nonces = []  # of an SA that had traffic: the salt, and half of the number (RFC 4106 §3)

    def add_sas(self, lab):
        with Control(lab.a.control) as control:
            for number in range(SALTS * SAS_OF_A_SALT):
                key = secrets.token_bytes(32) + self.all[number % SALTS]
                control.ask("sa-add", direction="out", source=lab.left,
                            destination="192.168.1.80", spi=0x7300 + number, reqid=99,
                            suite="aes_gcm256", key=key.hex())

    def counts(self, pid):
        """How often the rarest salt is there; how often any of them as text; and any nonce."""
        as_bytes, as_text, in_nonces = [0] * SALTS, 0, 0
        for data in memory_of(pid):
            for number, salt in enumerate(self.all):
                as_bytes[number] += data.count(salt)
                as_text += data.count(salt.hex().encode())
            in_nonces += sum(data.count(nonce) for nonce in self.nonces)
        return min(as_bytes), as_text, in_nonces


def memory_of(pid):
    for *_, data in pieces(pid, core_only=False):
        yield data


def mappings(pid):
    """Of every mapping: its range, its name, and whether a core file would have it."""
    found, head = [], None
    with open(f"/proc/{pid}/smaps", encoding="ascii") as file:
        for line in file:
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                head = (*(int(end, 16) for end in words[0].split("-")), " ".join(words[5:]), words[1])
            elif words[0] == "VmFlags:" and head[3].startswith("r"):
                found.append((*head[:3], "dd" not in words))
    return found


def pieces(pid, core_only):
    """The memory of `pid`, with where it is; as root, who may look. They overlap."""
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end, name, in_core in mappings(pid):
            if name in ("[vvar]", "[vsyscall]") or (core_only and not in_core):
                continue
            before, at = b"", start
            while at < end:
                try:
                    data = os.pread(memory.fileno(), min(CHUNK, end - at), at)
                except OSError:
                    break  # pages of a device, or of nobody
                if not data:
                    break
                if data.strip(b"\0"):
                    yield name, start, before + data
                before, at = data[-128:], at + len(data)


def search(pid, needles, core_only):
    """Which keys are in the memory of `pid`, and where."""
    hits = {}
    for name, start, data in pieces(pid, core_only):
        for way in needles.found_in(data):
            hits.setdefault(way, set()).add(f"{name or 'anonymous'} {start:#x}")
    return hits


def over_the_control_socket(lab, needles):
    ways = {"control hex": lambda key: "0x" + key.hex(),
            "control base64": lambda key: base64.b64encode(key).decode()}
    with Control(lab.a.control) as control:
        for number, (way, write) in enumerate(ways.items()):
            for direction, source, destination in (
                ("out", lab.left, "192.168.1.77"), ("in", "192.168.1.77", lab.left),
            ):
                key = secrets.token_bytes(36)
                needles.add(way, key[:32])
                control.ask("sa-add", direction=direction, source=source, destination=destination,
                            spi=0x7000 + 2 * number + (direction == "in"), reqid=99,
                            suite="aes_gcm256", key=write(key))
        # And those that are refused leave nothing, either.
        key = secrets.token_bytes(36)
        needles.add("refused", key)
        assert not control.try_ask("sa-add", spi=7, key=key.hex())["ok"]
        assert not control.try_ask("sa-add", spi=0x9999, key=key.hex() + "zz")["ok"]
        assert not control.try_ask("batch", ops=[{"op": "sa-add", "key": key.hex()}])["ok"]


def by_command(lab, needles):
    key = secrets.token_bytes(36)
    needles.add("espalier sa", key[:32])
    name = lab.path("key")
    with open(name, "w", encoding="ascii") as file:
        file.write(key.hex())
    lab.espalier("sa", "--control", lab.a.control, "add", "src", lab.left, "dst", "192.168.1.78",
                 "spi", "0x7100", "dir", "out", "suite", "aes_gcm256", "key-file", name)


def by_xfrm(lab, needles):
    """The keeper of the sandbox lives as long as the program in it: it is looked at as well."""
    keys = {"xfrm aead": secrets.token_bytes(36), "xfrm cipher": secrets.token_bytes(32),
            "xfrm auth": secrets.token_bytes(32)}
    for way, key in keys.items():
        needles.add(way, key[:32])
    state = f"ip xfrm state add src {lab.left} dst 192.168.1.79 proto esp"
    script = (
        f"{state} spi 0x7200 mode tunnel aead 'rfc4106(gcm(aes))' 0x{keys['xfrm aead'].hex()} 128 && "
        f"{state} spi 0x7201 mode tunnel enc 'cbc(aes)' 0x{keys['xfrm cipher'].hex()} "
        f"auth-trunc 'hmac(sha256)' 0x{keys['xfrm auth'].hex()} 128 && echo done && exec sleep 1000"
    )  # fmt: skip
    name = lab.path("script")  # on a command line everybody would see the keys
    with open(name, "w", encoding="ascii") as file:
        file.write(script)
    program = lab.gw_a.start(
        os.path.join(lab.options.programs, "espalier"), "exec", "--control", lab.a.control,
        "--", "sh", name, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert program.stdout.readline() == b"done\n"
    return program


def look_around(lab, needles):
    """Log, listings, and what /proc shows to everybody."""
    texts = {"log": lab.a.log}
    for words in (["status"], ["status", "--json"], ["sa", "list"], ["policy", "list"], ["vti"],
                  ["sa", "list", "--json"]):
        texts[" ".join(words)] = lab.espalier(words[0], "--control", lab.a.control, *words[1:],
                                              check=False)[0]
    for name in ("cmdline", "environ", "comm", "status", "maps"):
        with open(f"/proc/{lab.a.pid}/{name}", "rb") as file:
            texts[name] = file.read().decode("latin-1")
    for name, text in texts.items():
        found = needles.found_in(text.encode("utf-8", "replace"))
        assert not found, f"a key ({found}) in {name}"


def assert_nothing(hits, where):
    assert not hits, f"{where}: " + "; ".join(f"{way} in {sorted(at)}" for way, at in hits.items())


def core_on_abort(lab):
    """No core file, and not for who raises the limit either: the process is not dumpable."""
    try:
        resource.prlimit(lab.a.pid, resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
    except PermissionError:  # a container's root may not; then the limit itself stands
        pass
    cwd = os.readlink(f"/proc/{lab.a.pid}/cwd")
    before = set(os.listdir(cwd))
    os.kill(lab.a.pid, signal.SIGABRT)
    status = lab.a.process.wait(30)
    assert status == -signal.SIGABRT, status
    new = [name for name in set(os.listdir(cwd)) - before if "core" in name]
    assert not new, f"{new} in {cwd}"


def main():
    options = sites.arguments(__doc__)
    with sites.Sites(options) as lab:
        keys = lab.keygen()
        needles = Needles()
        made = read_keys(os.path.join(keys, "left", f"{sites.CONN}.keys"))
        for keymat in (made.keymat_in, made.keymat_out):
            needles.add("key file", keymat[:32])
        salts = Salts()
        salts.nonces = [keymat[32:] + bytes(4) for keymat in (made.keymat_in, made.keymat_out)]
        lab.gateways(keys)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        over_the_control_socket(lab, needles)
        salts.add_sas(lab)
        by_command(lab, needles)
        program = by_xfrm(lab, needles)
        traffic.ping(lab.pc_a, sites.PC_B["v4"])
        look_around(lab, needles)
        # The search finds what is there: where a core file does not look.
        everywhere = search(lab.a.pid, needles, core_only=False)
        missing = {way for way in needles.forms.values() if way not in ("refused", "xfrm auth")}
        missing -= set(everywhere)
        assert not missing, f"no {missing} anywhere: the search itself is broken"
        as_bytes, as_text, in_nonces = salts.counts(lab.a.pid)
        assert as_bytes >= SAS_OF_A_SALT and in_nonces, "no salts anywhere: the search is broken"
        assert as_text == 0, "a salt in hex digits"
        assert_nothing(search(lab.a.pid, needles, core_only=True), "a core file of espalierd")
        assert_nothing(search(program.pid, needles, core_only=True), "a core file of espalier exec")
        program.kill()
        program.wait()
        lab.gw_a.run(os.path.join(options.programs, "espalier"), "exec", "--control", lab.a.control,
                     "--", "ip", "xfrm", "state", "flush")
        with Control(lab.a.control) as control:
            control.ask("flush", what="all")
        with open(lab.a.config, "w", encoding="ascii") as file:
            file.write("# nothing\n")
        mark = lab.a.mark()
        lab.a.reload()
        lab.a.wait_line("reloaded", since=mark)
        assert_nothing(search(lab.a.pid, needles, core_only=False), "after a flush")
        left = salts.counts(lab.a.pid)
        assert left == (0, 0, 0), f"salts after a flush, as bytes, as text, in nonces: {left}"
        look_around(lab, needles)
        core_on_abort(lab)
        print(f"ok: T25: {len(needles.forms)} forms of keys looked for")


if __name__ == "__main__":
    main()
