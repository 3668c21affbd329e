"""Waiting for processes that are not children of the tests."""

import os
import select

__all__ = ["ended"]


def ended(pid: int, *, within_s: float = 10.0) -> bool:
    """Tells whether a process has ended, at the latest after the time given."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        readable, _, _ = select.select([handle], [], [], within_s)
        return bool(readable)
    finally:
        os.close(handle)
