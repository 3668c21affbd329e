"""The memory mappings that are seen are those of the guest's own /proc/PID/maps."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import qvmi
from qvmi import Listing
from qvmi.semantics.guest_os import MemoryMapping
from tests.asynchronous import asynchronous
from tests.guests.agreement import shown_name
from tests.guests.lab import Guest, MapsLine

DELETED: Final = " (deleted)"
OF_NO_PROCESS: Final = "[vsyscall]"
"""The kernel's own page, which /proc shows at the end of every map."""
NO_DEVICE: Final = "0:0"
LEAST_OF_MANY: Final = 400
"""Mappings of the process ``mappings``."""


def _seen(listing: Listing[MemoryMapping]) -> list[tuple[object, ...]]:
    assert not listing.gaps
    return [
        (
            *(row.start, row.end, row.permissions, row.offset, row.device or NO_DEVICE, row.inode),
            row.name + DELETED * row.deleted,
        )
        for row in listing
    ]


def _true(text: str) -> list[tuple[object, ...]]:
    lines = [MapsLine.of_line(line) for line in text.splitlines()]
    return [
        (
            *(line.start, line.end, line.permissions, line.offset, line.device, line.inode),
            shown_name(line.name.encode("latin-1")),
        )
        for line in lines
        if line.name != OF_NO_PROCESS
    ]


@asynchronous
async def test_equal_proc_for_every_process(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    true = guest.proc("maps")
    compared = 0
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        for process in machine.guest.processes():
            seen = _seen(machine.guest.mappings(process))
            assert seen == _true(true.get(process.pid, "")), process.name
            compared += len(seen)
    proof_count(compared)


@asynchronous
async def test_those_of_all_are_the_rows_of_each(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        every = machine.guest.mappings()
        each = [
            row for one in machine.guest.processes() for row in machine.guest.mappings(one).items
        ]
    assert (list(every), every.gaps) == (each, ())
    proof_count(len(each))


@asynchronous
async def test_kernel_threads_and_zombies_have_none_and_that_is_no_gap(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        without = [
            row for row in machine.guest.processes() if row.kernel_thread or row.state == "Z"
        ]
        listings = [machine.guest.mappings(row) for row in without]
    assert len(listings) > 10
    assert [(listing.items, listing.gaps) for listing in listings] == [((), ())] * len(listings)


@asynchronous
async def test_every_kind_of_mapping_has_its_name(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        owner = next(row for row in machine.guest.processes() if row.name == "mappings")
        rows = machine.guest.mappings(owner).items
    assert len(rows) > LEAST_OF_MANY
    shown = {(row.name + DELETED * row.deleted, row.permissions) for row in rows}
    assert {
        ("/init", "r-xp"),
        ("[heap]", "rw-p"),
        ("[stack]", "rw-p"),
        ("[vdso]", "r-xp"),
        ("/run/mapped \n\\ file", "r--p"),
        ("/run/mapped \n\\ file", "rw-s"),
        ("/run/mapped-deleted (deleted)", "r-xp"),
        ("/memfd:mapped memfd (deleted)", "rw-s"),
        ("/dev/zero (deleted)", "r--s"),
        ("", "---p"),
        ("", "rwxp"),
    } <= shown
    assert [
        row.offset for row in rows if row.name.endswith("file") and row.permissions == "r--p"
    ] == [3 * 4096]


@asynchronous
async def test_what_a_mapping_holds_can_be_read_there(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        owner = next(row for row in machine.guest.processes() if row.name == "mappings")
        stack = next(row for row in machine.guest.mappings(owner) if row.name == "[stack]")
        top = machine.user_space(owner).read(qvmi.Va(stack.end - 64), 64)
    assert top.endswith(b"/init\0" + bytes(8))  # binfmt_elf.c: the program's name, and one word
