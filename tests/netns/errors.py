#!/usr/bin/python3
"""Every wrong configuration is refused in one line that names file and line, by the daemon and by
`espalier check` alike, and leaves nothing behind.

    gateway A, alone
"""

import os
import shutil

from lab import sites

GOOD = """\
[conn one]
left = 192.168.1.3
right = 192.168.1.4
leftsubnet = 10.1.3.0/24
rightsubnet = 10.1.4.0/24
mark = 5/0xffffffff
vti-interface = vti01
leftvti = 10.0.1.1/24
keys = one.keys
"""
SECOND = """\
[conn two]
left = 192.168.1.3
right = 192.168.1.5
leftsubnet = 10.1.3.0/24
rightsubnet = 10.1.5.0/24
mark = 6/0xffffffff
vti-interface = vti02
keys = two.keys
"""


def changed(number, line):
    """GOOD with another line `number`."""
    lines = GOOD.splitlines()
    lines[number - 1] = line
    return "\n".join(lines) + "\n"


def second(old, new):
    assert old in SECOND
    return GOOD + SECOND.replace(old, new)


# What is wrong, the file, the line to be named (None: it has none), a word of the message.
TEXTS = (
    ("a misspelt option", changed(7, "vti-interfce = vti01"), 7, "vti-interface"),
    ("a line that says nothing", changed(8, "hello"), 8, "NAME = VALUE"),
    ("strongSwan's section", changed(1, "connections {"), 1, "[conn NAME]"),
    ("bytes that are no text", changed(8, "leftvti = \x1b[31m"), 8, "ASCII"),
    ("an address that is none", changed(2, "left = 192.168.1.300"), 2, "address"),
    ("a name for an address", changed(3, "right = vpn.example.net"), 3, "address"),
    ("two families", changed(3, "right = fd00::4"), 3, "famil"),
    ("no right", changed(3, ""), 1, "right"),
    ("the same address twice", changed(3, "right = 192.168.1.3"), 3, "same address"),
    ("a prefix with host bits", changed(4, "leftsubnet = 10.1.3.1/24"), 4, "10.1.3.0/24"),
    ("a prefix that is too long", changed(5, "rightsubnet = 10.1.4.0/33"), 5, "prefix"),
    ("a mark outside its mask", changed(6, "mark = 0x105/0xff"), 6, "outside its mask"),
    ("a mark that is no number", changed(6, "mark = five"), 6, "mark"),
    ("a VTI without a mark", changed(6, ""), 7, "mark"),
    ("a device name that is too long", changed(7, "vti-interface = v" + "x" * 15), 7, "15"),
    ("a device name with a slash", changed(7, "vti-interface = ../vti"), 7, "vti-interface"),
    ("an interface address without length", changed(8, "leftvti = 10.0.1.1"), 8, "ADDRESS/LEN"),
    ("a word that is neither yes nor no", changed(8, "vti-routing = perhaps"), 8, "yes"),
    ("an unknown encapsulation", changed(8, "encapsulation = tcp"), 8, "encapsulation"),
    ("an unknown cipher", changed(8, "esp = rot13"), 8, "aes_gcm256"),
    ("an option twice", changed(8, "left = 192.168.1.3"), 8, "second time"),
    ("a route over the peer", GOOD.replace("10.1.3.0/24", "0.0.0.0/0").replace("10.1.4.0/24", "0.0.0.0/0"),
     5, "vti-routing=no"),
    ("no keys", changed(9, ""), 1, "keygen"),
    ("a key file that is not there", changed(9, "keys = none.keys"), 9, "none.keys"),
    ("another cipher than the keys'", changed(8, "esp = aes_gcm128"), 8, "aes_gcm256"),
    ("two conns of one name", GOOD + GOOD, 10, "second"),
    ("two conns with one device", second("vti02", "vti01"), 16, "vti-shared"),
    ("two conns with one mark", second("mark = 6", "mark = 5").replace(".1.5\n", ".1.4\n"), 15, "mark"),
    ("two conns with the same keys", second("two.keys", "one.keys"), 17, "key"),
    ("a copy of another conn's keys", second("two.keys", "copy.keys"), 17, "spi-in"),
)


