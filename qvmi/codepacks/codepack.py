"""The contract of a codepack: what it is asked, and the form of what it finds."""

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Final, Protocol

import msgspec

from qvmi.addr import Va
from qvmi.errors import UsageError
from qvmi.memory.physical import PhysicalMemory
from qvmi.policy import Grant
from qvmi.semantics.guest_os import GuestOS

__all__ = [
    "MAX_DATA_BYTES",
    "MAX_KEY_LENGTH",
    "MAX_OBSERVATIONS",
    "MAX_SETTLE_S",
    "Codepack",
    "Finding",
    "Observation",
    "Severity",
    "Unseen",
    "hexadecimal",
]

MAX_OBSERVATIONS: Final = 32
"""Observations in one finding; a claim that needs more is several claims."""

MAX_KEY_LENGTH: Final = 200
"""Characters in a key; an address, a time and a few words."""

MAX_SETTLE_S: Final = 3600.0
"""Longest time that a finding may ask to be watched before it is believed."""

MAX_DATA_BYTES: Final = 256
"""Bytes of the guest's memory in one observation: a page-table entry, a gate, the begin of a function."""

_TECHNIQUE: Final = re.compile(r"T[0-9]{4}(\.[0-9]{3})?")
_HEXADECIMAL: Final = re.compile(r"([0-9a-f]{2})*")


class Severity(StrEnum):
    """This is how bad a finding is if it is true."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """This is what one view of the guest shows of the thing a finding is about.

    Args:
        view: the structure that was read, such as ``init_task.tasks``.
        present: whether the thing is in it.
        address: where it was found; None where it was not.
        facts: what else the view shows, by name.
        structure: the C type of what lies there, such as ``struct task_struct``; empty for bytes.
        data: the bytes that lie there, in hexadecimal, see :func:`hexadecimal`; empty for none.

    Raises:
        UsageError: the data is no hexadecimal, or too long.
    """

    view: str
    present: bool
    address: Va | None = None
    facts: dict[str, str | int | float | bool | None] = {}
    structure: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        if not _HEXADECIMAL.fullmatch(self.data) or len(self.data) > 2 * MAX_DATA_BYTES:
            raise UsageError(
                f"data of {len(self.data)} characters: hexadecimal of {MAX_DATA_BYTES} bytes at most"
            )


def hexadecimal(data: bytes) -> str:
    """This is the form in which an observation holds bytes; what is too long for one is cut off."""
    return data[:MAX_DATA_BYTES].hex()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """This is something abnormal that was seen in one look at the guest.

    Args:
        claim: what is believed, in one sentence.
        severity: how bad it is if it is true.
        technique: its id in MITRE ATT&CK, such as ``T1014``.
        key: the same for the same thing in every look, and for nothing else: what is confirmed and
            cleared is a key. An address alone is not enough, memory is used again.
        evidence: the views that disagree.
        settle_s: how long it must have been seen before it is believed, beyond two looks: longer
            than the guest can take to pass through such a state in good health.

    Raises:
        UsageError: a field is out of bounds.
    """

    claim: str
    severity: Severity
    technique: str
    key: str
    evidence: tuple[Observation, ...]
    settle_s: float = 0.0

    def __post_init__(self) -> None:
        if not _TECHNIQUE.fullmatch(self.technique):
            raise UsageError(f"technique {self.technique!r} is no ATT&CK id such as T1014")
        if not 1 <= len(self.key) <= MAX_KEY_LENGTH:
            raise UsageError(f"key of {len(self.key)} characters; it has 1 to {MAX_KEY_LENGTH}")
        if not 1 <= len(self.evidence) <= MAX_OBSERVATIONS:
            raise UsageError(f"{len(self.evidence)} observations; give 1 to {MAX_OBSERVATIONS}")
        if not 0.0 <= self.settle_s <= MAX_SETTLE_S:
            raise UsageError(f"settle_s is {self.settle_s}; give 0 to {MAX_SETTLE_S:g}")


class Unseen(msgspec.Struct, frozen=True, kw_only=True):
    """This is something that a codepack has not looked at, though the guest would have answered.

    Args:
        what: was to be looked at, such as ``memory of processes``.
        reason: why not, and how much.
        goes_on: whether the next look goes on with it. Until nothing does, what is not found proves
            nothing; what is left out for good says nothing about what the codepack finds no more.
    """

    what: str
    reason: str
    goes_on: bool = False


class Codepack(Protocol):
    """This is a piece of detection logic.

    It is synchronous: whether it saw something twice, whether that is an alert and who hears of it
    are not its business, so it is tested with :mod:`qvmi.testing` and without a machine. What it
    remembers of earlier looks is bounded, and forgotten when the epoch of listings changes.
    """

    @property
    def name(self) -> str:
        """This is its name on the bus: 1 to 63 of a-z, 0-9 and -."""
        ...

    @property
    def interval_s(self) -> float:
        """This is the time from the start of one look to the start of the next."""
        ...

    @property
    def grants(self) -> frozenset[Grant]:
        """These are the grants it needs."""
        ...

    def inspect(self, guest: GuestOS, memory: PhysicalMemory) -> Iterable[Finding | Unseen]:
        """This looks once, and gives what is abnormal, and what it has left out itself.

        It may raise what the guest and the memory raise: then the look is incomplete, which is
        reported as such. Parts of a listing that could not be read (gaps) are noted by who runs it;
        the codepack must only not take what is missing behind a gap for absent.
        """
        ...
