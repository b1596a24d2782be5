"""A key file of ours, read by somebody else."""

import dataclasses


@dataclasses.dataclass
class Keys:
    suite: str
    spi_in: int
    spi_out: int
    keymat_in: bytes  # key, then salt
    keymat_out: bytes
    auth_in: bytes  # of the HMAC, where the suite has one
    auth_out: bytes


def read_keys(name):
    with open(name, encoding="ascii") as file:
        lines = [line.split("#")[0] for line in file]
    words = dict(tuple(map(str.strip, line.split("=", 1))) for line in lines if "=" in line)

    def hexadecimal(word):
        return bytes.fromhex(words.get(word, "").removeprefix("0x"))

    return Keys(
        words["suite"],
        int(words["spi-in"], 0),
        int(words["spi-out"], 0),
        hexadecimal("key-in") + hexadecimal("salt-in"),
        hexadecimal("key-out") + hexadecimal("salt-out"),
        hexadecimal("auth-in"),
        hexadecimal("auth-out"),
    )
