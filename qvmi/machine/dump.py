"""Writing a guest's memory to a file while the guest stands still: whole, or not at all."""

import asyncio
import os
import threading
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qvmi.errors import UsageError
from qvmi.machine.holding.pause import Pause, RunControl
from qvmi.machine.new_file import NewFile
from qvmi.memory.elf_core import CoreNotes, core_notes, write_core
from qvmi.memory.physical import PhysicalMemory
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor
from qvmi.view import Provenance, Taken

__all__ = ["Dump", "DumpFile"]

_SPARE: Final = 1 << 20
"""Bytes that must be left on the disk: the head of the file, and what the guest touches meanwhile."""


@dataclass(frozen=True, slots=True)
class Dump:
    """This is a dump that was written.

    Args:
        path: of the file.
        size: of the file in bytes, as far as it reaches.
        data_size: bytes of memory in it; the rest is holes, which read as zeros.
        provenance: when it was taken, and for how long the guest stood still for it.
    """

    path: Path
    size: int
    data_size: int
    provenance: Provenance


class DumpFile:
    """This writes one dump, beside the file first, which it replaces when all is written.

    Args:
        path: of the file.
        memory: of the guest.

    Raises:
        UsageError: the file cannot be written, or the disk has not room for it.
    """

    def __init__(self, path: Path, memory: PhysicalMemory) -> None:
        self._path = path
        self._memory = memory
        needed = sum(data.size for data in memory.data_ranges()) + _SPARE
        self._file = NewFile(path)
        try:
            self._require_room(needed)
        except BaseException:
            self.close()
            raise

    async def take(
        self, monitor: Monitor, run_control: RunControl, vmcoreinfo: bytes, *, live: bool
    ) -> Dump:
        """This takes the dump.

        Args:
            monitor: tells the registers.
            run_control: stops the guest for it.
            vmcoreinfo: the kernel's note for crash dumps; empty where it is not known.
            live: whether the guest runs meanwhile; then the dump is a mixture of many moments.

        Raises:
            UsageError: the file cannot be written.
            PauseError: the guest cannot be stopped safely.
            MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
        """
        at = time.time()
        async with AsyncExitStack() as stack:
            pause = None if live else await stack.enter_async_context(run_control.paused())
            vcpus = await commands.registers(monitor)
            written = await self._written(core_notes(vcpus, vmcoreinfo))
        # Nothing is awaited behind this: a dump that was cancelled has not replaced anything.
        size = self._file.put_in_place()
        return Dump(self._path, size, written, _provenance(pause, at))

    def close(self) -> None:
        """This removes what is not whole."""
        self._file.close()

    def _require_room(self, needed: int) -> None:
        with self._file.writing():
            room = os.statvfs(self._path.parent)
        free = room.f_bavail * room.f_frsize
        if free < needed:
            raise UsageError(
                f"{self._path}: the dump needs {needed >> 20} MiB,"
                f" the disk has {free >> 20} MiB left"
            )

    async def _written(self, notes: CoreNotes) -> int:
        """This writes in a thread, which has ended when this returns, be it by a cancel."""
        wanted = threading.Event()
        wanted.set()
        descriptor = self._file.descriptor
        writing = asyncio.ensure_future(
            asyncio.to_thread(write_core, descriptor, self._memory, notes, wanted.is_set)
        )
        try:
            with self._file.writing():
                return await asyncio.shield(writing)
        except asyncio.CancelledError:
            wanted.clear()
            await asyncio.wait([writing])
            raise


def _provenance(pause: Pause | None, at: float) -> Provenance:
    if pause is None:
        return Provenance(Taken.LIVE, at)
    return Provenance(Taken.CAPTURED, pause.at, pause.lasted_s)
