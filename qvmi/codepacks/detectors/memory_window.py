"""How runs of a process's memory become windows to scan: what lies side by side, small holes as zeros."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Va
from qvmi.machine.scanning.scan import LONGEST
from qvmi.semantics.guest_os import MemoryRun

__all__ = ["Cut", "MemoryWindow", "cut"]

_MAX_HOLE: Final = 16 << 10
"""Bytes between two runs that are seen as zeros, so that a rule's patterns may lie on both sides."""


@dataclass(frozen=True, slots=True)
class MemoryWindow:
    """This is a part of a process's memory that is scanned as one.

    Args:
        start: the address of the first byte that hits are told of.
        skip: bytes before it, which are seen with it.
        own: bytes that hits are told of.
        pieces: all of it: bytes, or how many zeros.
    """

    start: Va
    skip: int
    own: int
    pieces: Sequence[bytes | int]


@dataclass(frozen=True, slots=True)
class Cut:
    """This is what came of some runs.

    Args:
        windows: to scan.
        following: the address from which on hits were told of none of them.
        size: bytes that are in memory, of all.
    """

    windows: Sequence[MemoryWindow]
    following: Va
    size: int


def cut(runs: Sequence[MemoryRun], cursor: Va, end: Va) -> Cut:
    """This makes windows of runs, each of which begins where the one before it ends.

    Args:
        runs: at least one, from before the cursor on.
        cursor: hits before it were told already.
        end: of the mapping: where the runs end before that, a match may go on behind them.
    """
    last, stretches = runs[-1], list(_stretches(runs))
    following = last.end
    if last.data and last.end < end:
        following = Va(max(stretches[-1][0].start, last.end - LONGEST))
        following = following if following > cursor else last.end
    windows = [one for one in (_window(its, cursor, following) for its in stretches) if one.own > 0]
    return Cut(windows, following, sum(len(run.data) for run in runs))


def _stretches(runs: Sequence[MemoryRun]) -> Iterator[list[MemoryRun]]:
    """This iterates runs that are seen as one; holes at their ends are no part of them."""
    gathered: list[MemoryRun] = []
    holes: list[MemoryRun] = []
    for run in runs:
        if not run.data:
            holes.append(run)
            continue
        if gathered and run.start - gathered[-1].end > _MAX_HOLE:
            yield gathered
            gathered = []
        gathered += (*holes, run) if gathered else (run,)
        holes = []
    if gathered:
        yield gathered


def _window(runs: Sequence[MemoryRun], cursor: Va, following: Va) -> MemoryWindow:
    first, last = runs[0].start, runs[-1].end
    start = Va(max(first, cursor))
    pieces: list[bytes | int] = [run.data or run.end - run.start for run in runs]
    return MemoryWindow(start, start - first, min(last, following) - start, pieces)
