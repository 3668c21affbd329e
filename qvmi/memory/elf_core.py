"""The head of an ELF core file that holds a machine's physical memory, as QEMU's own dumps do.

References: elf(5); Linux include/uapi/linux/elfcore.h and include/linux/elfcore.h (``elf_prstatus``);
QEMU ``dump/dump.c``, ``target/i386/arch_dump.c`` (``x86_64_elf_prstatus``, ``QEMUCPUState``) and
``target/arm/arch_dump.c`` (``aarch64_prstatus``).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import Final

from qvmi.addr import PAGE_SIZE, Pa, PaRange
from qvmi.arch import aarch64, x86_64
from qvmi.arch.registers import Registers
from qvmi.memory.physical import PhysicalMemory

__all__ = [
    "EM_AARCH64",
    "EM_X86_64",
    "PT_LOAD",
    "PT_NOTE",
    "CoreHead",
    "CoreNotes",
    "Note",
    "core_head",
    "core_notes",
    "elf_header",
    "general_registers",
    "program",
    "write_core",
]

_CHUNK: Final = 4 << 20
"""Bytes written at once: large enough to cost nothing, small enough to stop soon."""

_HEADER: Final = Struct("<16sHHIQQQIHHHHHH")
_PROGRAM: Final = Struct("<IIQQQQQQ")
_NOTE: Final = Struct("<III")
_IDENT: Final = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
_ET_CORE: Final = 4
EM_X86_64: Final = 62
EM_AARCH64: Final = 183
PT_LOAD, PT_NOTE = 1, 4
_NT_PRSTATUS: Final = 1

# struct elf_prstatus: 112 bytes of signal and times with the thread's id at 32, 27 registers of
# user_regs_struct, and whether floating-point registers follow.
_PRSTATUS: Final = Struct("<32xI76x27Q8x")
# The same with the 34 registers of user_pt_regs: x0 to x30, sp, pc and pstate.
_PRSTATUS_AARCH64: Final = Struct("<32xI76x34Q8x")
_GENERAL_AARCH64: Final = 31
# QEMUCPUState: version, size, 18 registers, ten segments, CR0 to CR4, and the base that SWAPGS brings.
_QEMU_REGISTERS: Final = Struct("<II18Q")
_QEMU_SEGMENT: Final = Struct("<IIIIQ")
_QEMU_CONTROL: Final = Struct("<6Q")
_QEMU_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class Note:
    """This is an ELF note.

    Args:
        owner: who says what `kind` means, such as ``CORE``.
        kind: its number.
        data: what it says.
    """

    owner: bytes
    kind: int
    data: bytes

    @property
    def encoded(self) -> bytes:
        """This is the note as it is in the file: owner and data padded to 4 bytes each."""
        owner = self.owner + b"\0"
        head = _NOTE.pack(len(owner), len(self.data), self.kind)
        return head + _padded(owner) + _padded(self.data)


@dataclass(frozen=True, slots=True)
class CoreNotes:
    """This is what a core file says besides the memory.

    Args:
        machine: the ELF number of the architecture.
        notes: about the vCPUs and the kernel.
    """

    machine: int
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class CoreHead:
    """This is the beginning of the file, and where the memory belongs behind it.

    Args:
        data: the bytes from offset 0.
        offsets: in the file, for each range of memory.
        size: of the whole file in bytes.
    """

    data: bytes
    offsets: tuple[int, ...]
    size: int


def core_head(ranges: Sequence[PaRange], notes: CoreNotes) -> CoreHead:
    """This lays a core file out: one segment for each range, all its bytes in the file."""
    encoded = b"".join(note.encoded for note in notes.notes)
    count = len(ranges) + 1
    notes_at = _HEADER.size + count * _PROGRAM.size
    here = _page_end(notes_at + len(encoded))
    programs = [program(PT_NOTE, notes_at, size=len(encoded))]
    offsets = []
    for ram in ranges:
        offsets.append(here)
        programs.append(program(PT_LOAD, here, pa=ram.start, size=ram.size))
        here = _page_end(here + ram.size)
    header = elf_header(notes.machine, count)
    return CoreHead(header + b"".join(programs) + encoded, tuple(offsets), here)


def elf_header(machine: int, programs: int) -> bytes:
    """This is the header of a core file, behind which so many program headers follow."""
    return _HEADER.pack(
        _IDENT, _ET_CORE, machine, 1, 0, _HEADER.size, 0, 0, _HEADER.size, _PROGRAM.size,
        programs, 0, 0, 0,
    )  # fmt: skip


def program(  # noqa: PLR0913 - one for each field
    kind: int,
    offset: int,
    *,
    size: int,
    room: int | None = None,
    va: int = 0,
    pa: int = 0,
    flags: int = 0,
) -> bytes:
    """This is a program header.

    Args:
        kind: ``PT_LOAD`` or ``PT_NOTE``.
        offset: of its bytes in the file.
        size: how many they are.
        room: how many bytes they are in memory; None for as many.
        va: their virtual address.
        pa: their physical address.
        flags: the rights.
    """
    in_memory = size if room is None else room
    return _PROGRAM.pack(kind, flags, offset, va, pa, size, in_memory, 0)


def core_notes(vcpus: Sequence[Registers], vmcoreinfo: bytes) -> CoreNotes:
    """These are the notes about the vCPUs, and the kernel's own for crash dumps, if it has one."""
    about_kernel = [Note(b"VMCOREINFO", 0, vmcoreinfo)] if vmcoreinfo else []
    arm = [vcpu for vcpu in vcpus if isinstance(vcpu, aarch64.Registers)]
    if arm:
        return CoreNotes(EM_AARCH64, (*map(_prstatus_note_aarch64, arm), *about_kernel))
    x86 = [vcpu for vcpu in vcpus if isinstance(vcpu, x86_64.Registers)]
    notes = (*map(_prstatus_note, x86), *map(_qemu_note, x86), *about_kernel)
    return CoreNotes(EM_X86_64, notes)


