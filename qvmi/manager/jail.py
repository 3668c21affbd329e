"""What codepacks' processes are kept by here: found out by starting one that tries to get out."""

import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from qvmi.errors import CodepackError
from qvmi.manager.confinement import Confinement, confinements
from qvmi.manager.pack_process import PackProcess

__all__ = ["ADVISORY", "Jail", "find_jail"]

ADVISORY: Final = "policy: advisory"
"""What is said with each alert where nothing keeps a codepack from writing guest RAM or reaching QEMU."""

_NOTHING: Final = "nothing"

_log: Final = logging.getLogger(__name__)

Try = Callable[[Confinement], Awaitable[PackProcess]]
"""Starts a process in a confinement that answers and ends."""


@dataclass(frozen=True, slots=True)
class Jail:
    """This is what keeps codepacks' processes, and why nothing stronger does.

    Args:
        confinement: what is used.
        holds: whether the process that tried found no way to write guest RAM, or to QEMU itself.
        reasons: of each stronger confinement, and of this one where it does not hold, why not.
    """

    confinement: Confinement
    holds: bool
    reasons: tuple[str, ...] = ()

    @property
    def held_by(self) -> str:
        """This is what holds codepacks to their policy, as each of their alerts tells."""
        return self.confinement.name if self.holds else _NOTHING

    @property
    def in_words(self) -> str:
        """This is the same for people."""
        if self.holds:
            return f"policy: enforced by {self.confinement.name}"
        return f"{ADVISORY} ({'; '.join(self.reasons)})"


async def find_jail(attempt: Try) -> Jail:
    """This is the strongest confinement that holds; where none does, the weakest that works.

    Raises:
        CodepackError: no process can be started at all.
    """
    reasons: list[str] = []
    for confinement in confinements():
        last = confinement == confinements()[-1]
        try:
            process = await attempt(confinement)
        except CodepackError as error:
            if last:
                raise
            reasons.append(f"{confinement.name}: {error.problem}")
            continue
        await process.end()
        ways = process.hello.ways_out
        if not ways:
            return Jail(confinement, holds=True, reasons=tuple(reasons))
        reasons.append(f"{confinement.name}: {', '.join(ways)}")
        _log.info("codepacks are not kept by %s: %s", confinement.name, ways)
        if last:
            return Jail(confinement, holds=False, reasons=tuple(reasons))
    raise AssertionError(f"no confinement for uid {os.geteuid()}: there is always the last")
