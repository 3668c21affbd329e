"""Credentials, namespaces and cgroups of a guest whose processes come, go and move all the time.

What does not change is seen in every look; what changes is seen as it was at some moment.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Listing
from qvmi.semantics.guest_os import Cgroup, Credentials, Namespaces
from tests.guests.lab import Guest, Storm
from tests.proofs import proof_size

LONGEST_S: Final = 60.0
LEAST_STATES: Final = 5
"""Different answers that must have been met, or the guest did not change."""
MOST_WITH_GAPS: Final = 0.05
"""Of the looks: a gap is an honest answer, but one that is always given would prove nothing."""
QUESTIONS: Final = ("credentials", "namespaces", "cgroups")
HOPS: Final = ("/hop-a", "/hop-b/below")
HOPPER: Final = (
    "cd /sys/fs/cgroup; mkdir -p hop-a hop-b/below; printf hopper > /proc/self/comm;"
    " while [ ! -e /run/still ]; do echo $$ > hop-a/cgroup.procs;"
    " echo $$ > hop-b/below/cgroup.procs; done"
)
"""A shell that moves itself from one cgroup to another for ever, and starts nothing meanwhile."""

Row = Credentials | Namespaces | Cgroup


@dataclass(slots=True)
class Stormed:
    """This is what was seen of a fork storm, and what the guest says of it.

    Attributes:
        kernel_threads: the pids of those that were there before.
        calm: the rows of each question that were there before, but for theirs.
        looks: the listings, by question.
    """

    kernel_threads: frozenset[int]
    calm: dict[str, frozenset[Row]]
    storm: Storm | None = None
    looks: dict[str, list[Listing[Row]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def stormed(guest: Guest, profiles: Path) -> Stormed:
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        linux = machine.guest
        kernel_threads = frozenset(row.pid for row in linux.processes() if row.kernel_thread)

        def ask(question: str) -> Listing[Row]:
            listing: Listing[Row] = getattr(linux, question)()
            return listing

        before = {q: [row for row in ask(q) if row.pid not in kernel_threads] for q in QUESTIONS}
        calm = {q: frozenset(r for r in rows if not _is_worker(r)) for q, rows in before.items()}
        seen = Stormed(kernel_threads, calm)
        guest.start_storm()
        try:
            deadline = time.monotonic() + LONGEST_S
            while not _seen_enough(seen):
                for question in QUESTIONS:
                    seen.looks.setdefault(question, []).append(ask(question))
                assert time.monotonic() < deadline
        finally:
            seen.storm = guest.stop_storm()
    return seen


def _seen_enough(seen: Stormed) -> bool:
    return all(
        len(looks) >= proof_size(ci=60, full=500)
        and len({listing.items for listing in looks}) >= LEAST_STATES
        for looks in (seen.looks.get(question, ()) for question in QUESTIONS)
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_storm_changes_nothing_of_others_and_invents_nothing(
    stormed: Stormed, question: str, proof_count: Callable[[int], None]
) -> None:
    assert stormed.storm is not None
    known = {*stormed.storm.pids, *stormed.storm.seconds.values(), stormed.storm.parent}
    before = stormed.calm[question]
    inherited = {_content(row) for row in before}
    looks = stormed.looks[question]
    for listing in looks:
        if not listing.gaps:
            assert before <= frozenset(listing)
        new = {
            row
            for row in listing
            if row not in before and row.pid not in stormed.kernel_threads and not _is_worker(row)
        }
        assert {row.pid for row in new} <= known
        assert {_content(row) for row in new} <= inherited
    proof_count(len(looks))


def _is_worker(row: Row) -> bool:
    """Kernel workers come and go as well, bearing the name of who makes them at first."""
    return row.name.startswith(("kworker/", "kthreadd"))


def _content(row: Row) -> tuple[object, ...]:
    """This is what a child has of its parent."""
    if isinstance(row, Credentials):
        return (row.uid, row.gid, row.groups, row.effective, row.label, row.shared_with)
    if isinstance(row, Namespaces):
        return (row.mnt, row.pid_ns, row.net, row.uts, row.user, row.hostname)
    return (row.hierarchy, row.controllers, row.path, row.deleted, row.runtime)


@pytest.mark.parametrize("question", QUESTIONS)
def test_few_looks_at_a_storm_have_gaps(stormed: Stormed, question: str) -> None:
    looks = stormed.looks[question]
    gaps = [gap for listing in looks for gap in listing.gaps]
    assert sum(bool(one.gaps) for one in looks) <= len(looks) * MOST_WITH_GAPS, gaps[:5]


def test_who_moves_between_cgroups_is_seen_in_one_of_them(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    guest.run(f"(sh -c '{HOPPER}') < /dev/null > /dev/null 2>&1 &")
    places: list[str] = []
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        try:
            deadline = time.monotonic() + LONGEST_S
            while len(places) < proof_size(ci=100, full=1000) or not set(HOPS) <= set(places):
                rows = [
                    row
                    for row in machine.guest.cgroups()
                    if row.name == "hopper" and row.hierarchy == 0
                ]
                places += (row.path for row in rows)
                assert len(rows) <= 1
                assert time.monotonic() < deadline, set(places)
        finally:
            guest.run("touch /run/still")
    assert set(places) <= {"/", *HOPS}
    proof_count(len(places))
