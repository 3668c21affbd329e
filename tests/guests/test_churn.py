"""Views of a guest that changes its mappings, files, mounts and processes as fast as it can.

What does not change is seen in every look; what changes is seen as it was at some moment.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import GuestError, Listing, Process
from qvmi.semantics.guest_os import CommandLine, LogRecord, MemoryMapping, Mount, OpenFile
from tests.guests.lab import Guest, Storm
from tests.proofs import proof_size

LONGEST_S: Final = 60.0
LEAST_STATES: Final = 5
"""Different answers about what changes that must have been met, or the guest did not change it."""
MOST_WITH_GAPS: Final = 0.05
"""Of the looks: a gap is an honest answer, but one that is always given would prove nothing."""
CHURN_FILES: Final = frozenset({"/run/churn/one", "/run/churn/two"})
CHURN_MOUNT: Final = "/run/churn/mount"
SMALL: Final = 0x1000
MOST_OF_THEM: Final = 60
FLOOD: Final = "flood of records"


@dataclass(slots=True)
class Looks:
    """These are the answers to one question.

    Attributes:
        count: of the looks; `with_gaps` of those that had one.
        answers: the different ones without gaps; `partial` those with.
        retries: how often parts were read again.
    """

    count: int = 0
    with_gaps: int = 0
    retries: int = 0
    gaps: set[str] = field(default_factory=set)
    answers: set[tuple[object, ...]] = field(default_factory=set)
    partial: set[tuple[object, ...]] = field(default_factory=set)

    def add(self, listing: Listing[object]) -> None:
        self.count += 1
        self.retries += listing.provenance.retries
        self.with_gaps += bool(listing.gaps)
        self.gaps.update(f"{gap.structure}: {gap.reason}" for gap in listing.gaps[:3])
        (self.partial if listing.gaps else self.answers).add(listing.items)

    def __str__(self) -> str:
        return (
            f"{self.count} looks, {len(self.answers)} different answers, {self.retries} retries,"
            f" {self.with_gaps} with gaps {sorted(self.gaps)[:4]}"
        )


@dataclass(slots=True)
class Churned:
    """This is what was seen while one process changed all that it has.

    Attributes:
        calm: the open files and mounts of the others before it began.
    """

    churn: Process
    calm_files: frozenset[OpenFile]
    calm_mounts: frozenset[Mount]
    files: Looks = field(default_factory=Looks)
    maps: Looks = field(default_factory=Looks)
    mounts: Looks = field(default_factory=Looks)


@pytest.fixture(scope="module")
def churned(guest: Guest, profiles: Path) -> Churned:
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        linux = machine.guest
        files, mounts = frozenset(linux.open_files()), frozenset(linux.mounts())
        pid = guest.start_churn()
        try:
            process = next(row for row in linux.processes() if row.pid == pid)
            seen = Churned(process, files, mounts)
            deadline = time.monotonic() + LONGEST_S
            while not _seen_enough(seen):
                seen.files.add(linux.open_files())
                seen.maps.add(linux.mappings(process))
                seen.mounts.add(linux.mounts())
                assert time.monotonic() < deadline, f"{seen.files} {seen.maps} {seen.mounts}"
        finally:
            guest.stop_churn()
    return seen


def _seen_enough(seen: Churned) -> bool:
    looks = (seen.files, seen.maps, seen.mounts)
    size = proof_size(ci=150, full=1000)
    return all(one.count >= size and len(one.answers) >= LEAST_STATES for one in looks) and any(
        _is_whole_area(rows) for rows in seen.maps.answers
    )


def _is_whole_area(rows: tuple[object, ...]) -> bool:
    return (
        sum(isinstance(row, MemoryMapping) and row.end - row.start == SMALL for row in rows)
        > MOST_OF_THEM
    )


def test_files_that_stay_are_seen_in_every_look(churned: Churned) -> None:
    for answer in churned.files.answers:
        assert churned.calm_files <= frozenset(answer)


def test_files_that_change_are_seen_as_they_were(
    churned: Churned, proof_count: Callable[[int], None]
) -> None:
    inherited = {file.path for file in churned.calm_files}
    for answer in churned.files.answers:
        new = [row for row in answer if row not in churned.calm_files]
        assert all(isinstance(row, OpenFile) and row.pid == churned.churn.pid for row in new)
        paths = {row.path for row in new if isinstance(row, OpenFile)}
        assert paths <= inherited | CHURN_FILES
    proof_count(churned.files.count)


def test_mounts_that_stay_are_seen_in_every_look_and_the_other_as_it_was(
    churned: Churned, proof_count: Callable[[int], None]
) -> None:
    for answer in churned.mounts.answers:
        assert churned.calm_mounts <= frozenset(answer)
        new = [row for row in answer if row not in churned.calm_mounts]
        assert all(
            isinstance(row, Mount) and (row.path, row.source) == (CHURN_MOUNT, "churn")
            for row in new
        )
    proof_count(churned.mounts.count)


def test_a_map_that_changes_is_a_map_in_every_look(
    churned: Churned, proof_count: Callable[[int], None]
) -> None:
    lasting = {"/init", "[heap]", "[stack]", "[vdso]", "[vvar]"}
    possible = lasting | {"", "[vvar_vclock]", *CHURN_FILES}
    for answer in churned.maps.answers:
        rows = [row for row in answer if isinstance(row, MemoryMapping)]
        assert all(before.end <= after.start for before, after in pairwise(rows))
        names = {row.name for row in rows}
        assert lasting <= names <= possible
    for answer in churned.maps.partial:
        assert {row.name for row in answer if isinstance(row, MemoryMapping)} <= possible
    proof_count(churned.maps.count)


@pytest.mark.parametrize("which", ["files", "maps", "mounts"])
def test_few_looks_have_gaps(
    churned: Churned, which: str, record_property: Callable[[str, str], None]
) -> None:
    looks: Looks = getattr(churned, which)
    record_property(which, str(looks))
    assert looks.with_gaps <= looks.count * MOST_WITH_GAPS, str(looks)


@dataclass(slots=True)
class Stormed:
    """This is what was seen of a fork storm, and what the guest says of it."""

    residents: frozenset[int]
    calm_files: frozenset[OpenFile]
    calm_lines: frozenset[CommandLine]
    storm: Storm | None = None
    files: Looks = field(default_factory=Looks)
    lines: Looks = field(default_factory=Looks)
    maps: Looks = field(default_factory=Looks)
    gone: int = 0


@pytest.fixture(scope="module")
def stormed(guest: Guest, profiles: Path) -> Stormed:
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        linux = machine.guest
        calm = [row for row in linux.processes() if not row.kernel_thread]
        residents = frozenset(row.pid for row in calm)
        lines = frozenset(row for row in linux.command_lines() if row.pid in residents)
        seen = Stormed(residents, frozenset(linux.open_files()), lines)
        guest.start_storm()
        try:
            deadline = time.monotonic() + LONGEST_S
            while seen.files.count < proof_size(ci=100, full=500) or seen.maps.count < LEAST_STATES:
                _look(linux, seen)
                assert time.monotonic() < deadline, f"{seen.files} {seen.lines} {seen.maps}"
        finally:
            seen.storm = guest.stop_storm()
    return seen


def _look(linux: qvmi.GuestOS, seen: Stormed) -> None:
    seen.files.add(linux.open_files())
    seen.lines.add(linux.command_lines())
    for process in linux.processes():
        if process.name.startswith("storm"):
            try:
                seen.maps.add(linux.mappings(process))
            except GuestError as error:
                assert "gone" in str(error)  # noqa: PT017 - each of many, and the message is the point
                seen.gone += 1


def test_a_storm_hides_no_file_and_invents_none(
    stormed: Stormed, proof_count: Callable[[int], None]
) -> None:
    assert stormed.storm is not None
    known = {*stormed.storm.pids, *stormed.storm.seconds.values(), stormed.storm.parent}
    paths = {file.path for file in stormed.calm_files}
    for answer in stormed.files.answers:
        assert stormed.calm_files <= frozenset(answer)
        new = [r for r in answer if isinstance(r, OpenFile) and r not in stormed.calm_files]
        assert {row.pid for row in new} <= known
        assert {row.path for row in new if not row.path.startswith("pipe:")} <= paths
    proof_count(stormed.files.count)


def test_a_storm_changes_no_command_line(
    stormed: Stormed, proof_count: Callable[[int], None]
) -> None:
    words = {row.arguments for row in stormed.calm_lines} | {("true",), ()}
    for answer in stormed.lines.answers:
        rows = [row for row in answer if isinstance(row, CommandLine)]
        assert stormed.calm_lines <= frozenset(rows)
        assert {row.arguments for row in rows} <= words
    proof_count(stormed.lines.count)


def test_maps_of_those_that_come_and_go_are_maps(stormed: Stormed) -> None:
    for answer in stormed.maps.answers:
        rows = [row for row in answer if isinstance(row, MemoryMapping)]
        assert all(before.end <= after.start for before, after in pairwise(rows))
        assert {row.name for row in rows} <= {
            *("", "/init", "/bin/busybox", "/dev/zero", "[heap]", "[stack]", "[vdso]", "[vvar]"),
            "[vvar_vclock]",
        }


@pytest.mark.parametrize("which", ["files", "lines", "maps"])
def test_few_looks_at_a_storm_have_gaps(
    stormed: Stormed, which: str, record_property: Callable[[str, str], None]
) -> None:
    looks: Looks = getattr(stormed, which)
    record_property(which, f"{looks}; {stormed.gone} gone")
    assert looks.with_gaps <= looks.count * MOST_WITH_GAPS, str(looks)


def test_a_log_that_is_written_to_is_whole_records_in_order(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    with qvmi.attach_sync(guest.qmp, cache=profiles) as machine:
        before = machine.guest.log().items
        guest.run("echo on > /proc/sys/kernel/printk_devkmsg")
        loop = f"i=0; while [ ! -e /run/dry ]; do echo '{FLOOD}' $i > /dev/kmsg; i=$((i+1)); done"
        guest.run(f"({loop}) < /dev/null > /dev/null 2>&1 &")
        looks: list[Listing[LogRecord]] = []
        try:
            deadline = time.monotonic() + LONGEST_S
            while len(looks) < proof_size(ci=50, full=500) or looks[0].items == looks[-1].items:
                looks.append(machine.guest.log())
                assert time.monotonic() < deadline
        finally:
            guest.run("touch /run/dry")
    for listing in looks:
        assert not listing.gaps
        assert all(one.sequence < two.sequence for one, two in pairwise(listing))
        new = [row.text for row in listing if row.sequence > before[-1].sequence + 1]
        assert all(_is_of_flood(text) for text in new)
    proof_count(len(looks))


def _is_of_flood(text: str) -> bool:
    words, _, number = text.rpartition(" ")
    return words == FLOOD and number.isdigit()
