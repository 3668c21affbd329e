"""Walks of a guest that forks as fast as it can: each row is a task that existed."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Listing, Process, Thread
from tests.guests.agreement import shown_name, start_ticks
from tests.guests.lab import Guest, GuestConfig, Lab, Storm, Task, Truth
from tests.guests.pool import GuestPool
from tests.proofs import proof_size

LEAST_TASKS_SEEN: Final = 100
"""Short-lived tasks that must have been met, or the guest did not storm."""
LONGEST_S: Final = 90.0
"""A guest that has not forked so often by then hangs."""
MOST_WITH_GAPS: Final = 0.02
"""Of the walks. A gap is an honest answer, but one that is always given would prove nothing."""
EVERY: Final = {"processes": 1, "process_ids": 5, "threads": 5, "captured": 1, "paused": 5}
"""How often each table is walked: in every so-manieth round."""

WORKER: Final = re.compile(r"kworker/u?\d+:\d+[A-Z]?")
"""Kernel workers come and go by themselves; the storm's log does not know them."""
ASKED_WALKS: Final = 20
STORM_STATES: Final = frozenset("RSDXZ")


@dataclass(slots=True)
class Walks:
    """This is what all walks of one kind have seen.

    Attributes:
        count: of the walks; `with_gaps` of those that had one, `retries` of what was read again.
        gaps: some of them.
        rows: every row that was seen, once.
        least: the pids that were in every walk without gaps.
        twice: pids that were in one walk more than once.
    """

    count: int = 0
    with_gaps: int = 0
    retries: int = 0
    gaps: set[str] = field(default_factory=set)
    rows: set[Process | Thread] = field(default_factory=set)
    least: set[int] | None = None
    twice: set[int] = field(default_factory=set)

    def add(self, listing: Listing[Process] | Listing[Thread]) -> None:
        """This takes one walk in."""
        pids: set[int] = set()
        for row in listing:
            (self.twice if row.pid in pids else pids).add(row.pid)
        self.count += 1
        self.retries += listing.provenance.retries
        self.rows.update(listing)
        if listing.gaps:
            self.with_gaps += 1
            self.gaps.update(str(gap) for gap in listing.gaps)
        else:
            self.least = pids if self.least is None else self.least & pids

    def __str__(self) -> str:
        return (
            f"{self.count} walks, {len(self.rows)} different rows, {self.retries} retries,"
            f" {self.with_gaps} walks with gaps {sorted(self.gaps)[:3]}"
        )


@dataclass(frozen=True, slots=True)
class Watched:
    """This is a storm, what was seen of it, and what the guest says of it."""

    before: Truth
    storm: Storm
    after: Truth
    walks: dict[str, Walks]

    def residents(self, table: str) -> set[int]:
        """These are the pids of the tasks that were there all the time."""
        unchanged = self.before.unchanged_until(self.after).values()
        return {task.pid for task, _ in unchanged if task.leads or table == "threads"}


@pytest.fixture(scope="module")
def watched(guest: Guest, profiles: Path) -> Watched:
    before = guest.settled_truth()
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        guest.start_storm()
        try:
            walks = _walk(machine)
        finally:
            storm = guest.stop_storm()
    return Watched(before, storm, guest.settled_truth(), walks)


def _walk(machine: qvmi.SyncMachine) -> dict[str, Walks]:
    """This walks so many times, and on until enough tasks were met that did not live long."""
    size = proof_size(ci=250, full=1000)
    linux = machine.guest

    def paused() -> Listing[Process]:
        with machine.paused():
            exact = machine.guest.processes()
            again = machine.capture(lambda guest: guest.processes())
            assert (exact.items, exact.gaps) == (again.items, again.gaps)
        return exact

    looks: dict[str, Callable[[], Listing[Process] | Listing[Thread]]] = {
        "processes": linux.processes,
        "process_ids": linux.process_ids,
        "threads": linux.threads,
        "captured": lambda: machine.capture(lambda guest: guest.processes()),
        "paused": paused,
    }
    walks = {name: Walks() for name in EVERY}
    processes = walks["processes"]
    settled = len(linux.processes())
    deadline = time.monotonic() + LONGEST_S
    while processes.count < size or len(processes.rows) < settled + LEAST_TASKS_SEEN:
        for name, look in looks.items():
            if processes.count % EVERY[name] == 0 or name == "processes":
                walks[name].add(look())
        assert time.monotonic() < deadline, str(processes)
    return walks


@dataclass(frozen=True, slots=True)
class Explanation:
    """This says with which names and parents a pid of the storm may be seen."""

    names: frozenset[str]
    parents: frozenset[int]


def _explanations(watched: Watched) -> dict[int, Explanation]:
    """These are what the pids of the storm may be seen as, by its own account."""
    storm = watched.storm
    found: dict[int, Explanation] = {}
    names = {pid: frozenset(map(shown_name, given)) for pid, given in storm.names().items()}
    names = {pid: given | set(_overlaps(given)) for pid, given in names.items()}
    for serial, pid in enumerate(storm.pids):
        found[pid] = Explanation(names[pid], frozenset({storm.parent}))
        second = storm.seconds.get(serial)
        if second is not None:
            found[second] = Explanation(names[second], frozenset({pid, 1}))
    return found | {storm.parent: Explanation(frozenset({"storm-parent"}), frozenset({1}))}


