"""A codepack whose process ends when a look takes too long, whatever the look is at.

Nothing in Python can end a thread, and one that holds the interpreter lets nobody else even try. So the
kernel is asked to end the process: it does, and the manager starts it again as its manifest says.

References: setitimer(2).
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from qvmi.codepacks.codepack import Codepack, Finding, Unseen
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import GuestOS

__all__ = ["START_S", "TimedPack", "ended_after"]

MIN_GRACE_S: Final = 1.0
"""How long after its deadline a look may at least end yet: that it was late must be told first."""


START_S: Final = 60.0
"""Longest time in which a codepack is imported and made, on a busy host, too."""


@contextmanager
def ended_after(seconds: float) -> Iterator[None]:
    """This ends the process by SIGALRM where the block takes longer; blocks do not nest."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


class TimedPack:
    """This is a codepack, each of whose looks may take so long.

    Args:
        codepack: it.
        look_s: the longest look; after twice as long, and a second more at least, the process ends.
    """

    def __init__(self, codepack: Codepack, look_s: float) -> None:
        self.name = codepack.name
        self.interval_s = codepack.interval_s
        self.grants = codepack.grants
        self._codepack = codepack
        self._look_s = look_s

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterator[Finding | Unseen]:
        """This looks; the process ends by SIGALRM if that takes too long."""
        with ended_after(self._look_s + max(self._look_s, MIN_GRACE_S)):
            yield from self._codepack.inspect(guest, memory)
