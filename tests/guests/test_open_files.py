"""The open files that are seen are those of the guest's own /proc/PID/fd and fdinfo."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import Listing
from qvmi.semantics.guest_os import OpenFile
from tests.asynchronous import asynchronous
from tests.guests.agreement import shown_name
from tests.guests.lab import Descriptor, Guest

DELETED: Final = " (deleted)"
REPORTER: Final = 1
"""It reads /proc while it reports, and so has two files open that it has not for us."""


def shown_path(file: OpenFile) -> str:
    """This is how /proc/PID/fd writes it."""
    return file.path + DELETED * file.deleted


def _seen(listing: Listing[OpenFile]) -> dict[tuple[int, int], tuple[object, ...]]:
    assert not listing.gaps
    rows: dict[tuple[int, int], tuple[object, ...]] = {
        (f.pid, f.fd): (shown_path(f), f.position, f.access) for f in listing
    }
    assert len(rows) == len(listing)
    return rows


def _true(descriptors: dict[tuple[int, int], Descriptor]) -> dict[tuple[int, int], object]:
    return {
        key: (shown_name(one.target.encode("latin-1")), one.position, one.access)
        for key, one in descriptors.items()
        if key[0] != REPORTER or not one.target.startswith("/proc")
    }


@asynchronous
async def test_equal_proc(guest: Guest, profiles: Path, proof_count: Callable[[int], None]) -> None:
    descriptors = guest.files()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.open_files()
    seen = _seen(listing)
    assert seen == _true(descriptors)
    told = {key: one.inode for key, one in descriptors.items() if one.inode is not None}
    assert [f for f in listing if told.get((f.pid, f.fd), f.inode) != f.inode] == []
    proof_count(len(seen))


@asynchronous
async def test_those_of_one_process_are_the_same_rows(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        every = machine.guest.open_files().items
        for process in machine.guest.processes():
            own = tuple(file for file in every if file.pid == process.pid)
            assert machine.guest.open_files(process).items == own


@asynchronous
async def test_what_has_no_path_is_named_by_its_kind(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        owner = next(row for row in machine.guest.processes() if row.name == "files")
        files = {shown_path(file): file for file in machine.guest.open_files(owner)}
    kinds = {name.partition("[")[0]: file.kind for name, file in files.items()}
    assert kinds["pipe:"] == "pipe"
    assert files["anon_inode:[eventfd]"].kind == "anonymous"
    assert kinds["/memfd:a memfd (deleted)"] == "file"
    assert kinds["net:"] == "file"
    assert kinds["/run/fifo"] == "pipe"
    assert kinds["/dev/null"] == "character device"
    assert kinds["/root"] == "directory"
    assert kinds["/run/deleted-folder (deleted)"] == "directory"
    assert "/run/deleted-folder/file (deleted)" in files


@asynchronous
async def test_paths_lead_through_the_mounts_of_the_process(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        owners = {row.pid: row.name for row in machine.guest.processes()}
        files = [(owners[file.pid], shown_path(file)) for file in machine.guest.open_files()]
    assert ("mounts", "/run/m/bind/marker.txt") in files
    assert ("mounts", "/run/m/file") in files
    assert ("mounts", "/still-open") in files  # its mount was taken away
    assert ("chrooted", "/run/m/over/inside") in files


@asynchronous
async def test_the_device_is_that_of_the_mount(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        devices = {mount.path: mount.device for mount in machine.guest.mounts()}
        found = {file.device for file in machine.guest.open_files() if file.path == "/run/fifo"}
    assert found == {devices["/run"]}


@pytest.mark.parametrize("question", ["mounts", "open_files", "sockets", "command_lines", "log"])
@asynchronous
async def test_of_one_moment_is_what_is_seen_of_a_guest_at_rest(
    guest: Guest, profiles: Path, question: str
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        live: Listing[object] = getattr(machine.guest, question)()
        exact: Listing[object] = await machine.capture(lambda linux: getattr(linux, question)())
    assert exact.provenance.taken == "captured"
    assert exact.provenance.pause_s > 0
    assert (exact.items, exact.gaps) == (live.items, ())
