"""Messages that `ip xfrm` cannot send, to whoever answers on NETLINK_XFRM; what was answered, and who listens was
told: errno, types and bytes, without times. As a program it prints a line each.

    python3 -I xfrm_messages.py
"""

import os
import socket
import struct
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "xfrm"))

from front import address, aead, attribute, replay_esn, state_id, state_info  # noqa: E402

NETLINK_XFRM, SOL_NETLINK, NETLINK_EXT_ACK = 6, 270, 11
NEWSA, DELSA, GETSA, NEWPOLICY, GETPOLICY, EXPIRE, POLEXPIRE, NEWAE, GETAE, MIGRATE = 16, 17, 18, 19, 21, 24, 27, 30, 31, 33
REQUEST, ACK, REPLACE = 1, 4, 0x100
TMPL, LTIME, REPLAY_VAL, REPLAY_ESN, REPLAY_THRESH, ETIMER_THRESH, XMIGRATE, KMADDRESS, ENCAP = 5, 9, 10, 23, 11, 12, 17, 19, 4
GROUPS = 1 << 1 | 1 << 4 | 1 << 6  # EXPIRE, AEVENTS, MIGRATE
A, B, C = "10.9.0.1", "10.9.0.2", "10.9.0.3"
OUT, IN = 0x4000, 0x4001
NEVER = 2**64 - 1
# By type: where times are, and the index of a policy, which tells of those before it; the length of the fixed part.
LEFT_OUT = {NEWSA: ([(176, 192)], 224), EXPIRE: ([(176, 192)], 232), NEWPOLICY: ([(136, 152), (156, 160)], 168),
            POLEXPIRE: ([(136, 152), (156, 160)], 176), NEWAE: ([], 48), MIGRATE: ([], 64)}  # fmt: skip


def selector(second):
    return bytes((10, second)) + bytes(14) + bytes(16) + struct.pack("=HHHHHBBB3xiI", 0, 0, 0, 0, 2, 16, 0, 0, 0, 0)


def policy(direction, second):
    limits = struct.pack("=8Q", NEVER, NEVER, NEVER, NEVER, 0, 0, 0, 0)
    return selector(second) + limits + bytes(32) + struct.pack("=IIBBBB4x", 0, 0, direction, 0, 0, 0)


def policy_id(direction, second):
    return selector(second) + struct.pack("=IB3x", 0, direction)


def template(source, destination, reqid=7):
    head = address(destination) + struct.pack("=IB3xH2x", 0, 50, 2) + address(source)
    return attribute(TMPL, head + struct.pack("=IBBBxIII", reqid, 1, 0, 0, 2**32 - 1, 2**32 - 1, 2**32 - 1))


def move(source, destination, new_source, new_destination, reqid=7, mode=1):
    return (address(destination) + address(source) + address(new_destination) + address(new_source)
            + struct.pack("=BBHIHH", 50, mode, 0, reqid, 2, 2))  # fmt: skip


def moves(*each):
    return attribute(XMIGRATE, b"".join(each))


def event_id(destination, spi, flags=0):
    return state_id(destination, spi) + bytes(16) + struct.pack("=II", flags, 0)


def counted(count):
    return attribute(LTIME, struct.pack("=4Q", count, count, 0, 0))


THRESHOLD = attribute(REPLAY_THRESH, struct.pack("=I", 9))
ENDS = attribute(KMADDRESS, address(C) + address(B) + struct.pack("=IHxx", 0, 2))
AE = REQUEST | ACK | REPLACE
OUT_MOVE, IN_MOVE = move(A, B, C, B), move(B, A, B, C)

