"""Waiting for what has no event of its own."""

import time


def until(holds, what, timeout=10):
    """Returns when `holds()` is true; raises with `what` if that takes too long."""
    deadline = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what}")
        time.sleep(0.01)
