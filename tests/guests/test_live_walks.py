"""Walks of a guest that forks as fast as it can: each row is a task that existed."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Listing, Process, Thread
from tests.asynchronous import asynchronous
from tests.guests.agreement import shown_name, start_ticks
from tests.guests.lab import Guest, Storm, Truth
from tests.proofs import proof_size

WALKS: Final = (250, 1000)
"""Of each kernel; the requirement is 1,000 in all."""
LEAST_TASKS_SEEN: Final = 50
"""Short-lived tasks that must have been met, or the guest did not storm."""
LONGEST_S: Final = 90.0
"""A guest that has not forked so often by then hangs."""
MOST_GAPS: Final = 0.02
"""Of the walks. A gap is an honest answer, but one that is always given would prove nothing."""

WORKER: Final = re.compile(r"kworker/[u]?\d+:\d+[A-Z]?")
"""Kernel workers come and go by themselves; the storm's log does not know them."""


@dataclass(slots=True)
class Walks:
    """This is what all walks of one storm have seen.

    Attributes:
        rows: every distinct row, with the numbers of the walks that saw it being of no interest.
        missing: pids that exist all the time, and were not in a walk without gaps.
    """

    residents: frozenset[int]
    count: int = 0
    retries: int = 0
    with_gaps: int = 0
    rows: set[Process | Thread] = field(default_factory=set)
    missing: set[int] = field(default_factory=set)
    twice: set[int] = field(default_factory=set)

    def add(self, listing: Listing[Process] | Listing[Thread]) -> None:
        """This takes one walk in."""
        pids = [row.pid for row in listing]
        self.count += 1
        self.retries += listing.provenance.retries
        self.with_gaps += bool(listing.gaps)
        self.rows.update(listing)
        self.twice.update({pid for pid in pids if pids.count(pid) > 1} if len(set(pids)) < len(pids) else ())
        if not listing.gaps:
            self.missing |= self.residents.difference(pids)

    def summary(self) -> str:
        """This is what is worth knowing of the walks, for the record."""
        return json.dumps(
            {
                "walks": self.count,
                "rows": len(self.rows),
                "retries": self.retries,
                "with gaps": self.with_gaps,
            }
        )


@contextmanager
def _storm(guest: Guest) -> Iterator[list[Storm]]:
    """This lets the guest fork during the block; the list holds the storm's own account behind it."""
    account: list[Storm] = []
    guest.start_storm()
    try:
        yield account
    finally:
        account.append(guest.stop_storm())


def _walk(look: Callable[[], Listing[Process] | Listing[Thread]], walks: Walks, size: int) -> None:
    """This looks so many times, and on until enough tasks were met that did not live long."""
    deadline = time.monotonic() + LONGEST_S
    while walks.count < size or len(walks.rows) < len(walks.residents) + LEAST_TASKS_SEEN:
        walks.add(look())
        assert time.monotonic() < deadline, walks.summary()


def _unexplained(walks: Walks, before: Truth, storm: Storm, after: Truth) -> Iterator[str]:
    """These are the rows that no task was ever like."""
    residents = {task.pid: task for truth in (before, after) for task in truth.tasks}
    stormy = {pid: {shown_name(name) for name in names} for pid, names in storm.names().items()}
    stormy[storm.parent] = {"init", "storm-parent"}
    for row in walks.rows:
        born = start_ticks(row, before.clock_ticks)
        resident = residents.get(row.pid)
        if resident is not None and born == resident.start_ticks:
            if not shown_name(resident.name).startswith(row.name) or row.tgid != resident.tgid:
                yield f"{row} is {resident}"
        elif row.pid in stormy:
            if row.name not in stormy[row.pid] or born < before.uptime * before.clock_ticks - 1:
                yield f"{row} is none of {stormy[row.pid]}"
        elif not WORKER.fullmatch(row.name):
            yield f"{row} never existed"


def _ids_wrong(walks: Walks, storm: Storm) -> list[Process | Thread]:
    """These are the rows of the storm whose ids are not the storm's."""
    names = storm.names()
    return [
        row
        for row in walks.rows
        if isinstance(row, Process)
        and row.pid in names
        and (row.uid, row.gid, row.kernel_thread) != (0, 0, False)
    ]


async def _storm_seen(
    guest: Guest, profiles: Path, size: int, look: Callable[[qvmi.Machine], Callable[[], Listing[Process]]]
) -> tuple[Walks, list[str]]:
    before = guest.settled_truth()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        walks = Walks(frozenset())
        with _storm(guest) as account:
            _walk(look(machine), walks, size)
    after = guest.settled_truth()
    return walks, list(_unexplained(walks, before, account[0], after))
