"""One look of one codepack at a guest: whatever the codepack does, there is a result."""

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeVar

import msgspec

from qvmi.codepacks.codepack import Codepack, Finding, Unseen
from qvmi.codepacks.observed_guest import ObservedGuest
from qvmi.codepacks.status import Sight
from qvmi.errors import CodepackError, QvmiError, UsageError
from qvmi.memory.physical import PhysicalMemory
from qvmi.semantics.guest_os import Gap
from qvmi.view import Provenance, Taken

__all__ = ["MAX_FINDINGS", "MAX_FINDING_BYTES", "Look", "in_words", "look"]

MAX_FINDINGS: Final = 1000
"""Findings taken from one look. A guest can give a codepack as many as it likes: no failure of its own."""

MAX_FINDING_BYTES: Final = 32 * 1024
"""Longest finding as JSON: half of what fits into one message."""

Given = TypeVar("Given", Finding, Unseen)

_MAX_PROBLEM: Final = 500
"""Characters of an error that are passed on, and of a reason why something was left out: a status has some
dozens of these, and has to fit into one message."""
_MAX_WHAT: Final = 64
"""Characters of what was left out."""


@dataclass(frozen=True, slots=True)
class Look:
    """This is the result of one look.

    Args:
        sight: how far it saw.
        provenance: how what it saw was taken.
        findings: what it found; also an incomplete look may have found something.
        gaps: the first parts of the guest that could not be seen.
        gap_count: how many could not be seen.
        left_out: how many of them the codepack has left out itself.
        goes_on: whether the next look goes on where this one has ended.
        problem: what was wrong, in words.
        error: the same as it was raised; None if nothing was.
    """

    sight: Sight
    provenance: Provenance
    findings: tuple[Finding, ...] = ()
    gaps: tuple[Gap, ...] = ()
    gap_count: int = 0
    problem: str = ""
    error: BaseException | None = None
    left_out: int = 0
    goes_on: bool = False

    @property
    def is_complete(self) -> bool:
        """This tells whether what it did not find, of what had been found before, is gone."""
        if self.sight is Sight.GAPS:
            return self.gap_count == self.left_out and not self.goes_on
        return self.sight is Sight.FULL


def look(codepack: Codepack, guest: ObservedGuest, memory: PhysicalMemory) -> Look:
    """This lets the codepack look once. It never raises.

    This is the door behind which foreign code runs: what comes out of it, SystemExit and
    CancelledError included, says something about the codepack and nothing about this program.
    """
    began = time.time()
    findings: list[Finding] = []
    unseen: list[Unseen] = []
    error: BaseException | None = None
    gaps: list[Gap] = []
    try:
        gaps += _collect(codepack, guest, memory, (findings, unseen))
    except BaseException as caught:  # noqa: BLE001 - the marked door of the codepack runner
        error = caught
    gap_count = guest.gap_count + len(gaps)
    return Look(
        sight=_sight(error, gaps=gap_count),
        provenance=guest.provenance or Provenance(Taken.LIVE, began),
        findings=tuple(findings),
        gaps=(*gaps, *guest.gaps),
        gap_count=gap_count,
        problem="" if error is None else in_words(error),
        error=error,
        left_out=len(unseen),
        goes_on=any(one.goes_on for one in unseen),
    )


def in_words(error: BaseException) -> str:
    """This is an error on one line, whatever it does itself when it is asked.

    Those of qvmi say in words what is wrong; of others the class says what the words leave out.
    """
    kind = type(error)
    try:
        text = "".join(traceback.format_exception_only(error)).strip()
    except BaseException:  # noqa: BLE001 - of the same door: its notes, and what a SyntaxError says
        text = kind.__qualname__
    if isinstance(error, QvmiError):
        text = text.removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
    # No message takes half of a letter, as names of files may have in Python.
    text = text.encode("utf-8", "backslashreplace").decode()
    return " ".join(text.split())[:_MAX_PROBLEM]


def _collect(
    codepack: Codepack,
    guest: ObservedGuest,
    memory: PhysicalMemory,
    seen: tuple[list[Finding], list[Unseen]],
) -> Iterator[Gap]:
    """This takes what a codepack gives, and gives what it was not asked for any more."""
    findings, unseen = seen
    for number, given in enumerate(islice(codepack.inspect(guest, memory), MAX_FINDINGS + 1)):
        if number == MAX_FINDINGS:
            yield Gap(
                "findings", None, f"more than {MAX_FINDINGS} in one look: others are not told"
            )
            return
        if isinstance(given, Unseen):
            one = _checked(given, Unseen, codepack.name)
            guest.note_gap(Gap(one.what[:_MAX_WHAT], None, one.reason[:_MAX_PROBLEM]))
            unseen.append(one)
        else:
            findings.append(_checked(given, Finding, codepack.name))


def _checked(given: Given, kind: type[Given], codepack: str) -> Given:
    """This is a copy of what was given that holds nothing but what its type says."""
    if not isinstance(given, kind):
        raise CodepackError(codepack, f"gave a {type(given).__name__} for a finding")
    data = msgspec.json.encode(given)
    if len(data) > MAX_FINDING_BYTES:
        raise CodepackError(codepack, f"gave a finding of {len(data)} bytes")
    return msgspec.json.decode(data, type=kind)


def _sight(error: BaseException | None, *, gaps: int) -> Sight:
    if error is None:
        return Sight.GAPS if gaps else Sight.FULL
    ours = isinstance(error, QvmiError) and not isinstance(error, UsageError | CodepackError)
    return Sight.BLIND if ours else Sight.FAILED