def _prstatus_note_aarch64(vcpu: aarch64.Registers) -> Note:
    """This is a vCPU's registers as a kernel's core dump has them; threads count from 1."""
    general = (*vcpu.x, *[0] * (_GENERAL_AARCH64 - len(vcpu.x)))
    data = _PRSTATUS_AARCH64.pack(vcpu.index + 1, *general, vcpu.sp, vcpu.pc, vcpu.cpsr)
    return Note(b"CORE", _NT_PRSTATUS, data)


def general_registers(vcpu: x86_64.Registers) -> tuple[int, ...]:
    """These are a vCPU's registers in the order of ``user_regs_struct``; unknown ones are 0."""
    registers = (
        *(vcpu.r15, vcpu.r14, vcpu.r13, vcpu.r12, vcpu.rbp, vcpu.rbx, vcpu.r11, vcpu.r10),
        *(vcpu.r9, vcpu.r8, vcpu.rax, vcpu.rcx, vcpu.rdx, vcpu.rsi, vcpu.rdi),
        *(vcpu.rax, vcpu.rip, vcpu.cs, vcpu.rflags, vcpu.rsp, vcpu.ss),
        *(vcpu.fs_base, vcpu.gs_base, vcpu.ds, vcpu.es, vcpu.fs, vcpu.gs),
    )
    return tuple(value or 0 for value in registers)


def _prstatus_note(vcpu: x86_64.Registers) -> Note:
    """This is a vCPU's registers as a kernel's core dump has them; threads count from 1."""
    return Note(b"CORE", _NT_PRSTATUS, _PRSTATUS.pack(vcpu.index + 1, *general_registers(vcpu)))


def _qemu_note(vcpu: x86_64.Registers) -> Note:
    """This is a vCPU's state as QEMU's dumps have it, from which ``crash`` takes CR3.

    What the monitor does not tell, limits and flags of the segments, is zero.
    """
    general = (
        *(vcpu.rax, vcpu.rbx, vcpu.rcx, vcpu.rdx, vcpu.rsi, vcpu.rdi, vcpu.rsp, vcpu.rbp),
        *(vcpu.r8, vcpu.r9, vcpu.r10, vcpu.r11, vcpu.r12, vcpu.r13, vcpu.r14, vcpu.r15),
        *(vcpu.rip, vcpu.rflags),
    )
    segments = (
        (vcpu.cs, 0, 0),
        (vcpu.ds, 0, 0),
        (vcpu.es, 0, 0),
        (vcpu.fs, 0, vcpu.fs_base or 0),
        (vcpu.gs, 0, vcpu.gs_base or 0),
        (vcpu.ss, 0, 0),
        (0, 0, 0),  # LDT
        (0, 0, 0),  # TR
        (0, vcpu.gdt_limit, vcpu.gdt_base),
        (0, vcpu.idt_limit, vcpu.idt_base),
    )
    control = (vcpu.cr0, 0, vcpu.cr2, vcpu.cr3, vcpu.cr4, vcpu.kernel_gs_base or 0)
    size = _QEMU_REGISTERS.size + len(segments) * _QEMU_SEGMENT.size + _QEMU_CONTROL.size
    return Note(
        b"QEMU",
        0,
        _QEMU_REGISTERS.pack(_QEMU_VERSION, size, *(value or 0 for value in general))
        + b"".join(
            _QEMU_SEGMENT.pack(selector, limit, 0, 0, base) for selector, limit, base in segments
        )
        + _QEMU_CONTROL.pack(*control),
    )


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _page_end(offset: int) -> int:
    return offset + -offset % PAGE_SIZE


def write_core(
    file: int, memory: PhysicalMemory, notes: CoreNotes, go_on: Callable[[], bool]
) -> int:
    """This writes a core file into an empty file; what the guest never touched becomes a hole.

    Args:
        file: descriptor to write to.
        memory: what is written.
        notes: about the vCPUs and the kernel.
        go_on: asked every few MiB; once it says no, the file is left as it is.

    Returns:
        How many bytes of memory were written.

    Raises:
        OSError: the file cannot be written.
        MemoryFault: the memory cannot be read any more.
    """
    head = core_head(memory.ranges, notes)
    os.truncate(file, head.size)
    _write(file, 0, head.data)
    written = 0
    for data in memory.data_ranges():
        for ram, offset in zip(memory.ranges, head.offsets, strict=True):
            start, end = max(data.start, ram.start), min(data.end, ram.end)
            for pa in range(start, end, _CHUNK):
                if not go_on():
                    return written
                size = min(_CHUNK, end - pa)
                _write(file, offset + pa - ram.start, _bytes_of(memory, Pa(pa), size))
                written += size
    return written


def _bytes_of(memory: PhysicalMemory, pa: Pa, size: int) -> bytes | memoryview:
    """These are the bytes at an address, without a copy where they are mapped."""
    for window in memory.windows:
        if window.start <= pa and pa + size <= window.end:
            at = pa - window.start + window.offset
            return memoryview(window.buffer)[at : at + size]
    return memory.read(pa, size)


def _write(file: int, offset: int, data: bytes | memoryview) -> None:
    """This writes all of it; the kernel may take less at a time."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written