def setting(text, name):
    return text.split(f"{name} = ")[1].split("\n")[0]


def spoil_keys(lab):
    """What is wrong, and how to make a good key file so."""
    name = lab.path("one.keys")
    with open(name, encoding="ascii") as file:
        good = file.read()

    def write(text):
        with open(name, "w", encoding="ascii") as file:
            file.write(text)

    first = setting(good, "key-in")
    yield "a key file that others can read", lambda: os.chmod(name, 0o644), "chmod"
    yield "a key that is too short", lambda: write(good.replace(first, first[:-2])), "hex digits"
    yield "a key that is no number", lambda: write(good.replace(first, first[:-1] + "x")), "hex digits"
    mirrored = good
    for word in ("key", "salt"):
        value = setting(good, f"{word}-in")
        mirrored = mirrored.replace(setting(good, f"{word}-out"), value)
    yield "one key for both directions", lambda: write(mirrored), "both directions"
    yield "an unknown word", lambda: write(good + "colour = blue\n"), "unknown name"
    yield "an empty key file", lambda: write(""), "one.keys"
    yield "a key file that is a folder", lambda: (os.remove(name), os.mkdir(name)), "one.keys"


def refused(lab, what, config, where, word):
    """`espalier check` and espalierd both say the same line, and fail."""
    secret = secrets_of(lab)
    before = lab.gw_a.ip("-o link") + lab.gw_a.ip("route show table all")
    checked, status = lab.espalier("check", config, check=False)
    assert status == 1, f"{what}: espalier check ended with {status}: {checked}"
    daemon = lab.daemon(lab.gw_a, config).start(wait=False)
    status = daemon.process.wait(20)
    assert status not in (0, 99) and status > 0, f"{what}: espalierd ended with {status}"
    daemon.reader.join()
    for said in (checked.splitlines(), daemon.lines):
        errors = [line for line in said if where in line]
        assert len(errors) == 1, f"{what}: not one line with {where}: {said}"
        assert word in errors[0], f"{what}: no '{word}' in: {errors[0]}"
        assert not any(key in "".join(said) for key in secret), f"{what}: key material in {said}"
    assert len(checked.splitlines()) == 1, f"{what}: more than a line: {checked}"
    after = lab.gw_a.ip("-o link") + lab.gw_a.ip("route show table all")
    assert before == after, f"{what}: left behind: {after}"
    assert not os.path.exists(daemon.control), f"{what}: left its socket"
    print(f"ok: {what}: {errors[0].removeprefix('error ').replace(lab.folder, '')}")


def secrets_of(lab):
    found = set()
    for name in ("one.keys", "two.keys"):
        if not os.path.isfile(lab.path(name)):
            continue
        with open(lab.path(name), encoding="ascii") as file:
            words = file.read().replace("=", " ").split()
        found |= {word[-24:] for word in words if len(word) > 60}
    return found


def main():
    options = sites.arguments(__doc__)
    with sites.Sites(options) as lab:
        for conn in ("one", "two"):
            keys = lab.keygen(conn=conn, out=f"keys-{conn}")
            for ending in ("keys", "state"):
                shutil.copy2(os.path.join(keys, "left", f"{conn}.{ending}"), lab.folder)
        shutil.copy2(lab.path("one.keys"), lab.path("copy.keys"))
        config = lab.path("test.conf")

        def write(text):
            with open(config, "w", encoding="ascii") as file:
                file.write(text)

        write(GOOD + SECOND)
        lab.espalier("check", config)
        for what, text, line, word in TEXTS:
            write(text)
            refused(lab, what, config, f"{config}:{line}: ", word)
        write(GOOD)
        shutil.copy2(lab.path("one.keys"), lab.path("kept"))
        for what, spoil, word in spoil_keys(lab):
            shutil.copy2(lab.path("kept"), lab.path("one.keys"))
            spoil()
            refused(lab, what, config, f"{config}:9: ", word)
        missing = lab.path("missing.conf")
        refused(lab, "a file that is not there", missing, f"{missing}: ", "cannot be opened")


if __name__ == "__main__":
    main()
