"""When a finding is believed: seen in two looks in a row, and no more when two looks in a row miss it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

from qvmi.codepacks.codepack import Finding

__all__ = ["Changes", "Confirmation", "Confirmed"]

ROUNDS_TO_RAISE: Final = 2
"""A live guest changes between two reads of one look; the same thing is not caught so twice."""

ROUNDS_TO_CLEAR: Final = 2
"""As for raising, so that an alert does not flicker."""

MAX_KEYS: Final = 1024
"""Findings followed at a time; a guest that shows more is one to look at by hand."""

MAX_UNSEEN_ROUNDS: Final = 8
"""Incomplete looks after which a finding seen once is forgotten, so that they cannot fill MAX_KEYS."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """This is a finding that was confirmed.

    Args:
        finding: as it was in the look that confirmed it.
        rounds: looks that had seen it then.
        first_seen: when the first of them began, seconds since the Unix epoch.
        last_seen: when the last look that saw it began.
    """

    finding: Finding
    rounds: int
    first_seen: float
    last_seen: float


@dataclass(frozen=True, slots=True)
class Changes:
    """This is what one look changed.

    Args:
        raised: findings that are confirmed now.
        cleared: confirmed findings that are gone now.
        overflow: findings that could not be followed, because there are too many.
        held_back: findings that would be confirmed, but for which there was no room.
        suppressed: findings that were held back until they were gone.
    """

    raised: tuple[Confirmed, ...] = ()
    cleared: tuple[Confirmed, ...] = ()
    overflow: int = 0
    held_back: int = 0
    suppressed: int = 0


@dataclass(slots=True)
class _Case:
    """What is known of one key.

    Args:
        finding: as it was seen last.
        since: when the first look that saw it was over, on a clock that is never set.
    """

    finding: Finding
    since: float
    first_seen: float
    last_seen: float
    seen: int = 0
    missed: int = 0
    unseen: int = 0
    held_back: bool = False
    raised: Confirmed | None = None

    def is_due(self, clock: float) -> bool:
        """This tells whether a look that began now, and saw it, is to confirm it."""
        settled = clock - self.since >= self.finding.settle_s
        return self.raised is None and self.seen >= ROUNDS_TO_RAISE and settled


class Confirmation:
    """This follows findings from look to look by their keys."""

    def __init__(self) -> None:
        self._cases: dict[str, _Case] = {}

    @property
    def standing(self) -> tuple[Confirmed, ...]:
        """These are the findings that are confirmed and not cleared."""
        cases = self._cases.values()
        return tuple(replace(one.raised, last_seen=one.last_seen) for one in cases if one.raised)

    @property
    def waiting(self) -> tuple[Confirmed, ...]:
        """These are the findings of the last look that are not confirmed yet."""
        return tuple(
            Confirmed(one.finding, one.seen, one.first_seen, one.last_seen)
            for one in self._cases.values()
            if not (one.raised or one.missed or one.unseen)
        )

    def remember(self, standing: Iterable[Confirmed]) -> None:
        """This takes what was confirmed before this was made: it is not raised again, but cleared."""
        for known in islice(standing, MAX_KEYS):
            case = _Case(known.finding, -math.inf, known.first_seen, known.last_seen, known.rounds)
            case.raised = known
            self._cases.setdefault(known.finding.key, case)

    def update(
        self,
        findings: Iterable[Finding],
        *,
        complete: bool,
        at: float,
        clock: float,
        took_s: float = 0.0,
        room: int = MAX_KEYS,
    ) -> Changes:
        """This takes in what one look found.

        Args:
            findings: what it found; of several with one key the first counts.
            complete: whether it saw all it wanted to; an incomplete look proves nothing absent.
            at: when it began, seconds since the Unix epoch.
            clock: the same on a clock that is never set, in seconds.
            took_s: how long it took. Somewhere within it saw what it saw: what a look saw is known to
                have lasted only from the end of that look to the beginning of another.
            room: how many may be confirmed now; the others wait for a later look that finds them.
        """
        by_key: dict[str, Finding] = {}
        for finding in findings:
            by_key.setdefault(finding.key, finding)
        gone = self._note_absent(by_key, complete=complete)
        raised: list[Confirmed] = []
        overflow = held_back = 0
        for key, finding in by_key.items():
            if key not in self._cases and len(self._cases) >= MAX_KEYS:
                overflow += 1
                continue
            case = self._note_present(finding, at, clock + took_s)
            if not case.is_due(clock):
                continue
            if len(raised) >= room:
                held_back += 1
                case.held_back = True
                continue
            case.raised = Confirmed(finding, case.seen, case.first_seen, at)
            raised.append(case.raised)
        cleared = [replace(one.raised, last_seen=one.last_seen) for one in gone if one.raised]
        suppressed = sum(one.held_back and not one.raised for one in gone)
        return Changes(tuple(raised), tuple(cleared), overflow, held_back, suppressed)

    def forget(self) -> tuple[Confirmed, ...]:
        """This forgets everything, as after a reset of the guest, and gives what was confirmed."""
        confirmed = self.standing
        self._cases.clear()
        return confirmed

    def _note_present(self, finding: Finding, at: float, over: float) -> _Case:
        """This notes a sighting of a look that began at a time, and was over at another."""
        case = self._cases.setdefault(finding.key, _Case(finding, over, at, at))
        case.finding = finding
        case.seen += 1
        case.missed = case.unseen = 0
        case.last_seen = at
        return case

    def _note_absent(self, present: dict[str, Finding], *, complete: bool) -> list[_Case]:
        """This notes what was not seen, and gives what is given up by that."""
        gone = []
        for key in self._cases.keys() - present.keys():
            case = self._cases[key]
            case.missed += complete
            case.unseen += not complete
            limit = ROUNDS_TO_CLEAR if case.raised else 1
            if case.missed >= limit or (case.unseen >= MAX_UNSEEN_ROUNDS and not case.raised):
                gone.append(self._cases.pop(key))
        return gone
