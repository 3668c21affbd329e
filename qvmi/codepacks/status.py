"""The status: how far a codepack can see, published and retained whenever that changes."""

import time
from enum import StrEnum

import msgspec

from qvmi.bus.message import Message
from qvmi.semantics.guest_os import Gap

__all__ = ["STATUS", "Sight", "Status", "last_will"]

STATUS = "status"
"""The kind of message whose body is a :class:`Status`."""


class Sight(StrEnum):
    """This is how the last look went."""

    FULL = "full"
    """It saw all it wanted to: no finding means nothing found."""
    GAPS = "gaps"
    """Parts could not be seen: no finding there means nothing."""
    BLIND = "blind"
    """There was nothing to look at: no guest was recognised, or a structure could not be walked."""
    FAILED = "failed"
    """The codepack itself failed."""
    LATE = "late"
    """The codepack had not finished when its time was up."""
    ENDED = "ended"
    """The machine is gone; there will be no further look."""
    GONE = "gone"
    """The codepack itself is gone, or its bus: nobody looks until it says something else."""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """This is the body of messages of the kind ``status``.

    Args:
        sight: how the last look went.
        problem: what was wrong, in words; empty if nothing was.
        gaps: the first parts of the guest that could not be seen.
        gap_count: how many could not be seen.
        rounds: looks begun until now.
        lost: messages that were lost until now because somebody was too slow.
        standing: alerts of an earlier run that stand: nobody raises them again.
        suppressed: findings until now that were gone before there was room for their alerts.
    """

    sight: Sight
    problem: str = ""
    gaps: tuple[Gap, ...] = ()
    gap_count: int = 0
    rounds: int = 0
    lost: int = 0
    standing: int = 0
    suppressed: int = 0


def last_will(vm: str, codepack: str) -> Message:
    """This is a codepack's last will, made while it is well: the broker publishes it when it is not."""
    status = Status(sight=Sight.GONE, problem="its program ended, or lost the bus")
    return Message(
        vm=vm, codepack=codepack, kind=STATUS, time=time.time(), body=msgspec.to_builtins(status)
    )
