"""The machine's virtual disks, read from the host side while the guest runs."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Final, TypeVar

import msgspec

from qvmi.disk.disk import Found, ImageFile, VirtualDisk
from qvmi.disk.image import Effort
from qvmi.disk.rows import DiskEntry, Volume
from qvmi.errors import DiskRefused, QvmiError, UsageError
from qvmi.machine.completion import ended
from qvmi.machine.control import Control
from qvmi.machine.devices.disk_files import DiskFiles
from qvmi.policy import Grant
from qvmi.qmp.block import BlockDevice, block_devices
from qvmi.semantics.guest_os import Gap, Listing
from qvmi.view import Provenance

__all__ = ["Disk", "DiskProvenance", "Disks", "Image", "OpenDisk"]

Row = TypeVar("Row")
Result = TypeVar("Result")

_audit: Final = logging.getLogger("qvmi.audit")

_ACTION: Final = "read a virtual disk"
_MAX_WHOLE: Final = 256 << 20
"""Bytes of a file that are given at once."""
_BEHIND: Final = (
    "what the guest holds in its page cache or journal, or QEMU in its own caches, and has not"
    " written yet is not in it"
)


class Image(msgspec.Struct, frozen=True, gc=False):
    """This is one image of a disk.

    Args:
        path: of its file: for QEMU, relative to its working directory.
        format: ``raw`` or ``qcow2``.
    """

    path: str
    format: str


class Disk(msgspec.Struct, frozen=True, gc=False):
    """This is one virtual disk.

    Args:
        id: that it is asked for by: of the device that the guest sees, else of its backend or node.
        backend: its name as ``-drive id=`` gave it; empty for one made by ``-blockdev``.
        qdev: path of the device in QEMU; empty where no device has it.
        node: the name of the node with its content.
        size: in bytes, as the guest sees it.
        read_only: whether the guest cannot write it.
        removable: whether its medium can be changed.
        images: the one that is written to first, each before the one that backs it.
        refused: why it is not read; empty where it can be.
    """

    id: str
    backend: str
    qdev: str
    node: str
    size: int
    read_only: bool
    removable: bool
    images: tuple[Image, ...]
    refused: str


class DiskProvenance(Provenance, frozen=True, gc=False):
    """This says how something was read from a disk.

    Args:
        disk: which one.
        images: paths of the files that were read.
        held_by_qemu: whether it is certain that these are the files that QEMU has open.
        behind: what of the guest's is not in it.
    """

    disk: str = ""
    images: tuple[str, ...] = ()
    held_by_qemu: bool = False
    behind: str = _BEHIND


class Disks:
    """These are the virtual disks of a machine.

    Args:
        control: the hold on the machine.
        provenance: of a look at the machine from now on.
    """

    def __init__(self, control: Control, provenance: Callable[[], Provenance]) -> None:
        self._control = control
        self._provenance = provenance

    async def list(self) -> Listing[Disk]:
        """This lists the disks, those that are not read too, with the reason.

        Raises:
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        rows = tuple(_row(device) for device in await block_devices(self._control.monitor))
        return Listing(rows, (), self._provenance())

    @asynccontextmanager
    async def open(
        self, disk: str | None = None, *, volume: int | None = None
    ) -> "AsyncIterator[OpenDisk]":
        """This opens a disk for reading, for a block.

        The guest runs meanwhile. Its disk is not locked, and not changed.

        Args:
            disk: its id, or the name of its device, backend or node; None for the only one.
            volume: number of the partition whose files are read; None for the only one that has a file
                system.

        Raises:
            PolicyDenied: the session has not the grant ``disk``.
            UsageError: there is no such disk, or it is not clear which one is meant.
            DiskRefused: it is not in files that are read.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        self._control.require(Grant.DISK, _ACTION)
        device = _chosen(await block_devices(self._control.monitor), disk)
        row = _row(device)
        if device.refused:
            raise DiskRefused(row.id, device.refused)
        files_of = partial(DiskFiles.open, device.images, self._control.monitor.peer_pid())
        opening = asyncio.create_task(asyncio.to_thread(files_of), name="qvmi disk open")
        cancelled = await ended(opening)  # a file system of the network may take its time
        files = opening.result()
        try:
            if cancelled is not None:
                raise cancelled
            _audit.info("read disk %s: %s", row.id, ", ".join(image.path for image in files.images))
            yield OpenDisk(self._control, files, volume=volume, made=self._made(row, files))
        finally:
            files.close()

    def _made(self, row: Disk, files: DiskFiles) -> Callable[[int], DiskProvenance]:
        """This makes provenances of looks at a disk."""

        def made(retries: int) -> DiskProvenance:
            now = self._provenance()
            return DiskProvenance(
                now.taken,
                now.at,
                epoch=now.epoch,
                retries=retries,
                disk=row.id,
                images=tuple(image.path for image in files.images),
                held_by_qemu=all(image.held_by_qemu for image in files.images),
            )

        return made


class OpenDisk:
    """This is a disk that is open for reading; :meth:`Disks.open` makes it.

    Every answer is of what is on the disk then, and is found in a thread. Paths are seen from the root of
    the volume; a symlink leads to where it leads within the volume.

    Args:
        control: the hold on the machine.
        files: of the disk.
        volume: number of the volume; None for the only one.
        made: makes the provenance of a look, given how often something had to be read again.
    """

    def __init__(
        self,
        control: Control,
        files: DiskFiles,
        *,
        volume: int | None,
        made: Callable[[int], DiskProvenance],
    ) -> None:
        self._control = control
        self._files = files
        self._volume = volume
        self._made = made
        self._chain = tuple(
            ImageFile(image.image.format, image.descriptor) for image in files.images
        )

    def of_volume(self, number: int) -> "OpenDisk":
        """This is the same disk with the files of another volume; it is open as long as this one is."""
        return OpenDisk(self._control, self._files, volume=number, made=self._made)

    async def volumes(self) -> Listing[Volume]:
        """This lists the partitions, or the whole disk where there are none.

        Raises:
            CorruptDisk: it cannot be looked at.
        """
        return self._listing(await self._look(VirtualDisk.volumes), "partition table")

    async def list(self, path: str | bytes = "/") -> Listing[DiskEntry]:
        """This lists what a folder has; of anything else it is that alone.

        Raises:
            NoSuchFile: there is nothing of that name, or no volume with a file system.
            UsageError: it is not clear which volume is meant.
            CorruptDisk: what leads there contradicts itself.
        """
        name = os.fsencode(path)
        found = await self._look(lambda disk: disk.list(name))
        return self._listing(found, f"folder {_shown(name)}")

    async def stat(self, path: str | bytes, *, follow: bool = False) -> Listing[DiskEntry]:
        """This tells of one file or folder.

        Args:
            path: of it.
            follow: whether a symlink at its end is followed.

        Returns:
            A listing of one row, which has a gap where the guest goes on changing it.

        Raises:
            NoSuchFile, UsageError, CorruptDisk: as :meth:`list`.
        """
        name = os.fsencode(path)
        found = await self._look(lambda disk: disk.stat(name, follow=follow))
        return self._listing(found, f"inode of {_shown(name)}")

    async def parts(self, path: str | bytes) -> AsyncGenerator[tuple[int, bytes], None]:
        """This gives the parts of a file that are on the disk, by offset and of at most 2 MiB.

        What lies between them, and up to the size that :meth:`stat` tells, is zeros: a guest can make a
        file of many TiB that takes no room.

        Raises:
            NoSuchFile, CorruptDisk: as :meth:`list`.
            UsageError: the same, or it is no file.
            CorruptDisk: behind the last part: the guest has changed the file meanwhile.
        """
        content = await self._look(lambda disk: disk.read(os.fsencode(path)))
        parts = content.parts()
        while (
            part := await self._in_thread(lambda: next(parts, None), content.effort)
        ) is not None:
            self._control.require(Grant.DISK, _ACTION, size=len(part[1]))
            yield part

    async def read(self, path: str | bytes) -> bytes:
        """This is the content of a file, holes as zeros.

        Raises:
            NoSuchFile, CorruptDisk: as :meth:`parts`.
            UsageError: the same, or it has more than 256 MiB.
        """
        content = bytearray()
        async with aclosing(self.parts(path)) as parts:
            async for at, data in parts:
                if at + len(data) > _MAX_WHOLE:
                    raise UsageError(f"more than {_MAX_WHOLE} bytes: take its parts")
                content.extend(bytes(at - len(content)) + data)
        size = (await self.stat(path, follow=True))[0].size
        if size > _MAX_WHOLE:
            raise UsageError(f"{size} bytes: take its parts")
        return bytes(content.ljust(size, b"\0"))

    async def blocks(
        self, inode: int, blocks: Sequence[int], *, block_size: int
    ) -> tuple[DiskEntry, tuple[str, ...]]:
        """This tells what blocks of a file hold, for whoever compares them; see `VirtualDisk.blocks`."""
        return await self._look(lambda disk: disk.blocks(inode, blocks, block_size))

    async def _look(self, look: Callable[[VirtualDisk], Result]) -> Result:
        """This looks once, in a thread."""
        self._control.require(Grant.DISK, _ACTION)
        effort = Effort()
        disk = VirtualDisk(self._chain, volume=self._volume, effort=effort)
        return await self._in_thread(lambda: look(disk), effort)

    async def _in_thread(self, step: Callable[[], Result], effort: Effort) -> Result:
        """This does a step in a thread; whoever cancels it waits until that has ended with its next read."""
        task = asyncio.create_task(asyncio.to_thread(step), name="qvmi disk look")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            effort.stop()
            # However often that is cancelled: it reads by descriptors that are closed next.
            await ended(task)
            with suppress(QvmiError):
                task.result()
            raise

    def _listing(self, found: Found[Row], structure: str) -> Listing[Row]:
        gaps = tuple(Gap(structure, None, reason) for reason in found.gaps)
        return Listing(found.rows, gaps, self._made(found.retries))


def _shown(path: bytes) -> str:
    return path.decode(errors="backslashreplace")


def _row(device: BlockDevice) -> Disk:
    name = _device_name(device)
    return Disk(
        id=name or device.backend or device.node,
        backend=device.backend,
        qdev=device.qdev,
        node=device.node,
        size=device.size,
        read_only=device.read_only,
        removable=device.removable,
        images=tuple(Image(image.filename, image.format) for image in device.images),
        refused=device.refused,
    )


def _device_name(device: BlockDevice) -> str:
    """This is what ``-device id=`` called it; empty for a device without an id."""
    folder, _, rest = device.qdev.removeprefix("/machine/").partition("/")
    return rest.partition("/")[0] if folder == "peripheral" else ""


def _chosen(devices: Sequence[BlockDevice], wanted: str | None) -> BlockDevice:
    """This is the disk that is meant.

    Raises:
        UsageError: there is none, or it is not clear which one is meant.
    """
    names = {
        id(device): {_row(device).id, device.backend, device.qdev, device.node} - {""}
        for device in devices
    }
    if wanted is None:
        found = [device for device in devices if not device.refused]
        # Where all are refused the refusal of the only one says why.
        found = found or list(devices[:2])
    else:
        found = [device for device in devices if wanted in names[id(device)]]
    if len(found) == 1:
        return found[0]
    choices = ", ".join(_row(device).id for device in devices) or "none"
    if found:
        raise UsageError(f"which disk? This machine has {choices}")
    what = "the machine has no disk" if wanted is None else f"there is no disk {wanted!r}"
    raise UsageError(f"{what}; there are: {choices}")
