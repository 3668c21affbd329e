"""What the manager must know of a codepack to run it in a process of its own."""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qvmi.bus.topic import is_name
from qvmi.codepacks.runner import LOOK_DEADLINE_S
from qvmi.errors import CodepackError
from qvmi.manager.accounts import ALERTS, MANAGER
from qvmi.manager.watch import MIN_INTERVAL_S
from qvmi.policy import READ_ONLY, Policy

__all__ = ["PackSpec", "Restart"]

_TAKEN: Final = frozenset({MANAGER, ALERTS, "watch"})


class Restart(StrEnum):
    """This is when a process that has ended is started again."""

    ALWAYS = "always"
    """Whenever it fails, but for what fails again and again at once."""
    NEVER = "never"
    """Not at all: one that has failed stays ended."""


@dataclass(frozen=True, slots=True)
class PackSpec:
    """This is a codepack, and how it is run.

    Args:
        name: on the bus.
        entry: what makes it, as ``module:name``; called with the interval.
        interval_s: from the start of one look to the start of the next.
        policy: what it may do.
        restart: whether its process is started again when it has failed.
        look_s: longest look.
        memory_bytes: how much memory of its own it may take; None for any.

    Raises:
        CodepackError: a value cannot be used.
    """

    name: str
    entry: str
    interval_s: float = 1.0
    policy: Policy = READ_ONLY
    restart: Restart = Restart.ALWAYS
    look_s: float = LOOK_DEADLINE_S
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        if not is_name(self.name):
            raise CodepackError(self.name, "its name is not 1 to 63 of a-z, 0-9 and -")
        if self.name in _TAKEN:
            raise CodepackError(self.name, "that name is taken by the manager itself")
        if not (math.isfinite(self.interval_s) and self.interval_s >= MIN_INTERVAL_S):
            raise CodepackError(self.name, f"its interval of {self.interval_s} s is too short")
        module, colon, name = self.entry.partition(":")
        if not (module and colon and name):
            raise CodepackError(self.name, f"its entry {self.entry!r} is not module:name")
