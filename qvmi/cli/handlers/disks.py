"""The command that reads virtual disks: ``disk``."""

import base64
import stat
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from qvmi.cli.exit_code import ExitCode
from qvmi.cli.handlers.listings import report_gaps, show
from qvmi.cli.printing.output import Output
from qvmi.cli.printing.table import Column, table_of
from qvmi.disk.rows import DiskEntry, Volume
from qvmi.errors import DiskError, UsageError
from qvmi.machine.devices.disk_differences import DiskDifference
from qvmi.machine.devices.disks import Disk
from qvmi.machine.new_file import NewFile
from qvmi.semantics.guest_os import Gap, Listing

if TYPE_CHECKING:
    from qvmi.machine.devices.disks import OpenDisk
    from qvmi.machine.machine import Machine

__all__ = ["disk"]

_MAX_TO_STDOUT: Final = 64 << 30
"""Bytes of a file that are written to stdout: a guest can make one of TiB of zeros that takes no room."""
_ZEROS: Final = 1 << 20
_NS: Final = 1_000_000_000
_LETTERS: Final = {
    "file": stat.S_IFREG,
    "folder": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "character device": stat.S_IFCHR,
    "block device": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
}

_DISK: Final[Sequence[Column["ListedDisk"]]] = (
    Column("ID", lambda listed: listed.disk.id),
    Column("SIZE", lambda listed: str(listed.disk.size), right=True),
    Column("ACCESS", lambda listed: "ro" if listed.disk.read_only else "rw"),
    Column("VOLUME", lambda listed: _of(listed.volume, "number"), right=True),
    Column("START", lambda listed: _of(listed.volume, "start"), right=True),
    Column("BYTES", lambda listed: _of(listed.volume, "size"), right=True),
    Column("TYPE", lambda listed: _of(listed.volume, "filesystem") or "-"),
    Column("IMAGES", lambda listed: listed.disk.refused or _images(listed.disk)),
)
# The guest's words come last, where they can move nothing else.
_ENTRY: Final[Sequence[Column[DiskEntry]]] = (
    Column("MODE", lambda entry: stat.filemode(_LETTERS[entry.kind] | entry.mode)),
    Column("LINKS", lambda entry: str(entry.links), right=True),
    Column("UID", lambda entry: str(entry.uid), right=True),
    Column("GID", lambda entry: str(entry.gid), right=True),
    Column("SIZE", lambda entry: str(entry.size), right=True),
    Column("INODE", lambda entry: str(entry.inode), right=True),
    Column("MODIFIED", lambda entry: _date(entry.modified_ns)),
    Column("PATH", lambda entry: entry.path + (f" -> {entry.target}" if entry.target else "")),
)
_DIFFERENCE: Final[Sequence[Column[DiskDifference]]] = (
    Column("DISK", lambda found: found.disk),
    Column("VOLUME", lambda found: str(found.volume), right=True),
    Column("INODE", lambda found: str(found.inode), right=True),
    Column("OFFSET", lambda found: str(found.offset), right=True),
    Column("CACHED", lambda found: found.cached[:16]),
    Column("STORED", lambda found: found.stored[:16]),
    Column("PATH", lambda found: found.path),
)


class ListedDisk(msgspec.Struct, frozen=True):
    """This is a line of the table of disks: a disk and one of its volumes, None where it has none."""

    disk: Disk
    volume: Volume | None


async def disk(  # noqa: PLR0913 - one for each of its options
    machine: "Machine",
    output: Output,
    *,
    action: str,
    path: str | None,
    device: str | None,
    volume: int | None,
    to: str | None,
) -> ExitCode:
    """This lists disks, or reads what is on one.

    Raises:
        UsageError: the options do not go together, or it is not clear which disk or volume is meant.
        DiskError: it is not read, or has no such file.
    """
    _require_fitting(action, path, device=device, volume=volume)
    if to is not None and (action != "cat" or output.json):
        raise UsageError("-o is for `disk cat` alone, without --json")
    if action == "cat" and to is None and output.is_terminal and not output.json:
        raise UsageError("raw bytes would disturb the terminal: take -o, or send them to a pipe")
    if action == "list":
        return await _list(machine, output, device)
    if action == "compare":
        listing = await machine.disk_differences(path or "")
        code = show(output, listing, _DIFFERENCE)
        return ExitCode.FOUND if listing.items else code
    async with machine.disks.open(device, volume=volume) as opened:
        if action == "cat":
            return await _cat(opened, output, path or "", to)
        look = opened.stat if action == "stat" else opened.list
        return show(output, await look(path or "/"), _ENTRY)


