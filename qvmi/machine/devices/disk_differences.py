"""Where the page cache and the disk disagree about what is in a file.

A page that the guest has not changed holds what is on the disk. Where it does not, somebody has changed one
of them behind the kernel's back: the page, which every program then reads and no disk shows, or the disk.

What is compared is what can be: pages of files without changes that wait to be written, whose inode on the
disk is of the same state as in memory; the disk lags behind otherwise. Two looks must show the same.

References: CVE-2022-0847, by which a program changes pages of files that it may only read.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

import msgspec

from qvmi.addr import PAGE_SIZE, Va
from qvmi.disk.disk import MAX_BLOCKS
from qvmi.errors import DiskError, MemoryFault, WalkFailed
from qvmi.machine.devices.disks import Disks, OpenDisk
from qvmi.semantics.guest_os import CachedFile, Gap, Listing
from qvmi.semantics.linux.file_stamp import FileStamp, file_stamp
from qvmi.semantics.linux.fs.file_content import NEVER_READ
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.view import Provenance

__all__ = ["DiskDifference", "disk_differences"]

Result = TypeVar("Result")

_FILE_SYSTEMS: Final = frozenset({"ext2", "ext3", "ext4"})
_MAX_PAGES: Final = 1 << 18
"""Pages that are compared; their hashes take some 40 MiB. Of 4 KiB they are 1 GiB of files."""
_SETTLE_S: Final = 1.0
"""Between the two looks: what the guest writes back meanwhile takes some milliseconds."""
_LOOK_S: Final = 300.0
"""How long a look at all cached files may take, where QEMU is asked for each page."""


class DiskDifference(msgspec.Struct, frozen=True, gc=False):
    """This is a page of a file that holds something else than the disk.

    Args:
        path: of the file, in the guest; its word.
        device: of the file system, as ``MAJOR:MINOR``.
        inode: number of the file there.
        disk: on which the file is.
        volume: its number there.
        offset: of the page in the file, in bytes.
        cached: SHA-256 of what is in memory, in hexadecimal.
        stored: SHA-256 of what is on the disk.
        address: of the ``struct inode``.
    """

    path: str
    device: str
    inode: int
    disk: str
    volume: int
    offset: int
    cached: str
    stored: str
    address: Va


class Query(Protocol):
    """This looks at the guest, as `Machine.query` does."""

    def __call__(
        self, look: Callable[[LinuxGuest], Result], *, timeout_s: float
    ) -> Awaitable[Result]:
        """This looks once."""
        ...


@dataclass(frozen=True, slots=True)
class _Cached:
    """This is a file with what its pages hold, by their number."""

    file: CachedFile
    stamp: FileStamp
    pages: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class _Volume:
    """This is a volume that is open for reading."""

    disk: str
    number: int
    opened: OpenDisk


@dataclass(frozen=True, slots=True)
class _Look:
    """This is one look at the page cache."""

    files: Sequence[_Cached]
    gaps: Sequence[Gap]
    provenance: Provenance


async def disk_differences(
    query: Query, disks: Disks, *, under: str = "", settle_s: float = _SETTLE_S
) -> Listing[DiskDifference]:
    """This compares the page cache with the disks.

    Args:
        query: looks at the guest.
        disks: of the machine.
        under: an absolute path: only files below it; empty for all.
        settle_s: seconds between the two looks.

    Returns:
        What both looks show. Files of file systems that no disk has are not compared, which is no gap.

    Raises:
        PolicyDenied: the session has not the grant ``disk``.
        UnknownGuest, StaleView: nobody knows which system runs there.
        SymbolsError: its types lack what this needs.
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
    """
    gaps: dict[Gap, None] = {}
    async with AsyncExitStack() as stack:
        volumes = await _volumes(disks, stack, gaps)

        async def look() -> tuple[set[DiskDifference], Provenance]:
            shown = await query(lambda guest: _look(guest, under, set(volumes)), timeout_s=_LOOK_S)
            gaps.update(dict.fromkeys(shown.gaps))
            found = set()
            for cached in shown.files:
                found |= await _compared(cached, volumes[cached.stamp.uuid], gaps)
            return found, shown.provenance

        first, provenance = await look()
        if first:
            await asyncio.sleep(settle_s)
            second, provenance = await look()
            first &= second
    rows = sorted(first, key=lambda row: (row.path, row.inode, row.offset))
    return Listing(tuple(rows), tuple(gaps), provenance)


async def _volumes(
    disks: Disks, stack: AsyncExitStack, gaps: dict[Gap, None]
) -> dict[str, _Volume]:
    """These are the volumes with a file system, by its UUID; one that two have is that of none."""
    found: dict[str, _Volume] = {}
    twice: set[str] = set()
    for disk in await disks.list():
        if disk.refused:
            continue
        try:
            opened = await stack.enter_async_context(disks.open(disk.node))
            volumes = await opened.volumes()
        except DiskError as error:
            gaps[Gap(f"disk {disk.id}", None, str(error))] = None
            continue
        gaps.update(dict.fromkeys(volumes.gaps))
        for volume in volumes:
            if not volume.uuid:
                continue
            if volume.uuid in found:
                twice.add(volume.uuid)
            its = opened.of_volume(volume.number)
            found[volume.uuid] = _Volume(disk.id, volume.number, its)
    for uuid in twice:
        gaps[Gap("volumes", None, f"several have the file system {uuid}")] = None
        del found[uuid]
    return found


def _look(guest: LinuxGuest, under: str, known: set[str]) -> _Look:
    """This reads the pages of the files that can be compared."""
    listing = guest.cached_files(under)
    files: list[_Cached] = []
    gaps = list(listing.gaps)
    left = _MAX_PAGES
    for file in listing:
        if file.filesystem not in _FILE_SYSTEMS or file.dirty or file.deleted or not file.size:
            continue
        if left < file.cached:
            gaps.append(
                Gap("pages", None, f"more than {_MAX_PAGES} pages: the rest is not compared")
            )
            break
        try:
            stamp = file_stamp(guest, file)
            if stamp.uuid not in known:
                continue
            pages, problem = _pages(guest, file)
            if file_stamp(guest, file) == stamp and stamp.size == file.size:
                if problem:
                    structure = f"pages of inode {file.inode} of {file.device}"
                    gaps.append(Gap(structure, file.address, problem))
                files.append(_Cached(file, stamp, pages))
                left -= len(pages)
        except (MemoryFault, WalkFailed):
            continue  # it is gone, and with it what was to be compared
    return _Look(files, gaps, listing.provenance)


def _pages(guest: LinuxGuest, file: CachedFile) -> tuple[dict[int, str], str]:
    """These are the hashes of a file's pages that are whole in memory, and what is wrong with others.

    That is empty where nothing is: what was not read from the disk yet need not be there.
    """
    pages: dict[int, str] = {}

    def take(offset: int, data: bytes) -> None:
        for at in range(-offset % PAGE_SIZE, len(data), PAGE_SIZE):
            page = data[at : at + PAGE_SIZE]
            if len(page) == min(PAGE_SIZE, file.size - offset - at):
                pages[(offset + at) // PAGE_SIZE] = hashlib.sha256(page).hexdigest()

    missing = guest.recover(file, take)
    problem = next((row.reason for row in missing if row.reason not in NEVER_READ), "")
    return pages, problem


async def _compared(cached: _Cached, volume: _Volume, gaps: dict[Gap, None]) -> set[DiskDifference]:
    """These are the pages of a file that the disk has otherwise, if it has the file in the same state."""
    file, stamp = cached.file, cached.stamp
    found: set[DiskDifference] = set()
    for numbers in _batches(sorted(cached.pages)):
        try:
            facts, digests = await volume.opened.blocks(file.inode, numbers, block_size=PAGE_SIZE)
        except DiskError as error:
            gaps[Gap(f"inode {file.inode} of disk {volume.disk}", None, str(error))] = None
            return set()
        state = (facts.generation, facts.size, facts.modified_ns)
        if facts.kind != "file" or state != (stamp.generation, stamp.size, stamp.modified_ns):
            return set()
        for number, stored in zip(numbers, digests, strict=True):
            if stored and stored != cached.pages[number]:
                found.add(_difference(cached, volume, number, stored))
    return found


def _difference(cached: _Cached, volume: _Volume, page: int, stored: str) -> DiskDifference:
    file = cached.file
    return DiskDifference(
        file.path,
        file.device,
        file.inode,
        volume.disk,
        volume.number,
        page * PAGE_SIZE,
        cached.pages[page],
        stored,
        file.address,
    )


def _batches(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(numbers), MAX_BLOCKS):
        yield numbers[at : at + MAX_BLOCKS]
