"""The memory in an ELF core file of a machine, as QEMU's ``dump-guest-memory`` and qvmi write it.

References: elf(5), the extended numbering of program headers (``PN_XNUM``) among it; QEMU
``dump/dump.c`` (``write_elf_loads``, ``get_offset_range``).
"""

import struct
from collections.abc import Iterator
from struct import Struct
from typing import Final

from qvmi.errors import NotADump
from qvmi.memory.dump_contents import DumpContents, checked_piece, without_overlaps
from qvmi.memory.input_file import InputFile
from qvmi.memory.mapped_ram import RamFile

__all__ = ["ELF_MAGIC", "core_contents"]

ELF_MAGIC: Final = b"\x7fELF"
_IDENT: Final = Struct("<4sBB10x")
_HEADER: Final = Struct("<16xHHIQQQIHHHHHH")
_PROGRAM: Final = Struct("<IIQQQQQQ")
_SECTION_INFO: Final = Struct("<44xI")
"""``Elf64_Shdr.sh_info``, which of section 0 counts the program headers where 16 bits do not."""
_NOTE: Final = Struct("<III")
_CLASS_64, _LITTLE_ENDIAN = 2, 1
_ET_CORE: Final = 4
_MACHINES: Final = frozenset({62, 183})
"""``EM_X86_64`` and ``EM_AARCH64``."""
_PT_LOAD, _PT_NOTE = 1, 4
_PN_XNUM: Final = 0xFFFF
_MAX_PROGRAMS: Final = 1 << 18
"""With ``paging=on`` QEMU writes one for each run of virtual addresses: some hundreds."""
_MAX_NOTES: Final = 4 << 20
"""Bytes; QEMU writes about 800 for each vCPU."""
_VMCOREINFO: Final = b"VMCOREINFO"


def core_contents(file: InputFile) -> DumpContents:
    """This reads the head of a core file.

    Only what the file has bytes for counts as memory: what lies behind ``p_filesz`` of a segment
    may have been left out, and is not taken for zeros.

    Raises:
        NotADump: it is another kind of ELF file, of another architecture, or damaged.
    """
    _, bits, order = file.unpack(_IDENT, 0)
    if (bits, order) != (_CLASS_64, _LITTLE_ENDIAN):
        raise file.refusal("is an ELF file, but not of 64 bits and little-endian")
    kind, machine, _, _, programs_at, sections_at, _, _, size, count, _, _, _ = file.unpack(
        _HEADER, 0
    )
    if kind != _ET_CORE:
        raise file.refusal(f"is an ELF file, but no core (e_type {kind})")
    if machine not in _MACHINES:
        raise file.refusal(
            f"is a core of another architecture than x86-64 or aarch64 (e_machine {machine})"
        )
    if size != _PROGRAM.size:
        raise file.refusal(f"has program headers of {size} bytes, not of {_PROGRAM.size}")
    if count == _PN_XNUM:
        count = file.unpack(_SECTION_INFO, sections_at)[0]
    if count > _MAX_PROGRAMS:
        raise file.refusal(f"has {count} program headers, more than {_MAX_PROGRAMS}")
    programs = file.read(programs_at, count * _PROGRAM.size)
    pieces = without_overlaps(file, _pieces(file, programs))
    return DumpContents("ELF core", pieces, tuple(_notes(file, programs)))


def _pieces(file: InputFile, programs: bytes) -> Iterator[RamFile]:
    for kind, _, offset, _, pa, size, _, _ in _PROGRAM.iter_unpack(programs):
        if kind == _PT_LOAD and size:
            yield checked_piece(file, pa, size, offset)


def _notes(file: InputFile, programs: bytes) -> Iterator[bytes]:
    """This iterates the VMCOREINFO notes; they help, so what is wrong with them is no error."""
    for kind, _, offset, _, _, size, _, _ in _PROGRAM.iter_unpack(programs):
        if kind == _PT_NOTE:
            try:
                data = file.read(offset, min(size, _MAX_NOTES))
                yield from (text for owner, text in _owned(data) if owner == _VMCOREINFO)
            except (NotADump, struct.error):
                return


def _owned(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """This iterates (owner, what it says) of notes."""
    here = 0
    while here < len(data):
        owner_size, size, _ = _NOTE.unpack_from(data, here)
        owner_at = here + _NOTE.size
        text_at = owner_at + owner_size + -owner_size % 4
        yield data[owner_at : owner_at + owner_size].rstrip(b"\0"), data[text_at : text_at + size]
        here = text_at + size + -size % 4