def _require_fitting(
    action: str, path: str | None, *, device: str | None, volume: int | None
) -> None:
    """This raises UsageError for what an action does not take, or lacks."""
    if action == "list":
        if path is not None:
            raise UsageError("disk list takes no PATH; `disk ls` lists a folder")
        if volume is not None:
            raise UsageError("disk list lists all volumes of a disk: leave out --volume")
    elif action == "compare":
        if device is not None or volume is not None:
            raise UsageError("disk compare compares all disks: leave out --device and --volume")
        if path is not None and not path.startswith("/"):
            raise UsageError(
                f"disk compare {path!r}: name a PATH of the guest, which begins with /"
            )
    elif path is None and action != "ls":
        raise UsageError(f"disk {action} what? Name a PATH")


async def _list(machine: "Machine", output: Output, device: str | None) -> ExitCode:
    """This lists disks with their volumes; one that is not read is no gap, as it says why."""
    listing = await machine.disks.list()
    disks = [one for one in listing if device in {None, one.id, one.backend, one.qdev, one.node}]
    if device is not None and not disks:
        raise UsageError(f"there is no disk {device!r}")
    listed: list[tuple[Disk, tuple[Volume, ...]]] = []
    gaps: list[Gap] = []
    for one in disks:
        volumes: tuple[Volume, ...] = ()
        if not one.refused:
            try:
                async with machine.disks.open(one.node) as opened:
                    found = await opened.volumes()
                volumes, gaps = found.items, [*gaps, *found.gaps]
            except DiskError as error:
                gaps.append(Gap(f"disk {one.id}", None, str(error)))
        listed.append((one, volumes))
    if output.json:
        items = tuple(msgspec.structs.asdict(one) | {"volumes": volumes} for one, volumes in listed)
        output.document(Listing(items, tuple(gaps), listing.provenance))
    else:
        lines = [ListedDisk(one, volume) for one, its in listed for volume in its or (None,)]
        output.table(table_of(_DISK, lines))
    return report_gaps(output, gaps)


async def _cat(opened: "OpenDisk", output: Output, path: str, to: str | None) -> ExitCode:
    """This writes a file to stdout, to another file, or into a document."""
    listing = await opened.stat(path, follow=True)
    size = listing[0].size
    if output.json:
        content = base64.b64encode(await opened.read(path)).decode()
        document = {"file": listing[0], "content": content}
        output.document(document | {"gaps": listing.gaps, "provenance": listing.provenance})
    elif to is not None:
        await _cat_into(opened, path, Path(to), size)
        output.line(f"{to}: {size} bytes")
    else:
        await _cat_to_stdout(opened, output, path, size)
    return report_gaps(output, listing.gaps)


async def _cat_into(opened: "OpenDisk", path: str, to: Path, size: int) -> None:
    """This writes a file into another one, holes as holes."""
    with NewFile(to) as file:
        async with aclosing(opened.parts(path)) as parts:
            async for at, data in parts:
                file.write(at, data)
        file.set_size(size)
        file.put_in_place()


async def _cat_to_stdout(opened: "OpenDisk", output: Output, path: str, size: int) -> None:
    """This writes a file to stdout, holes as zeros; one that is nearly nothing else only into a file."""
    if size > _MAX_TO_STDOUT:
        raise UsageError(f"{size} bytes, which need not be on the disk: take -o")
    written = 0
    async with aclosing(opened.parts(path)) as parts:
        async for at, data in parts:
            written = _zeros(output, written, at)
            output.raw(data)
            written += len(data)
    _zeros(output, written, size)


def _zeros(output: Output, written: int, end: int) -> int:
    """This writes zeros up to an offset, and gives that."""
    for at in range(written, end, _ZEROS):
        output.raw(bytes(min(_ZEROS, end - at)))
    return end


def _of(volume: Volume | None, field: str) -> str:
    return "" if volume is None else str(getattr(volume, field))


def _images(disk: Disk) -> str:
    return ", ".join(f"{image.path} ({image.format})" for image in disk.images)


def _date(since_epoch_ns: int) -> str:
    """This is a moment that the guest has noted, which need not be one that a calendar has."""
    try:
        return datetime.fromtimestamp(since_epoch_ns // _NS, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return str(since_epoch_ns // _NS)
