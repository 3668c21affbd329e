"""Figures taken in turns, and how they are told: each beside a peer's, as a ratio, with its target.

A benchmark ends with another exit code than 0 only when it could not run, or when the sides gave
different answers. A target that is missed is told and is no failure: on a busy machine every
target is.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from qvmi.errors import QvmiError
from tests.guests.lab import LabError

__all__ = [
    "Disagreement",
    "Side",
    "Size",
    "Times",
    "agree",
    "in_turns",
    "percentile",
    "process_environment",
    "run",
    "tell",
    "tell_ratio",
]

Side = Callable[[], float]
"""Does one thing and returns the seconds that the part in question took."""

_MOST_SHOWN: Final = 5


class Disagreement(Exception):
    """The sides gave different answers, so that their times cannot be compared."""


@dataclass(frozen=True, slots=True)
class Size:
    """This is how much is done: everything, or just enough to see that both sides run and agree."""

    quick: bool

    def of(self, full: int, quick: int) -> int:
        """This is the one number or the other."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Times:
    """This is how long one thing took, again and again, in seconds."""

    seconds: Sequence[float]

    @property
    def median(self) -> float:
        """This is what is compared: half of the rounds were faster."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        least, most = min(self.seconds), max(self.seconds)
        return f"{_time(self.median)} [{_time(least)} - {_time(most)}]"


def _time(seconds: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= unit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 1e-6:.3g} us"


def in_turns(rounds: int, *sides: Side) -> tuple[Times, ...]:
    """This lets all sides do their thing once untimed, then so many rounds, one after another.

    What disturbs the machine for a while disturbs all sides alike.
    """
    for side in sides:
        side()
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, seconds in zip(sides, taken, strict=True):
            seconds.append(side())
    return tuple(Times(seconds) for seconds in taken)


def percentile(sorted_s: Sequence[float], share: float) -> float:
    """This is what that share of all is below."""
    return sorted_s[min(len(sorted_s) - 1, int(share * len(sorted_s)))]


def tell(
    what: str, ours: Times, *, limit_s: float, peer: str = "", theirs: Times | None = None
) -> None:
    """This prints a time with its limit, beside a peer's time for the same."""
    beside = f"{peer} {theirs}, {theirs.median / ours.median:.1f} x ours" if theirs else "no peer"
    _line(what, str(ours), beside, f"at most {_time(limit_s)}", reached=ours.median <= limit_s)


def tell_ratio(
    what: str, figure: str, ratio: float, *, beside: str, target: str, reached: bool
) -> None:
    """This prints a figure whose target is a ratio."""
    _line(what, figure, f"{beside}, ratio {ratio:.2f}", target, reached=reached)


def _line(what: str, ours: str, beside: str, target: str, *, reached: bool) -> None:
    verdict = "reached" if reached else "missed"
    print(f"{what}\n    qvmi {ours}   {beside}   target {target}: {verdict}", flush=True)


def agree(what: str, ours: Sequence[object], theirs: Sequence[object]) -> None:
    """This checks that both sides found the same, in any order.

    Raises:
        Disagreement: they did not, or found nothing at all.
    """
    if not ours or len(ours) != len(theirs) or set(ours) != set(theirs):
        only_ours = sorted(map(repr, set(ours) - set(theirs)))[:_MOST_SHOWN]
        only_theirs = sorted(map(repr, set(theirs) - set(ours)))[:_MOST_SHOWN]
        found = f"{len(ours)} and {len(theirs)} found"
        raise Disagreement(f"{what}: {found}; only ours {only_ours}; only theirs {only_theirs}")
    print(f"{what}: both sides gave the same answer, {len(ours)} of them", flush=True)


def process_environment(**changed: str) -> dict[str, str]:
    """This is what processes of both sides run in: as installed programs, whose bytecode is kept."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | changed


def run(benchmark: Callable[[Size], None]) -> None:
    """This is the main part of each benchmark."""
    parser = argparse.ArgumentParser(description=sys.modules[benchmark.__module__].__doc__)
    parser.add_argument("--quick", action="store_true", help="just see that it runs and agrees")
    try:
        benchmark(Size(quick=parser.parse_args().quick))
    except (Disagreement, LabError, QvmiError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
