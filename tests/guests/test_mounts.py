"""The mounts that are seen are those of the guest's own /proc/PID/mountinfo."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import qvmi
from qvmi import GuestOS, Process
from qvmi.semantics.guest_os import Mount
from tests.asynchronous import asynchronous
from tests.guests.agreement import shown_name
from tests.guests.lab import Guest, MountInfo

GENERIC: Final = frozenset({"ro", "rw", "sync", "dirsync", "mand", "lazytime"})
"""Options of every file system; the others are its own."""
LEAST_NAMESPACES: Final = 4
"""That of process 1, of ``namespaces``, of ``mounts`` and of kdevtmpfs."""


def _row(mount: Mount) -> tuple[object, ...]:
    return (
        *(mount.id, mount.parent_id, mount.device, mount.root, mount.path, mount.options),
        *(mount.propagation, mount.filesystem, mount.source, mount.superblock_options),
    )


def _line(info: MountInfo) -> tuple[object, ...]:
    root, path, source = (
        shown_name(text.encode("latin-1")) for text in (info.root, info.path, info.source)
    )
    options = ",".join(word for word in info.superblock_options if word in GENERIC)
    return (
        *(info.id, info.parent_id, info.device, root, path, info.options),
        *(info.propagation, info.filesystem, source, options),
    )


def _true(guest: Guest) -> dict[int, list[tuple[object, ...]]]:
    files = guest.proc("mountinfo")
    return {
        pid: [_line(MountInfo.of_line(line)) for line in text.splitlines()]
        for pid, text in files.items()
    }


def _process(guest: GuestOS, name: str) -> Process:
    return next(row for row in guest.processes() if row.name == name)


@asynchronous
async def test_each_process_sees_what_its_mountinfo_says(
    guest: Guest, profiles: Path, proof_count: Callable[[int], None]
) -> None:
    true = _true(guest)
    compared = 0
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        for process in machine.guest.processes():
            if not true.get(process.pid):
                continue  # a zombie has no mounts any more
            listing = machine.guest.mounts(process)
            assert not listing.gaps
            assert [_row(mount) for mount in listing] == true[process.pid], process.name
            compared += len(listing)
    assert compared > 500
    proof_count(compared)


@asynchronous
async def test_all_namespaces_are_listed_each_once(guest: Guest, profiles: Path) -> None:
    true = _true(guest)
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        listing = machine.guest.mounts()
    assert not listing.gaps
    keys = [(mount.namespace, mount.id) for mount in listing]
    assert len(set(keys)) == len(keys)
    assert len({mount.namespace for mount in listing}) == LEAST_NAMESPACES
    chrooted = guest.truth().named("chrooted").pid
    ids = {line[0] for pid, lines in true.items() if pid != chrooted for line in lines}
    # A process does not see what its own root is mounted upon.
    beneath = {m.id for m in listing if m.path == "/" and m.filesystem in {"rootfs", "nullfs"}}
    assert ids <= {mount.id for mount in listing} <= ids | beneath


@asynchronous
async def test_a_namespace_bears_the_number_that_proc_shows(guest: Guest, profiles: Path) -> None:
    truth = guest.truth()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        for name in ("init", "ns-init", "mounts"):
            (number,) = {
                row.namespace for row in machine.guest.mounts(_process(machine.guest, name))
            }
            assert f"mnt:[{number}]".encode() in truth.named(name).namespaces


@asynchronous
async def test_a_bind_one_above_another_and_each_propagation_are_told(
    guest: Guest, profiles: Path
) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        rows = machine.guest.mounts(_process(machine.guest, "mounts")).items
    places = {mount.path: mount for mount in rows}
    assert places["/run/m/bind"].root == "/root"
    assert places["/run/m/file"].root == "/root/marker.txt"
    below, above = (mount for mount in rows if mount.path == "/run/m/over")
    assert (below.source, above.source, above.parent_id) == ("below", "above", below.id)
    assert above.propagation.startswith("shared:")
    assert places["/run/m/slave"].propagation == above.propagation.replace("shared", "master")
    assert places["/run/m/alone"].propagation == "unbindable"
    assert (places["/run/m/read only"].options, places["/run/m/read only"].source) == (
        "ro,relatime",
        "",
    )


@asynchronous
async def test_paths_begin_at_the_root_of_who_sees_them(guest: Guest, profiles: Path) -> None:
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        paths = {row.path for row in machine.guest.mounts(_process(machine.guest, "chrooted"))}
    assert {"/", "/bind", "/over", "/slave"} <= paths
    assert not {path for path in paths if path.startswith(("/run", "/proc"))}


@asynchronous
async def test_a_process_that_is_gone_sees_nothing(guest: Guest, profiles: Path) -> None:
    pid = guest.start_churn()
    async with qvmi.attach(guest.qmp, cache=profiles) as machine:
        process = next(row for row in machine.guest.processes() if row.pid == pid)
        guest.stop_churn()
        with pytest.raises(qvmi.GuestError, match="is gone"):
            machine.guest.mounts(process)
