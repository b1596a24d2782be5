#!/usr/bin/python3
"""The same `ip xfrm` commands, good and bad, to a real kernel and to espalierd behind `espalier exec`: the
same output, the same errors, the same exit status. Where they differ, DELIBERATE says why.

    user-mode-linux (its kernel has ESP)      namespace ── espalierd
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "netns"), os.path.join(HERE, "..", "xfrm")]

import xfrm_messages  # noqa: E402
from ip_xfrm import Gateway  # noqa: E402
from lab.namespace import Namespace, exit_on_signals, require_root  # noqa: E402
from lab.uml import Uml, require_uml  # noqa: E402

MESSAGES = os.path.join(HERE, "xfrm_messages.py")
A, B, A6, B6 = "10.9.0.1", "10.9.0.2", "2001:db8::1", "2001:db8::2"
SETUP = (
    "ip link set lo up\n"
    f"ip addr add {A}/24 dev lo\nip addr add {xfrm_messages.C}/24 dev lo\nip addr add {A6}/64 dev lo nodad\n"
)  # fmt: skip
LEFT_OUT = re.compile(r"\b(add|use) \d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\b(add|use) -|lastused .*")


def key(number, count=36):
    return "0x" + f"{number:02x}" * count


OUT, IN = f"src {A} dst {B} proto esp", f"src {B} dst {A} proto esp"
GCM = "aead rfc4106(gcm(aes))"
TMPL = f"tmpl src {A} dst {B} proto esp reqid 7 mode tunnel"
TMPL_IN = f"tmpl src {B} dst {A} proto esp reqid 7 mode tunnel"

COMMANDS = (
    # states that are good
    f"state add {OUT} spi 0x1000 reqid 7 mode tunnel {GCM} {key(1)} 128",
    f"state add {IN} spi 0x2000 reqid 7 mode tunnel replay-window 32 {GCM} {key(2)} 128",
    f"state add {IN} spi 0x2001 mode tunnel flag esn replay-window 128 {GCM} {key(3, 20)} 64",
    f"state add {OUT} spi 0x3000 mode tunnel mark 5 mask 0xff auth-trunc hmac(sha256) {key(4, 32)} 128"
    f" enc cbc(aes) {key(5, 32)} encap espinudp 4500 4501 0.0.0.0",
    f"state add {OUT} spi 0x3001 mode tunnel auth hmac(sha1) {key(6, 20)} enc cbc(aes) {key(7, 16)}",
    f"state add {OUT} spi 0x3002 mode tunnel if_id 9 output-mark 7 mask 0xf {GCM} {key(8)} 128",
    f"state add src {A6} dst {B6} proto esp spi 0x3003 mode tunnel {GCM} {key(9)} 96",
    f"state add {OUT} spi 0x3004 reqid 9 mode tunnel flag af-unspec flag noecn {GCM} {key(10)} 128"
    " limit time-soft 100 limit time-hard 200 limit byte-soft 1000 limit packet-hard 50",
    f"state add {IN} spi 0x2002 mode tunnel replay-window 0 {GCM} {key(11)} 128",
    f"state add {OUT} spi 0x3005 mode tunnel tfcpad 100 {GCM} {key(12)} 128",
    "state list",
    f"state list src {B}",
    f"state get {OUT} spi 0x1000",
    f"-s state get {IN} spi 0x2000",
    f"-s state get {OUT} spi 0x3004",
    f"state get {OUT} spi 0x3000 mark 5 mask 0xff",
    f"state get {OUT} spi 0x3000 mark 6",
    f"state update {IN} spi 0x2000 reqid 7 mode tunnel replay-window 32 {GCM} {key(2)} 128"
    " limit time-hard 7200",
    f"-s state get {IN} spi 0x2000",
    "state count",
    # states that are bad
    f"state add {OUT} spi 0x1000 mode tunnel {GCM} {key(20)} 128",
    f"state update {OUT} spi 0x9999 mode tunnel {GCM} {key(21)} 128",
    f"state delete {OUT} spi 0x9999",
    f"state get {OUT} spi 0x9999",
    f"state add {OUT} spi 0x9998 mode tunnel aead rfc4106(nonsense) {key(22)} 128",
    f"state add {OUT} spi 0x9998 mode tunnel auth-trunc hmac(nonsense) {key(22)} 128"
    f" enc cbc(aes) {key(22, 16)}",
    f"state add {OUT} spi 0x9998 mode tunnel auth-trunc hmac(sha256) {key(22, 32)} 128"
    f" enc nonsense {key(22, 16)}",
    f"state add {OUT} spi 0x9998 mode tunnel {GCM} {key(23, 21)} 128",
    f"state add {OUT} spi 0x9998 mode tunnel {GCM} {key(23)} 100",
    f"state add {OUT} spi 0x9998 mode tunnel",
    f"state add {OUT} spi 0x9998 mode tunnel {GCM} {key(24)} 128 auth-trunc hmac(sha256) {key(24, 32)} 128",
    f"state add src {A} dst {B} proto ah spi 0x9998 mode tunnel auth-trunc hmac(sha256) {key(25, 32)} 128",
    # larval states
    f"state allocspi {IN} mode tunnel reqid 3 min 0x5000 max 0x5000",
    f"state allocspi {IN} mode tunnel min 0x6000 max 0x5000",
    f"state update {IN} spi 0x5000 reqid 3 mode tunnel replay-window 32 {GCM} {key(30)} 128",
    f"state get {IN} spi 0x5000",
    f"state delete {OUT} spi 0x1000",
    f"state delete {OUT} spi 0x1000",
    f"state deleteall src {B}",
    "state list",
    "state flush",
    "state list",
    "state count",
    "state flush",
    # policies
    f"policy add src 0.0.0.0/0 dst 10.0.0.0/8 dir in mark 42 {TMPL_IN}",
    f"policy add src 0.0.0.0/0 dst 10.0.0.0/8 dir fwd mark 42 {TMPL_IN}",
    f"policy add src 10.0.0.0/8 dst 0.0.0.0/0 proto tcp dport 80 dir out priority 3 mark 42 {TMPL}",
    f"policy add src 10.0.0.0/8 dst 0.0.0.0/0 proto tcp dport 80 dir out mark 42 {TMPL}",
    f"policy update src 10.0.0.0/8 dst 0.0.0.0/0 proto tcp dport 80 dir out priority 9 mark 42 {TMPL}",
    "policy add src 10.0.0.0/8 dst 10.1.0.0/16 dir out mark 42 action block",
    f"policy add src {A6}/128 dst {B6}/128 proto ipv6-icmp type 128 code 0 dir out if_id 8 tmpl"
    f" src {A6} dst {B6} proto esp spi 0x77 reqid 8 mode tunnel level required",
    f"policy add src 10.3.0.0/16 dst 10.4.0.0/16 dir out mark 42 ptype main {TMPL}",
    "policy list",
    "policy list dir out",
    "policy list src 10.0.0.0/8",
    "policy get src 0.0.0.0/0 dst 10.0.0.0/8 dir in mark 42",
    "-s policy get src 0.0.0.0/0 dst 10.0.0.0/8 dir fwd mark 42",
    "policy get src 0.0.0.0/0 dst 10.0.0.0/8 dir in",
    "policy delete src 0.0.0.0/0 dst 10.0.0.0/8 dir in",
    "policy delete dir out index 999993",
    "policy add src 10.5.0.0/33 dst 10.6.0.0/16 dir out mark 42",
    f"policy add src 10.5.0.0/16 dst 10.6.0.0/16 dir sideways {TMPL}",
    "policy count",
    "policy setdefault in block",
    "policy getdefault",
    "policy setdefault in accept",
    "policy set hthresh4 24 32",
    "policy delete src 0.0.0.0/0 dst 10.0.0.0/8 dir in mark 42",
    "policy deleteall dir out",
    "policy list",
    "policy flush",
    "policy list",
    "policy count",
)

# Last, and why: a kernel takes them, or says less.
DELIBERATE = {
    f"state add {OUT} spi 0x8000 mode beet {GCM} {key(40)} 128": "tunnel mode only",
    f"state add {OUT} spi 0x8001 mode transport {GCM} {key(41)} 128": "tunnel mode only",
    f"state add {OUT} spi 0x8002 mode tunnel enc cbc(aes) {key(42, 16)}": "CBC without integrity can be read (T14)",
    f"state add {OUT} spi 0x8003 mode tunnel auth hmac(sha256) {key(43, 32)} enc cbc(aes) {key(43, 16)}":
        "cut to 96 bits, which is no RFC 4868: auth-trunc says 128",
    f"state add {OUT} spi 0x8004 mode tunnel sel src 10.0.0.0/8 {GCM} {key(44)} 128":
        "selectors belong to policies",
    f"state add {OUT} spi 200 mode tunnel {GCM} {key(45)} 128": "SPIs up to 255 are reserved (RFC 4303 2.1)",
    f"state add src 10.77.0.1 dst 10.77.0.2 proto esp spi 0x8005 mode tunnel {GCM} {key(46)} 128":
        "no address of this host",
    f"policy add src 10.0.0.0/8 dst 10.1.0.0/16 dir out mark 1 tmpl proto ah mode tunnel": "ESP only",
    f"policy add src 10.0.0.0/8 dst 10.1.0.0/16 dir out mark 2 {TMPL} {TMPL}": "no bundles",
}


def script():
    lines = [SETUP]
    for number, command in enumerate((*COMMANDS, *DELIBERATE)):
        first, *rest = command.split()
        words = [first, "xfrm", *rest] if first.startswith("-") else ["xfrm", first, *rest]
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(f"echo '=== {number}'; ip {quoted} 2>&1; echo \"exit $?\"\n")
    lines.append(f"echo '=== messages'; /usr/bin/python3 -B {MESSAGES} 2>&1\n")
    return "".join(lines)


def answers(text):
    """By command: what was said, but for times. Last, that to messages which `ip` cannot send."""
    parts = re.split(r"^=== \w+\n", text, flags=re.M)[1:]
    return [LEFT_OUT.sub("", part) for part in parts]


def kernel_says(folder):
    box = Namespace("kernel")
    uml = Uml(box, folder, [])
    try:
        return answers(uml.shell(script()))
    finally:
        uml.close()


def espalierd_says(programs, folder):
    gateway = Gateway(programs, folder, "ours", A)
    gateway.start()
    done = subprocess.run(
        gateway.box.command(*gateway.exec("sh", "-c", script())),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
    )  # fmt: skip
    gateway.daemon.terminate()
    assert gateway.daemon.wait(20) == 0
    return answers(done.stdout)


def compare_messages(theirs, ours):
    """How many are not as they should be."""
    theirs, ours = (dict(line.split(": ", 1) for line in text.splitlines()) for text in (theirs, ours))
    wrong = 0
    for name in {**theirs, **ours, **xfrm_messages.MESSAGES, **xfrm_messages.DELIBERATE}:
        kernel, own = theirs.get(name), ours.get(name)
        if None not in (kernel, own) and (kernel != own) == (name in xfrm_messages.DELIBERATE):
            continue
        wrong += 1
        print(f"--- {name}\nkernel: {kernel}\nhere:   {own}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", required=True)
    options = parser.parse_args()
    require_root()
    require_uml()
    exit_on_signals()
    with tempfile.TemporaryDirectory() as folder:
        theirs = kernel_says(folder)
        ours = espalierd_says(options.programs, folder)
    wrong = compare_messages(theirs.pop(), ours.pop())
    commands = (*COMMANDS, *DELIBERATE)
    assert len(theirs) == len(ours) == len(commands), (len(theirs), len(ours), len(commands))
    for command, kernel, own in zip(commands, theirs, ours):
        if (kernel != own) == (command in DELIBERATE):
            continue
        wrong += 1
        print(f"--- ip xfrm {command}\n{kernel}\n--- here:\n{own}")
    assert not wrong, f"{wrong} answers are not as they should be"
    print(f"{len(COMMANDS)} answers as the kernel's, {len(DELIBERATE)} otherwise on purpose; "
          f"of messages {len(xfrm_messages.MESSAGES)} and {len(xfrm_messages.DELIBERATE)}")


if __name__ == "__main__":
    main()
