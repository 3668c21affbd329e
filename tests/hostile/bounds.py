"""Bounds on what a hostile guest may cost, as context managers that fail the test."""

import signal
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["cpu_seconds", "peak_mib"]


@contextmanager
def cpu_seconds(limit: float) -> Iterator[None]:
    """This fails the test once the block has used so much processor time, however loaded the host is.

    It is a bound and no speed: generous enough for the slowest host, and far below for ever.
    """

    def too_long(*_: object) -> None:
        raise AssertionError(f"more than {limit} s of processor time")

    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def peak_mib(limit: float) -> Iterator[None]:
    """This fails the test if the block had more Python memory at any moment than so much."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit * (1 << 20), f"peak of {peak >> 20} MiB"