def _overlaps(names: frozenset[str]) -> Iterator[str]:
    """These are the beginnings of each name with the rest of each other one behind them.

    Names are written over the old ones, under a lock that nobody outside can take; newer kernels have none,
    and show the mix in their own /proc too (fs/exec.c, __set_task_comm).
    """
    for old, new in permutations(names, 2):
        yield from (new[:written] + old[written:] for written in range(1, len(new) + 1))


def _unexplained(watched: Watched, rows: set[Process | Thread]) -> Iterator[str]:
    """These are the rows that no task was ever like."""
    ticks = watched.before.clock_ticks
    residents = {task.identity: task for task in (*watched.before.tasks, *watched.after.tasks)}
    stormy = _explanations(watched)
    for row in rows:
        identity = row.pid, row.tgid, start_ticks(row, ticks)
        if identity in residents:
            reason = _unlike_resident(row, residents[identity])
        elif row.pid in stormy and identity[2] >= watched.before.uptime * ticks - 1:
            reason = _unlike_storm(row, stormy[row.pid])
        else:
            reason = "" if WORKER.fullmatch(row.name) else "no task that existed"
        if reason:
            yield f"{row} is {reason}"


def _unlike_resident(row: Process | Thread, task: Task) -> str:
    """This says how a row differs from the resident that it is; empty for not at all."""
    if not shown_name(task.name).startswith(row.name):
        return f"not called {task.name!r}"
    if isinstance(row, Process) and (row.uid, row.gid, row.ppid, row.kernel_thread) != (
        *(task.uid, task.gid, task.ppid, task.kernel_thread),
    ):
        return f"not {task}"
    return ""


def _unlike_storm(row: Process | Thread, task: Explanation) -> str:
    """This says how a row differs from the short-lived task that it is; empty for not at all."""
    if row.name not in task.names or row.state not in STORM_STATES:
        return f"not like {task}"
    if isinstance(row, Thread):
        return ""
    ids = (row.uid, row.gid, row.kernel_thread)
    return "" if ids == (0, 0, False) and row.ppid in task.parents else f"not like {task}"


@pytest.fixture(scope="module", params=["pmemsave", "gdbstub"])
def asked(lab: Lab, profiles: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """This is a storm, seen at single moments by memory that has to be asked for.

    While the guest runs on, such a walk is some 50 times slower than the storm, and ends with a gap.
    """
    with ExitStack() as stack:
        guest = GuestPool(lab, stack).restore(GuestConfig("6.1"))
        before, walks = guest.settled_truth(), Walks()
        with qvmi.attach_sync(guest.qmp, cache=profiles, sources=[request.param]) as machine:
            at_one_moment = machine.query if request.param == "gdbstub" else machine.capture
            settled = len(at_one_moment(lambda linux: linux.processes()))
            deadline = time.monotonic() + LONGEST_S
            guest.start_storm()
            try:
                while walks.count < ASKED_WALKS or len(walks.rows) < settled + LEAST_TASKS_SEEN:
                    walks.add(at_one_moment(lambda linux: linux.processes()))
                    assert time.monotonic() < deadline, str(walks)
            finally:
                storm = guest.stop_storm()
        found = {"processes": walks}
        yield Watched(before, storm, guest.settled_truth(), found)


def test_every_row_is_a_task_that_existed_though_memory_has_to_be_asked_for(
    asked: Watched,
    proof_count: Callable[[int], None],
    record_property: Callable[[str, str], None],
) -> None:
    walks = asked.walks["processes"]
    record_property("storm", f"{asked.storm.count} forks; {walks}")
    assert not list(_unexplained(asked, walks.rows))
    assert not walks.twice
    assert walks.retries <= walks.count * MOST_WITH_GAPS, str(walks)
    proof_count(walks.count)


def test_every_row_is_a_task_that_existed(
    watched: Watched,
    proof_count: Callable[[int], None],
    record_property: Callable[[str, str], None],
) -> None:
    record_property("storm", f"{watched.storm.count} forks; {watched.walks['processes']}")
    assert not list(_unexplained(watched, watched.walks["processes"].rows))
    proof_count(watched.walks["processes"].count)


@pytest.mark.parametrize("table", ["process_ids", "threads", "captured", "paused"])
def test_every_row_of_other_tables_is_a_task_that_existed(watched: Watched, table: str) -> None:
    assert not list(_unexplained(watched, watched.walks[table].rows))


def test_a_capture_has_nothing_to_read_again(
    watched: Watched, proof_count: Callable[[int], None]
) -> None:
    """What changes while it is read is read again; what stands still is not."""
    captured = watched.walks["captured"]
    assert captured.retries <= captured.count * MOST_WITH_GAPS, str(captured)
    proof_count(captured.count)


@pytest.mark.parametrize("table", EVERY)
def test_no_task_that_stays_is_missed(watched: Watched, table: str) -> None:
    seen = watched.walks[table].least
    assert seen is not None
    assert seen >= watched.residents(table)


@pytest.mark.parametrize("table", EVERY)
def test_no_task_is_listed_twice(watched: Watched, table: str) -> None:
    assert not watched.walks[table].twice


@pytest.mark.parametrize("table", EVERY)
def test_few_walks_have_gaps(
    watched: Watched, table: str, record_property: Callable[[str, str], None]
) -> None:
    walks = watched.walks[table]
    record_property(table, str(walks))
    assert walks.with_gaps <= MOST_WITH_GAPS * walks.count, str(walks)
