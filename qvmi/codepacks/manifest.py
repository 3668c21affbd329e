"""The manifest ``codepack.toml``: what a codepack is, what it needs and how it is to be run."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import resources
from typing import Final

import msgspec

from qvmi.bus.topic import is_name
from qvmi.codepacks.triggers import MIN_GAP_S, Triggers
from qvmi.errors import CodepackRefused, UsageError
from qvmi.policy import Grant, Policy
from qvmi.semantics.rows.events import EventKind
from qvmi.settings import Table

__all__ = [
    "ENFORCEMENT",
    "MANIFEST_FILE",
    "MANIFEST_VERSION",
    "Kind",
    "Management",
    "Manifest",
    "Requirements",
    "Restart",
    "built_in_manifest",
    "parse_manifest",
]

MANIFEST_FILE: Final = "codepack.toml"
MANIFEST_VERSION: Final = 1

MAX_TIME_S: Final = 86400.0
"""Longest interval or deadline: a day."""
MAX_MEMORY: Final = 1 << 40
"""Most memory that a codepack may ask for, in bytes: what no host gives it."""
MAX_RESTARTS: Final = 1000
MAX_SUMMARY: Final = 200
"""Letters of the summary: one line."""

_IDENTIFIER: Final = "[A-Za-z_][A-Za-z0-9_]{0,63}"
_ENTRY: Final = re.compile(rf"{_IDENTIFIER}(\.{_IDENTIFIER}){{0,7}}:{_IDENTIFIER}")
_OPTION: Final = re.compile(_IDENTIFIER)
_VERSION: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}([-+.][0-9A-Za-z.+-]{1,32})?")
_NUMBERS: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
_CLAUSE: Final = re.compile(r"(>=|<)([0-9]{1,6}(?:\.[0-9]{1,6}){0,3})")
_MEMORY: Final = re.compile(r"([0-9]{1,6})([KMG])")
_UNITS: Final = {"K": 10, "M": 20, "G": 30}


class Restart(StrEnum):
    """This is when a codepack that ended is started again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Kind(StrEnum):
    """This is what a codepack does."""

    INSPECT = "inspect"
    """It looks when it is asked to."""
    SERVICE = "service"
    """It lives."""


class GuestSystem(StrEnum):
    """This is what may run in the guest."""

    LINUX = "linux"
    WINDOWS = "windows"


class Architecture(StrEnum):
    """This is what the guest may run on."""

    X86_64 = "x86_64"
    AARCH64 = "aarch64"


