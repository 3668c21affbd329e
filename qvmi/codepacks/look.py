"""One look of one codepack at a guest: whatever the codepack does, there is a result."""

import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from qvmi.codepacks.codepack import Codepack, Finding
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

_MAX_PROBLEM: Final = 500
"""Characters of an error that are passed on."""


@dataclass(frozen=True, slots=True)
class Look:
    """This is the result of one look.

    Args:
        sight: how far it saw.
        provenance: how what it saw was taken.
        findings: what it found; also an incomplete look may have found something.
        gaps: the first parts of the guest that could not be seen.
        gap_count: how many could not be seen.
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


def look(codepack: Codepack, guest: ObservedGuest, memory: PhysicalMemory) -> Look:
    """This lets the codepack look once. It never raises.

    This is the door behind which foreign code runs: what comes out of it, SystemExit and
    CancelledError included, says something about the codepack and nothing about this program.
    """
    began = time.time()
    findings: list[Finding] = []
    error: BaseException | None = None
    gaps: list[Gap] = []
    try:
        gaps += _collect(codepack, guest, memory, findings)
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
    )


def in_words(error: BaseException) -> str:
    """This is an error on one line, whatever its own ``__str__`` does.

    Those of qvmi say in words what is wrong; of others the class says what the words leave out.
    """
    text = "".join(traceback.format_exception_only(error)).strip()
    if isinstance(error, QvmiError):
        kind = type(error)
        text = text.removeprefix(f"{kind.__module__}.{kind.__qualname__}: ")
    return " ".join(text.split())[:_MAX_PROBLEM]


def _collect(
    codepack: Codepack, guest: ObservedGuest, memory: PhysicalMemory, findings: list[Finding]
) -> Iterator[Gap]:
    """This takes what a codepack finds, and gives what it was not asked for any more."""
    for finding in islice(codepack.inspect(guest, memory), MAX_FINDINGS + 1):
        if len(findings) == MAX_FINDINGS:
            yield Gap(
                "findings", None, f"more than {MAX_FINDINGS} in one look: others are not told"
            )
            return
        findings.append(_checked(finding, codepack.name))


def _checked(finding: Finding, codepack: str) -> Finding:
    """This is a copy of the finding that holds nothing but what its type says."""
    if not isinstance(finding, Finding):
        raise CodepackError(codepack, f"gave a {type(finding).__name__} for a finding")
    data = msgspec.json.encode(finding)
    if len(data) > MAX_FINDING_BYTES:
        raise CodepackError(codepack, f"gave a finding of {len(data)} bytes")
    return msgspec.json.decode(data, type=Finding)


def _sight(error: BaseException | None, *, gaps: int) -> Sight:
    if error is None:
        return Sight.GAPS if gaps else Sight.FULL
    ours = isinstance(error, QvmiError) and not isinstance(error, UsageError | CodepackError)
    return Sight.BLIND if ours else Sight.FAILED
