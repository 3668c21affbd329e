"""Writing the memory of one process to an ELF core file, as the kernel would if the process died now."""

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec

from qvmi.addr import Va
from qvmi.arch import x86_64
from qvmi.errors import GuestError, MemoryFault
from qvmi.machine.new_file import NewFile
from qvmi.memory.elf_core import Note, general_registers
from qvmi.memory.process_core import (
    CoreThread,
    FileMapping,
    ProcessFacts,
    Segment,
    process_head,
    process_notes,
)
from qvmi.semantics.guest_os import Gap, MemoryMapping, Process, Thread
from qvmi.semantics.linux.guest import LinuxGuest
from qvmi.semantics.rows.process_memory import Held, MemoryPiece
from qvmi.view import Provenance, Taken, View

__all__ = ["ProcessDump", "dump_process", "write_process"]

Found = TypeVar("Found")

_TIMEOUT_S: Final = 3600.0
"""A process of some GiB, through the slowest way to the memory."""
_CHUNK: Final = 1 << 20
_PAGE: Final = 4096
_ROOT: Final = ~0x1FFF
"""Of CR3: without the bit that tells the two page tables of a process from each other, and the PCID."""
_MAX_HOLE: Final = 64 << 20
"""Bytes of zeros that are a hole in a segment, as in the stacks of threads. Larger ones, and what cannot be
read, are addresses that were reserved: segments without content."""
_MAX_SEGMENTS: Final = 60_000
"""An ELF header counts to 65,534."""
_MAX_GAPS: Final = 1000
_REGISTERS: Final = {"x86_64": 27, "aarch64": 34}
_IN_FILE: Final = frozenset({Held.MEMORY, Held.CACHE})


class Asked(Protocol):
    """This is what is needed of a machine, or of a dump of one."""

    async def query(self, look: Callable[[LinuxGuest], Found], *, timeout_s: float) -> Found:
        """This looks at the system that runs in it."""
        ...

    def paused(self) -> AbstractAsyncContextManager[View]:
        """This keeps it from running."""
        ...


@dataclass(frozen=True, slots=True)
class ProcessDump:
    """This is a core file of a process that was written.

    Args:
        path: of the file.
        size: of the file in bytes, as far as it reaches.
        data_size: bytes of the process's memory in it.
        absent_size: bytes that the process would have to read from files; they are not in it.
        gaps: what of its memory could not be had, and threads whose registers are not known.
        provenance: when it was taken, and for how long the guest stood still for it.
    """

    path: Path
    size: int
    data_size: int
    absent_size: int
    gaps: tuple[Gap, ...]
    provenance: Provenance


async def dump_process(
    machine: Asked, find: Callable[[LinuxGuest], Process], path: Path, *, live: bool = False
) -> ProcessDump:
    """This writes the memory of a process to an ELF core file, which gdb opens.

    Args:
        machine: a :class:`~qvmi.machine.machine.Machine`.
        find: gives the process.
        path: of the file, which replaces what was there only when it is whole.
        live: lets the guest run meanwhile; the core is then a mixture of many moments.

    Raises:
        PolicyDenied: the session has not the grant ``pause``, and the core is not live.
        UsageError: the file cannot be written.
        GuestError: there is no such process, or it has no memory of its own.
        PauseError: the guest cannot be stopped safely.
        MachineGone, QmpTimeout, QmpProtocolError: QEMU did not answer.
    """
    with NewFile(path) as file:

        def look(guest: LinuxGuest) -> ProcessDump:
            return write_process(guest, find(guest), file)

        if live:
            done = await machine.query(look, timeout_s=_TIMEOUT_S)
        else:
            async with machine.paused() as view:
                done = await machine.query(look, timeout_s=_TIMEOUT_S)
            done = replace(done, provenance=_captured(done.provenance, view.paused_s()))
        return replace(done, size=file.put_in_place())


def _captured(label: Provenance, pause_s: float) -> Provenance:
    if label.taken is Taken.DUMP:
        return label
    return msgspec.structs.replace(label, taken=Taken.CAPTURED, pause_s=pause_s)


def write_process(guest: LinuxGuest, process: Process, file: NewFile) -> ProcessDump:
    """This writes the memory of a process that is looked at now; whoever asks puts the file in place.

    Raises:
        UsageError: the file cannot be written.
        GuestError: the process is gone, or has no memory of its own.
    """
    listing = guest.process_memory(process)
    mappings = guest.mappings(process).items
    planned = _planned(listing.items, {row.start for row in mappings})
    if len(planned) > _MAX_SEGMENTS:
        raise GuestError(f"process {process.pid} has more pieces of memory than a core can have")
    writer = _Writer(guest, process, file)
    notes = writer.notes(mappings)
    machine = guest.kernel.image.architecture
    head = process_head(machine, [segment for segment, _ in planned], notes)
    file.write(0, head.data)
    file.set_size(head.size)
    for (segment, pieces), offset in zip(planned, head.offsets, strict=True):
        for piece in pieces:
            writer.copy(piece, offset - segment.start)
    absent = sum(piece.end - piece.start for piece in listing if piece.held is Held.NOWHERE)
    gaps = (*listing.gaps, *writer.gaps)
    return ProcessDump(file.path, head.size, writer.written, absent, gaps, listing.provenance)


