"""Changing a guest: memory and registers, where the policy grants it, never while the guest runs.

Bytes go by way of QEMU's gdbstub, as guest physical memory: QEMU then forgets the code it has translated
from them and marks the pages for a migration under way, which a write to the file behind the RAM would
not do. What is written is read back the same way.

References: QEMU ``gdbstub.c`` (``target_memory_rw_debug``) and ``softmmu/physmem.c``
(``invalidate_and_set_dirty``), 7.2.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, Va
from qvmi.arch.paging import Permissions
from qvmi.errors import NotWritable, UsageError, WalkFailed
from qvmi.gdbstub.client import GdbClient
from qvmi.machine.completion import to_the_end
from qvmi.machine.holding.change import Piece, change_memory, change_registers
from qvmi.machine.holding.pause import RunControl
from qvmi.machine.holding.stub_loan import StubLoan
from qvmi.memory.memory_map import MemoryMap
from qvmi.policy import ADDRESSES, AddressRange, Grant, Space
from qvmi.qmp import commands
from qvmi.qmp.monitor import Monitor
from qvmi.semantics.guest_os import Process
from qvmi.semantics.linux.guest import LinuxGuest

__all__ = ["MAX_WRITE", "MemoryWrite", "RegisterWrite", "Writing"]

MAX_WRITE: Final = 64 << 10
"""Bytes of one write: the guest stands still for it, and its old and new bytes are one line of the log."""
_MAX_REGISTERS: Final = 64
"""Registers of one write; a vCPU has some 40 that can be written."""


@dataclass(frozen=True, slots=True)
class MemoryWrite:
    """This is a change of the guest's memory that was made and read back.

    Args:
        address: of the first byte, as it was asked for.
        kind: ``physical`` or ``virtual``.
        old: the bytes that were there.
        new: the bytes that are there now.
        pause_s: how long qvmi has let the guest stand still, in seconds; within a longer pause, so far.
    """

    address: Pa | Va
    kind: str
    old: bytes
    new: bytes
    pause_s: float


@dataclass(frozen=True, slots=True)
class RegisterWrite:
    """This is a change of a vCPU's registers that was made and read back.

    Args:
        vcpu: QEMU's number of it.
        old: the values that were there, by name.
        new: the values that are there now, by name.
        pause_s: as of `MemoryWrite`.
    """

    vcpu: int
    old: Mapping[str, int]
    new: Mapping[str, int]
    pause_s: float


class Writing:
    """This changes one machine's guest.

    Args:
        monitor: the conversation with QEMU.
        run_control: stops the guest.
        stub: lends the gdbstub within a pause.
        require: raises PolicyDenied where something may not be changed: grant, action, place.
        guest: the system that runs, which knows its address spaces; raises where it is not known.
    """

    def __init__(
        self,
        monitor: Monitor,
        run_control: RunControl,
        stub: StubLoan,
        *,
        require: Callable[[Grant, str, AddressRange | None], None],
        guest: Callable[[], LinuxGuest],
    ) -> None:
        self._monitor = monitor
        self._run_control = run_control
        self._stub = stub
        self._require_granted = require
        self._guest = guest
        self._lock = asyncio.Lock()
        self._closed = False

    async def close(self) -> None:
        """This waits for the end of the write that is under way, and refuses others."""
        async with self._lock:
            self._closed = True

    async def physical(self, pa: Pa, data: bytes) -> MemoryWrite:
        """This writes guest physical memory.

        The guest stands still from before the old bytes are read until the new ones were read back.

        Args:
            pa: of the first byte.
            data: at most `MAX_WRITE` bytes.

        Raises:
            PolicyDenied: the session has not the grant ``write``, or not there, or not so often.
            UsageError: too few or too many bytes, or QEMU starts no gdbstub.
            NotWritable: a part of the range is a device, ROM, or nothing; no byte was written.
            WriteFailed: other bytes are read back; it says which, and whether the old ones are there
                again.
            AttachError: the gdbstub is held by another debugger, or cannot be reached.
            PauseError: the guest cannot be stopped safely.
            StaleView: it was written, but somebody else has let the guest run meanwhile.
            MachineGone, QmpTimeout, GdbstubTimeout: QEMU did not answer.
        """
        what = f"write {len(data)} bytes at physical address {pa:#x}"
        self._require(what, Space.PHYSICAL, pa, data)
        return await to_the_end(
            self._memory(what, pa, "physical", partial(_one_piece, pa, bytes(data)))
        )

    async def virtual(
        self, va: Va, data: bytes, process: Process | None = None, *, even_shared: bool = False
    ) -> MemoryWrite:
        """This writes memory of the kernel, or of a process, by virtual address.

        Args:
            va: of the first byte; the range may cross pages.
            data: at most `MAX_WRITE` bytes.
            process: whose memory it is, as it was listed; None for the kernel's, of which pages that
                the kernel itself may not write are written too.
            even_shared: whether pages are written too that the process itself may not write, as
                those of its code. They may be shared with other processes, which then see the
                change, or be the kernel's page of zeros.

        Raises:
            PolicyDenied: the session has not the grant ``write``, or not there, or not so often.
            TranslationFault: a page is not mapped.
            NotWritable: a page is no RAM, or not for the process to write.
            WalkFailed: the process has ended, or has no memory.
            UnknownGuest: no system was recognised, so that its address spaces are not known.
            WriteFailed, AttachError, UsageError, StaleView, MachineGone: as `physical`.
        """
        whose = "the kernel" if process is None else f"process {process.pid}"
        what = f"write {len(data)} bytes at virtual address {va:#x} of {whose}"
        self._require(what, Space.VIRTUAL, va, data)
        return await to_the_end(
            self._memory(
                what,
                va,
                "virtual",
                partial(self._pieces, va, bytes(data), process, even_shared=even_shared),
            )
        )

    async def registers(self, vcpu: int, values: Mapping[str, int]) -> RegisterWrite:
        """This writes registers of one vCPU.

        Args:
            vcpu: QEMU's number of it.
            values: by name, as in `Registers` or in gdb.

        Raises:
            PolicyDenied: the session has not the grant ``write``, or not there, or not so often.
            UsageError: there is no such vCPU or register, or a value does not fit it.
            WriteFailed: the vCPU keeps another value; the old ones are there again, if it says so.
            AttachError, PauseError, StaleView, MachineGone: as `physical`.
        """
        what = f"write {', '.join(sorted(values))} of vCPU {vcpu}"
        self._require_granted(Grant.WRITE, what, None)
        if not 0 < len(values) <= _MAX_REGISTERS:
            raise UsageError(f"{len(values)} registers to write; 1 to {_MAX_REGISTERS} at once")
        return await to_the_end(self._registers(what, vcpu, dict(values)))

    def _require(self, what: str, space: Space, address: int, data: bytes) -> None:
        addressed = data and 0 <= address <= ADDRESSES - len(data)  # else the write itself says it
        place = AddressRange(space, address, len(data)) if addressed else None
        self._require_granted(Grant.WRITE, what, place)
        if not 0 < len(data) <= MAX_WRITE:
            raise UsageError(f"{what}: 1 to {MAX_WRITE} bytes can be written at once")

    @asynccontextmanager
    async def _alone(self, what: str) -> AsyncIterator[None]:
        async with self._lock:
            if self._closed:
                raise UsageError(f"{what}: {self._monitor.target} was closed")
            yield

    # ----------------------------------------------------------------------------------------- memory

    async def _memory(
        self, what: str, address: Pa | Va, kind: str, cut: Callable[[], Sequence[Piece]]
    ) -> MemoryWrite:
        async with self._alone(what), self._run_control.paused() as pause:
            # A device, or the chipset's write protection, may have come since the machine was attached to.
            memory_map = await commands.memory_map(self._monitor)
            pieces = await asyncio.to_thread(cut)
            _require_ram(memory_map, pieces)

            async def change(client: GdbClient) -> bytes:
                return await change_memory(client, what, pieces)

            old = await self._stub.do(change)
        new = b"".join(piece.data for piece in pieces)
        return MemoryWrite(address, kind, old, new, pause.lasted_s)

    def _pieces(
        self, va: Va, data: bytes, process: Process | None, *, even_shared: bool
    ) -> list[Piece]:
        """This cuts a range of virtual addresses at the borders of pages, and says where those are.

        Raises:
            TranslationFault: a page is not mapped.
            NotWritable: it is mapped, but not for the process to write.
            WalkFailed: the process is gone.
        """
        guest = self._guest()
        if process is None:
            space = guest.kernel.space
        else:
            _require_alive(guest, process)
            space = guest.user_space(process)
        pieces: list[Piece] = []
        at = 0
        while at < len(data):
            here = Va(va + at)
            size = min(PAGE_SIZE - here % PAGE_SIZE, len(data) - at)
            # By the page tables alone: a page that was taken out of the kernel's image is nobody's.
            found = space.walk(here)
            if process is not None and not _may_write(found.permissions, even_shared=even_shared):
                why = (
                    f"process {process.pid} may not write there, and may share the page with others"
                    " (even_shared=True writes what is the process's to read)"
                )
                raise NotWritable(here, size, kind="virtual", why=why)
            pieces.append(Piece(found.pa, data[at : at + size]))
            at += size
        return pieces

    # -------------------------------------------------------------------------------------- registers

    async def _registers(self, what: str, vcpu: int, values: dict[str, int]) -> RegisterWrite:
        async def change(client: GdbClient) -> Mapping[str, int]:
            threads = {thread.vcpu: thread for thread in await client.registers.threads()}
            if vcpu not in threads:
                raise UsageError(
                    f"{what}: there is no such vCPU; there are 0 to {len(threads) - 1}"
                )
            return await change_registers(client, what, threads[vcpu], values)

        async with self._alone(what), self._run_control.paused() as pause:
            old = await self._stub.do(change)
        return RegisterWrite(vcpu, old, values, pause.lasted_s)


def _one_piece(pa: Pa, data: bytes) -> list[Piece]:
    return [Piece(pa, data)]


def _may_write(allowed: Permissions, *, even_shared: bool) -> bool:
    return allowed.user and (allowed.writable or even_shared)


def _require_alive(guest: LinuxGuest, process: Process) -> None:
    """This raises WalkFailed unless the process is the one that it was when it was listed."""
    known = (process.address, process.pid, process.start_time_s)
    for listing in (guest.processes, guest.process_ids):
        if any((one.address, one.pid, one.start_time_s) == known for one in listing()):
            return
    raise WalkFailed(
        "init_task.tasks", f"process {process.pid} ({process.name}) is not in it any more"
    )


def _require_ram(memory_map: MemoryMap, pieces: Sequence[Piece]) -> None:
    """This raises NotWritable where a piece is not RAM to its last byte."""
    for piece in pieces:
        end = piece.pa + len(piece.data)
        if any(ram.start <= piece.pa and end <= ram.end for ram in memory_map.ram_ranges):
            continue
        region = memory_map.region_at(piece.pa)
        there = "no memory, or a device" if region is None else f"{region.name} ({region.kind})"
        why = f"only RAM is written; there is {there}, or it ends within the range"
        raise NotWritable(piece.pa, len(piece.data), kind="physical", why=why)
