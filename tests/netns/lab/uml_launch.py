"""Starts User-Mode Linux in the caller's place: uml_launch.py PROGRAM ARGUMENTS…

To be run in a mount namespace of its own: the kernel's memory is a file in a tmpfs that goes with it.
"""

import ctypes
import os
import signal
import struct
import sys

PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
PTRACE_TRACEME = 0
SYS_PTRACE, PTRACE_GETREGSET, NT_X86_XSTATE, EINVAL = 101, 0x4204, 0x202, 22
# With more (AMX has 8 KiB), the kernel inside cannot put back what it kept, and its first program dies.
KEPT = 2696

_libc = ctypes.CDLL(None, use_errno=True)


def call(name, *arguments):
    if getattr(_libc, name)(*arguments) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def extended_state():
    """How many bytes of registers ptrace() has to offer."""
    child = os.fork()
    if child == 0:
        call("ptrace", PTRACE_TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    registers = ctypes.create_string_buffer(1 << 16)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(registers), len(registers))
    call("ptrace", PTRACE_GETREGSET, child, ctypes.c_void_p(NT_X86_XSTATE), vector)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return vector[1]


def hide_extended_state():
    """ptrace() has no extended state to offer any more: UML then keeps what every x86-64 has. Its
    programs must do without AVX (uml.py says so to their C library)."""

    def load(field):
        return struct.pack("=HBBI", 0x20, 0, 0, field)

    def unless_equal(value, skip):
        return struct.pack("=HBBI", 0x15, 0, skip, value)

    def answer(value):
        return struct.pack("=HBBI", 0x06, 0, 0, value)

    arguments = 16  # in struct seccomp_data, 8 bytes each, the low half first
    program = (
        load(0) + unless_equal(SYS_PTRACE, 5)
        + load(arguments) + unless_equal(PTRACE_GETREGSET, 3)
        + load(arguments + 16) + unless_equal(NT_X86_XSTATE, 1)
        + answer(0x00050000 | EINVAL)
        + answer(0x7FFF0000)
    )
    instructions = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))
    )
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)


def main():
    call("mount", b"uml", b"/dev/shm", b"tmpfs", 0, None)
    if extended_state() > KEPT:
        hide_extended_state()
    os.environ.update(TMPDIR="/dev/shm", HOME="/dev/shm")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