class _Writer:
    """This is the writing of one core.

    Attributes:
        gaps: what could not be had.
        written: bytes of memory in the file so far.
    """

    def __init__(self, guest: LinuxGuest, process: Process, file: NewFile) -> None:
        self._guest = guest
        self._process = process
        self._file = file
        self._image = guest.process_image(process)
        self.gaps: list[Gap] = []
        self.written = 0

    def copy(self, piece: MemoryPiece, to_offset: int) -> None:
        """This writes a piece into the file, as far as it is there; what is not stays a hole."""
        if piece.held is Held.MISSING:
            self._lack(piece.start, piece.end, piece.reason)
        if piece.held not in _IN_FILE:
            return
        for start in range(piece.start, piece.end, _CHUNK):
            size = min(_CHUNK, piece.end - start)
            for va, data in self._bytes(piece, Va(start), size):
                self._file.write(to_offset + va, data)
                self.written += len(data)

    def notes(self, mappings: Iterable[MemoryMapping]) -> tuple[Note, ...]:
        """These are the notes about the process."""
        guest, process = self._guest, self._process
        words = [" ".join(line.arguments) for line in guest.command_lines(process)]
        facts = ProcessFacts(
            *(process.pid, process.ppid, process.uid, process.gid, process.state),
            *(text.encode("utf-8", "replace") for text in (process.name, "".join(words))),
        )
        threads = [row for row in guest.threads() if row.tgid == process.pid]
        threads.sort(key=lambda thread: thread.pid != process.pid)
        return process_notes(
            facts,
            self._with_registers(threads),
            auxv=self._image.auxiliary_vector(),
            files=list(_files(mappings)),
            registers=_REGISTERS[guest.kernel.image.architecture],
        )

    def _bytes(self, piece: MemoryPiece, va: Va, size: int) -> Iterator[tuple[Va, bytes]]:
        """These are the bytes of a range; page by page where not all of it is there any more."""
        try:
            yield va, self._image.read(piece, va, size)
        except MemoryFault as fault:
            if size <= _PAGE:
                self._lack(va, Va(va + size), str(fault))
                return
            for at in range(va, va + size, _PAGE):
                yield from self._bytes(piece, Va(at), min(_PAGE, va + size - at))

    def _with_registers(self, threads: Iterable[Thread]) -> list[CoreThread]:
        found = [(thread, self._image.registers(thread)) for thread in threads]
        unknown = [thread for thread, registers in found if registers is None]
        running = list(islice(self._vcpus_of_process(), 2))
        if len(unknown) == len(running) == 1:
            return [CoreThread(one.pid, known or running[0]) for one, known in found]
        for thread in unknown:
            why = f"the registers of thread {thread.pid} are not known"
            self.gaps.append(Gap("pt_regs", thread.address, why))
        return [CoreThread(thread.pid, known or ()) for thread, known in found]

    def _vcpus_of_process(self) -> Iterator[tuple[int, ...]]:
        """These are the registers of vCPUs that stand still in user mode, in this process."""
        if self._guest.view.provenance.taken in {Taken.LIVE, Taken.DUMP}:
            return
        root = self._image.space.root
        for vcpu in self._guest.view.vcpus:
            if isinstance(vcpu, x86_64.Registers) and vcpu.cpl and vcpu.cr3 & _ROOT == root & _ROOT:
                yield general_registers(vcpu)

    def _lack(self, start: Va, end: Va, why: str) -> None:
        if len(self.gaps) < _MAX_GAPS:
            self.gaps.append(
                Gap("page tables", start, f"{end - start} bytes: {why or 'swapped out'}")
            )


def _files(mappings: Iterable[MemoryMapping]) -> Iterator[FileMapping]:
    """These are the parts of files that are mapped, named as the kernel names them in a core."""
    for row in mappings:
        if row.device:
            name = row.name + " (deleted)" * row.deleted
            yield FileMapping(row.start, row.end, row.offset, name.encode("utf-8", "replace"))


def _planned(
    pieces: Iterable[MemoryPiece], starts: AbstractSet[Va]
) -> list[tuple[Segment, list[MemoryPiece]]]:
    """This makes segments of pieces: neighbours of one mapping that are in the file are one.

    Args:
        pieces: by address.
        starts: where mappings begin.
    """
    planned: list[tuple[Segment, list[MemoryPiece]]] = []
    for piece in pieces:
        readable = piece.held is Held.ZEROS and "r" in piece.permissions
        hole = readable and piece.end - piece.start <= _MAX_HOLE
        has_content = hole or piece.held in _IN_FILE
        if planned and has_content and piece.start not in starts:
            last, its = planned[-1]
            if last.has_content and last.end == piece.start:
                its.append(piece)
                planned[-1] = (last._replace(end=piece.end), its)
                continue
        planned.append((Segment(piece.start, piece.end, piece.permissions, has_content), [piece]))
    return planned
