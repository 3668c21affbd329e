"""Which memory of which processes is scanned next, and what was found where: without a guest, without rules.

Each region (a mapping that is executable or anonymous) is scanned once when it is there, where it grows in
what it has grown by, and again after some time. Regions take turns, a window each, so that one that never
ends holds up nobody.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from qvmi.addr import Va
from qvmi.codepacks.detectors.anonymous_memory import is_anonymous
from qvmi.machine.scanning.scan import LONGEST
from qvmi.semantics.guest_os import Listing, MemoryMapping, Process

__all__ = ["Hit", "Region", "ScanPlan", "is_wanted"]

MAX_REGIONS: Final = 200_000
"""Regions that are followed: a system with a thousand large programs has fewer."""
MAX_RULES_HIT: Final = 64
"""Rules that are told of one region; rules that all match everywhere are wrong about something."""

_MEMORY_FILES: Final = ("/memfd:", "/dev/zero", "/SYSV", "/dev/shm/")  # noqa: S108 - names of the guest's
"""What files are called that are memory and nothing else; anonymous memory that is shared is such a one."""


class Hit(NamedTuple):
    """This is one place at which a pattern of a rule matched.

    Args:
        va: where.
        pattern: its identifier in the rule.
        length: of the match, in bytes.
        data: the first of them.
    """

    va: Va
    pattern: str
    length: int
    data: bytes


Hits = dict[str, tuple[Hit, ...]]
"""Hits by the names of their rules."""


@dataclass(slots=True, eq=False)
class Region:
    """This is a mapping of a process, and how far it was scanned.

    Attributes:
        process: whose it is.
        mapping: as it was listed last.
        cursor: everything before it was scanned since the scan began.
        is_new: whether there is memory in it that was never scanned.
        turn: when it had a window scanned last, counted in windows.
        read: when its hits were read again last, counted in looks.
        hits: what the last scan that came to its end has found, as far as that is still there.
        fresh: what the scan that goes on has found.
        scanned_at: when the last scan came to its end, or was to begin.
        scanned_bytes: in the scan that goes on, or the last one.
        problems: why parts of it were not scanned since the scan began, and how many.
        problems_before: the same of the scan before, while this one goes on.
    """

    process: Process
    mapping: MemoryMapping
    cursor: Va
    scanned_at: float
    is_new: bool = True
    turn: int = 0
    read: int = 0
    hits: Hits = field(default_factory=dict)
    fresh: Hits = field(default_factory=dict)
    scanned_bytes: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    problems_before: dict[str, int] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """This tells whether there is nothing left to scan."""
        return self.cursor >= self.mapping.end

    @property
    def found(self) -> Hits:
        """This is all that is known of it: where the scan that goes on knows more, that counts."""
        return self.hits | self.fresh

    def begin_again(self) -> None:
        """This has it scanned from its beginning on; what was found stands until that ends."""
        self.cursor, self.is_new = self.mapping.start, False
        self.problems_before, self.problems = self.problems, {}
        self.fresh, self.scanned_bytes = {}, 0

    def changed(self, mapping: MemoryMapping) -> None:
        """This takes the mapping as it is now: in what it has grown by it is new."""
        if mapping.end > self.mapping.end:
            if self.is_done:
                self.fresh = self.found
                self.cursor = Va(max(mapping.start, self.mapping.end - LONGEST))
            self.is_new = True
        self.mapping = mapping

    def add(self, rule: str, hits: Iterable[Hit], *, most: int) -> None:
        """This adds what was found: the first hits of each rule, each once."""
        known = self.fresh.get(rule, ())
        if not known and len(self.fresh) >= MAX_RULES_HIT:
            self.note("more rules match there than are told", 1)
            return
        self.fresh[rule] = tuple(dict.fromkeys((*known, *hits)))[:most]

    def drop(self, rule: str, gone: Hit) -> None:
        """This forgets a hit that is there no more."""
        for its in (self.hits, self.fresh):
            left = tuple(one for one in its.get(rule, ()) if one != gone)
            its.pop(rule, None)
            if left:
                its[rule] = left

    def note(self, problem: str, count: int) -> None:
        """This notes why a part was not scanned."""
        self.problems[problem] = self.problems.get(problem, 0) + count

    def advance(self, cursor: Va, *, at: float) -> None:
        """This notes how far the scan is, and ends it where that is the end."""
        self.cursor = cursor
        if self.is_done:
            self.hits, self.fresh = self.fresh, {}
            self.is_new, self.scanned_at, self.problems_before = False, at, {}


Key = tuple[int, float, int, str, str, int, int]


class ScanPlan:
    """This follows the regions of all processes.

    Args:
        rescan_s: after so long a region is scanned again, by the clock of the listings.

    Attributes:
        left_out: regions that are too many to be followed.
    """

    def __init__(self, *, rescan_s: float) -> None:
        self.left_out = 0
        self._rescan_s = rescan_s
        self._regions: dict[Key, Region] = {}
        self._turns = 0

    @property
    def regions(self) -> Sequence[Region]:
        """These are all regions."""
        return list(self._regions.values())

    def update(
        self, processes: Mapping[int, Process], mappings: Listing[MemoryMapping], *, at: float
    ) -> None:
        """This takes in which mappings there are now.

        Args:
            processes: by pid.
            mappings: of all; what may be missing behind a gap is not gone while its process is there.
            at: when, on the clock of the listings.
        """
        before, self._regions, self.left_out = self._regions, {}, 0
        for mapping in mappings:
            process = processes.get(mapping.pid)
            if process is not None and is_wanted(mapping):
                self._follow(process, mapping, before, at)
        if mappings.gaps:
            for key, region in before.items():
                process = processes.get(region.process.pid)
                if process is not None and process.address == region.process.address:
                    self._regions.setdefault(key, region)
        for region in self._regions.values():
            if region.is_done and not region.scanned_at <= at < region.scanned_at + self._rescan_s:
                region.begin_again()

    def forget(self) -> None:
        """This forgets everything, as after a reset of the guest."""
        self._regions.clear()

    def queue(self) -> deque[Region]:
        """These are the regions that have something left to scan: new ones first, then who waits longest."""
        waiting = (one for one in self._regions.values() if not one.is_done)
        return deque(sorted(waiting, key=lambda one: (not one.is_new, one.turn)))

    def note_turn(self, region: Region) -> None:
        """This has a region wait behind all others."""
        self._turns += 1
        region.turn = self._turns

    def _follow(
        self, process: Process, mapping: MemoryMapping, before: Mapping[Key, Region], at: float
    ) -> None:
        if len(self._regions) >= MAX_REGIONS:
            self.left_out += 1
            return
        key = _key(process, mapping)
        region = before.get(key)
        if region is None:
            region = Region(process, mapping, mapping.start, at)
        else:
            region.process = process
            region.changed(mapping)
        self._regions[key] = region


def is_wanted(mapping: MemoryMapping) -> bool:
    """This tells whether a mapping is scanned: code, and memory that no file on a disk stands behind."""
    if "x" in mapping.permissions or is_anonymous(mapping):
        return True
    return bool(mapping.inode) and mapping.name.startswith(_MEMORY_FILES)


def _key(process: Process, mapping: MemoryMapping) -> Key:
    """This is the same for the same mapping of the same process in every look, also where it has grown."""
    return (
        *(process.address, process.start_time_s, mapping.start, mapping.permissions),
        *(mapping.device, mapping.inode, mapping.offset),
    )