# What is to be the same, in this order.
MESSAGES = {
    "state out": (NEWSA, state_info(A, B, OUT) + replay_esn() + aead(b"o" * 36)),
    "state in": (NEWSA, state_info(B, A, IN) + replay_esn() + aead(b"i" * 36)),
    "policy out": (NEWPOLICY, policy(1, 8) + template(A, B)),
    "policy in": (NEWPOLICY, policy(0, 8) + template(B, A)),
    "GETAE": (GETAE, event_id(B, OUT), REQUEST),
    "GETAE of all": (GETAE, event_id(B, OUT, 255), REQUEST),
    "GETAE of none": (GETAE, event_id(B, 0x9999)),
    "NEWAE empty": (NEWAE, event_id(B, OUT), AE),
    "NEWAE without REPLACE": (NEWAE, event_id(B, OUT) + THRESHOLD),
    "NEWAE of none": (NEWAE, event_id(B, 0x9999) + THRESHOLD, AE),
    "NEWAE threshold": (NEWAE, event_id(B, OUT) + THRESHOLD, AE),
    "NEWAE numbers, out": (NEWAE, event_id(B, OUT) + replay_esn(1000, 0), AE),
    "NEWAE numbers of another size": (NEWAE, event_id(B, OUT) + replay_esn(2000, 0, 256, 8), AE),
    "NEWAE numbers cut off": (NEWAE, event_id(B, OUT) + attribute(REPLAY_ESN, struct.pack("=6I", 4, 9, 0, 0, 0, 32)), AE),
    "NEWAE window too wide": (NEWAE, event_id(B, OUT) + replay_esn(2000, 0, 256, 4), AE),
    "NEWAE the other attribute": (NEWAE, event_id(B, OUT) + attribute(REPLAY_VAL, struct.pack("=III", 5, 0, 0)), AE),
    "NEWAE counters": (NEWAE, event_id(B, OUT) + counted(77), AE),
    "GETAE afterwards": (GETAE, event_id(B, OUT, 255), REQUEST),
    "EXPIRE of none": (EXPIRE, state_info(A, B, 0x9999) + bytes(8)),
    "EXPIRE soft": (EXPIRE, state_info(A, B, OUT) + bytes(8)),
    "POLEXPIRE of none": (POLEXPIRE, policy(1, 9) + bytes(8)),
    "POLEXPIRE of no direction": (POLEXPIRE, policy(3, 8) + bytes(8)),
    "POLEXPIRE soft": (POLEXPIRE, policy(1, 8) + bytes(8)),
    "MIGRATE nothing": (MIGRATE, policy_id(1, 8)),
    "MIGRATE an empty list": (MIGRATE, policy_id(1, 8) + moves()),
    "MIGRATE too many": (MIGRATE, policy_id(1, 8) + moves(*(move(A, B, C, B, n) for n in range(1, 8)))),
    "MIGRATE to nowhere": (MIGRATE, policy_id(1, 8) + moves(move(A, B, "0.0.0.0", B))),
    "MIGRATE twice": (MIGRATE, policy_id(1, 8) + moves(OUT_MOVE, OUT_MOVE)),
    "MIGRATE no direction": (MIGRATE, policy_id(3, 8) + moves(OUT_MOVE)),
    "MIGRATE no policy": (MIGRATE, policy_id(1, 9) + moves(OUT_MOVE)),
    "MIGRATE no template": (MIGRATE, policy_id(1, 8) + moves(move(B, A, B, C))),
    "MIGRATE another reqid": (MIGRATE, policy_id(1, 8) + moves(move(A, B, C, B, 8))),
    "MIGRATE cut off": (MIGRATE, policy_id(1, 8) + moves(OUT_MOVE[:-1])),
    "MIGRATE out": (MIGRATE, policy_id(1, 8) + moves(OUT_MOVE) + ENDS),
    "MIGRATE in": (MIGRATE, policy_id(0, 8) + moves(IN_MOVE)),
    "policy out, moved": (GETPOLICY, policy_id(1, 8), REQUEST),
    "policy in, moved": (GETPOLICY, policy_id(0, 8), REQUEST),
    "state in, at its old place": (GETSA, state_id(A, IN)),
    "state in, moved": (GETSA, state_id(C, IN), REQUEST),
    "MIGRATE again": (MIGRATE, policy_id(1, 8) + moves(OUT_MOVE)),
    "EXPIRE hard": (EXPIRE, state_info(B, C, IN) + b"\1" + bytes(7)),
    "EXPIRE hard again": (EXPIRE, state_info(B, C, IN) + b"\1" + bytes(7)),
    "POLEXPIRE hard": (POLEXPIRE, policy(1, 8) + b"\1" + bytes(7)),
    "POLEXPIRE hard again": (POLEXPIRE, policy(1, 8) + b"\1" + bytes(7)),
    "no such type": (41, bytes(64)),
    "EXPIRE soft, the last one told of": (EXPIRE, state_info(A, B, OUT) + bytes(8)),
}  # fmt: skip

# Last: a nonce never twice.
DELIBERATE = {"NEWAE numbers, back": (NEWAE, event_id(B, OUT) + replay_esn(5, 0), AE)}


def shown(kind, body):
    """The bytes, attributes by number."""
    places, fixed = LEFT_OUT.get(kind, ([], len(body)))
    out, rest, found = bytearray(body[:fixed]), body[fixed:], []
    for first, last in places:
        out[first:last] = bytes(last - first)
    while len(rest) >= 4:
        size, attribute_kind = struct.unpack_from("=HH", rest)
        value = rest[4:size]
        if attribute_kind == LTIME:
            value = value[:16] + bytes(16)
        found.append((attribute_kind, value))
        rest = rest[(size + 3) & ~3 :]
    return out.hex() + "".join(f" {kind}:{value.hex()}" for kind, value in found)


def messages(datagram):
    while datagram:
        length, kind = struct.unpack_from("=IH", datagram)
        yield kind, datagram[16:length]
        datagram = datagram[(length + 3) & ~3 :]


TOLD = "told"


def open_socket(groups):
    made = socket.socket(16, socket.SOCK_RAW, NETLINK_XFRM)
    made.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    made.bind((0, groups))
    made.settimeout(10)
    return made


def received(sock):
    """Not recv_into a netlink address: what stands in the kernel's place has none."""
    return sock.recv(65536)


def ask(sock, kind, payload, flags=REQUEST | ACK):
    sock.send(struct.pack("=IHHII", 16 + len(payload), kind, flags, 1, 0) + payload)
    return ", ".join(f"errno {-struct.unpack_from('=i', body)[0]}" if answer == 2 else f"{answer} {shown(answer, body)}"
                     for answer, body in messages(sock.recv(65536)))  # fmt: skip


def told(sock):
    """Until the last one: the second time that the state OUT expires softly."""
    last = 2
    while last:
        for kind, body in messages(sock.recv(65536)):
            yield f"told {kind} {shown(kind, body)}"
            last -= kind == EXPIRE and body[72:76] == struct.pack(">I", OUT)


def main():
    asks, listens = open_socket(0), open_socket(GROUPS)
    for name, message in MESSAGES.items():
        print(f"{name}: {ask(asks, *message)}")
    for number, line in enumerate(told(listens)):
        print(f"{TOLD} {number}: {line}")
    for name, message in DELIBERATE.items():
        print(f"{name}: {ask(asks, *message)}")


if __name__ == "__main__":
    main()