class _Form(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """This is a table of the manifest: what is not known in it is an error."""


class Requirements(_Form, frozen=True):
    """This is where a codepack can run at all.

    Args:
        qvmi: which versions of qvmi: ``>=0.1`` or ``>=0.1,<2``.
        os: which systems in the guest.
        architectures: on what.
    """

    qvmi: str = ">=0"
    os: tuple[GuestSystem, ...] = (GuestSystem.LINUX,)
    architectures: tuple[Architecture, ...] = (Architecture.X86_64, Architecture.AARCH64)


class Management(_Form, frozen=True):
    """This is how a codepack is to be run.

    Args:
        restart: when it is started again.
        max_restarts: how often in a row.
        interval_s: from the start of one look to the start of the next, in seconds.
        deadline_s: the longest look, in seconds.
        memory: the most it may take, such as ``256M``; its process, where it has one of its own.
        on_events: kinds of events of the guest for which it looks at once.
        answers: whether it answers questions of other codepacks, by a look.
        min_gap_s: shortest time between two looks because of these, in seconds.
    """

    restart: Restart = Restart.ON_FAILURE
    max_restarts: int = 5
    interval_s: float = 1.0
    deadline_s: float = 10.0
    memory: str = "256M"
    on_events: tuple[EventKind, ...] = ()
    answers: bool = False
    min_gap_s: float = MIN_GAP_S

    @property
    def triggers(self) -> Triggers:
        """This is what it looks for besides its interval."""
        return Triggers(frozenset(self.on_events), self.answers, self.min_gap_s)

    @property
    def max_failures(self) -> int:
        """This is in how many looks in a row it may fail where its process is that of others, too."""
        return 0 if self.restart is Restart.NEVER else self.max_restarts

    @property
    def memory_bytes(self) -> int:
        """This is the most memory it may take, in bytes."""
        found = _MEMORY.fullmatch(self.memory)
        return int(found[1]) << _UNITS[found[2]] if found else 0


ENFORCEMENT: Final[Mapping[str, Mapping[str, str]]] = {
    "run": {
        "grants": "not enforced: it is the process of qvmi pack run",
        "interval-s": "kept, unless --interval says another; on-events and answers are not used",
        "deadline-s": "told when over; the look is left to itself",
        "restart": "not used: a look that fails is told, and the next one begins",
        "memory": "not enforced",
    },
    "here": {
        "grants": "not enforced: all packs are one process",
        "interval-s": "kept; so are on-events and min-gap-s, with one watching of events for all",
        "deadline-s": "told when over; the look is left to itself",
        "restart": "of looks that fail in a row; it starts from where it was",
        "memory": "not enforced",
    },
    "process": {
        "grants": "by the manager and the broker; see what is told of the policy at the start",
        "interval-s": "kept",
        "deadline-s": "told when over; after twice as long its process is ended",
        "restart": "of its process, with all that it had started",
        "memory": "RLIMIT_DATA of its process",
    },
}
"""What holds a codepack to its manifest, by where it is placed."""


class _Whole(_Form, frozen=True):
    """This is the file as it is written."""

    manifest: int
    name: str
    version: str
    entry: str
    kind: Kind = Kind.INSPECT
    summary: str = ""
    grants: tuple[Grant, ...] = ()
    requires: Requirements = Requirements()
    management: Management = Management()
    baseline: dict[str, bool | int | float | str | list[bool | int | float | str]] = {}


@dataclass(frozen=True, slots=True)
class Manifest:
    """This is what a codepack says of itself.

    Args:
        name: on the bus.
        version: its own.
        entry: what makes it, as ``module:name``: called with ``interval_s`` and the baseline.
        summary: one line.
        grants: what it needs; it gets no others.
        requires: where it can run.
        management: how it is to be run.
        baseline: its configuration, unless another is given.
        kind: whether it looks when it is asked to, or lives.
    """

    name: str
    version: str
    entry: str
    summary: str
    grants: frozenset[Grant]
    requires: Requirements
    management: Management
    baseline: Mapping[str, object]
    kind: Kind = Kind.INSPECT

    def require_qvmi(self, version: str) -> None:
        """This raises CodepackRefused unless the codepack says that it runs on this version of qvmi."""
        for operator, wanted in _CLAUSE.findall(self.requires.qvmi):
            enough = _numbers(version) >= _numbers(wanted)
            if enough is not (operator == ">="):
                raise CodepackRefused(
                    self.name, f"it needs qvmi {self.requires.qvmi}, and this is {version}"
                )

    def require_guest(self, system: str, architecture: str) -> None:
        """This raises CodepackRefused unless the codepack is made for such a guest."""
        fits = system in self.requires.os and architecture in self.requires.architectures
        if not fits:
            made_for = f"{'|'.join(self.requires.os)} on {'|'.join(self.requires.architectures)}"
            raise CodepackRefused(
                self.name, f"it is made for {made_for}, and the guest is {system} on {architecture}"
            )

    def require_granted(self, policy: Policy) -> None:
        """This raises PolicyDenied unless the policy gives all that the codepack needs."""
        for grant in sorted(self.grants):
            policy.require(grant, f"codepack {self.name}")


def parse_manifest(path: str, data: bytes) -> Manifest:
    """This reads the bytes of a manifest.

    Raises:
        BadSettings: something in it cannot be right; says where, and the way out.
    """
    file = Table.parse(path, data)
    whole = file.read_as(_Whole)
    _require_whole(file, whole)
    _require_requirements(file.table("requires"), whole.requires)
    _require_management(file.table("management"), whole.management)
    for option in whole.baseline:
        if not _OPTION.fullmatch(option) or option == "interval_s":
            raise file.table("baseline").wrong(option, "cannot be an option's name")
    if len(set(whole.grants)) != len(whole.grants):
        raise file.wrong("grants", "names one twice")
    return Manifest(
        name=whole.name,
        version=whole.version,
        entry=whole.entry,
        summary=whole.summary,
        grants=frozenset(whole.grants),
        requires=whole.requires,
        management=whole.management,
        baseline=whole.baseline,
        kind=whole.kind,
    )


def built_in_manifest(name: str) -> Manifest:
    """This is the manifest of a codepack that comes with qvmi.

    Raises:
        UsageError: there is none of that name.
    """
    file = resources.files("qvmi.codepacks") / "manifests" / f"{name}.toml"
    if not is_name(name) or not file.is_file():
        raise UsageError(f"codepack {name!r} does not come with qvmi")
    return parse_manifest(f"{name}.toml", file.read_bytes())


def _require_whole(file: Table, whole: _Whole) -> None:
    if whole.manifest != MANIFEST_VERSION:
        raise file.wrong(
            "manifest", f"is {whole.manifest}, which is not known: write {MANIFEST_VERSION}"
        )
    if not is_name(whole.name):
        raise file.wrong("name", f"is {whole.name!r}: write 1 to 63 of a-z, 0-9 and -")
    if not _VERSION.fullmatch(whole.version):
        raise file.wrong("version", f"is {whole.version!r}: write one such as 1.2.0")
    if not _ENTRY.fullmatch(whole.entry):
        raise file.wrong("entry", f"is {whole.entry!r}: write module:Name")
    if len(whole.summary) > MAX_SUMMARY or not whole.summary.isprintable():
        raise file.wrong("summary", f"is no line of at most {MAX_SUMMARY} letters")


def _require_requirements(table: Table, requires: Requirements) -> None:
    clauses = [clause.strip() for clause in requires.qvmi.split(",")]
    if not all(_CLAUSE.fullmatch(clause) for clause in clauses):
        raise table.wrong("qvmi", f"is {requires.qvmi!r}: write >=0.1 or >=0.1,<2")
    for key, values in (("os", requires.os), ("architectures", requires.architectures)):
        if not values:
            raise table.wrong(key, "is empty: leave it out, or name one")


def _require_management(table: Table, management: Management) -> None:
    times = (
        ("interval-s", management.interval_s),
        ("deadline-s", management.deadline_s),
        ("min-gap-s", management.min_gap_s),
    )
    for key, seconds in times:
        if not (math.isfinite(seconds) and 0.001 <= seconds <= MAX_TIME_S):  # noqa: PLR2004 - a millisecond
            raise table.wrong(key, f"is {seconds}: write seconds from 0.001 to {MAX_TIME_S:g}")
    if not 0 <= management.max_restarts <= MAX_RESTARTS:
        raise table.wrong("max-restarts", f"is not from 0 to {MAX_RESTARTS}")
    if not 0 < management.memory_bytes <= MAX_MEMORY:
        raise table.wrong("memory", f"is {management.memory!r}: write such as 256M or 2G")


def _numbers(version: str) -> tuple[int, ...]:
    """These are the numbers that a version begins with, without zeros at the end."""
    found = _NUMBERS.match(version)
    numbers = [int(number) for number in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
