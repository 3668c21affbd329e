"""What codepacks in one process have in common: whose turn it is to look, and what was just seen.

Those of one interval look in one round, one after the other, so that each is as fast as alone and what
several ask is read once; a round that takes longer than the interval is followed by none at once.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from qvmi.codepacks.shared_answers import SharedAnswers

__all__ = ["TURN_S", "Fellows", "Turns", "next_due"]

TURN_S: Final = 0.5
"""Longest wait for the look of another codepack; one that takes longer goes on beside the next one.

Python lets one thread work at a time: looks side by side would make each other late.
"""


class _Turn:
    """A turn that is given back once, by its end or by its time."""

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self._is_over = False

    def end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._free.release()


class Turns:
    """This gives turns, in the order in which they are asked for."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(1)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """This waits for a turn, and has it for as long as the block lasts, but for TURN_S at most."""
        await self._free.acquire()
        turn = _Turn(self._free)
        over = asyncio.get_running_loop().call_later(TURN_S, turn.end)
        try:
            yield
        finally:
            over.cancel()
            turn.end()


@dataclass(frozen=True, slots=True)
class Fellows:
    """This is what the codepacks of one watch have in common."""

    turns: Turns = field(default_factory=Turns)
    shared: SharedAnswers = field(default_factory=SharedAnswers)


def next_due(due: float, interval_s: float, *, now: float) -> float:
    """This is when the next look is due: in step with the others, those that were missed left out.

    Args:
        due: when the last one was.
        interval_s: from one to the next.
        now: when the last one was over.
    """
    return due + max(1, math.ceil((now - due) / interval_s)) * interval_s
