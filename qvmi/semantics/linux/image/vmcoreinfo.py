"""VMCOREINFO, the note that a kernel keeps for crash dumps, found in RAM.

References: Linux Documentation/admin-guide/kdump/vmcoreinfo.rst and kernel/vmcore_info.c
(``append_elf_note``, ``VMCOREINFO_SYMBOL``, ``VMCOREINFO_NUMBER``); elf(5), notes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from struct import Struct
from typing import Final

from qvmi.addr import Pa, PaRange, Va
from qvmi.errors import MemoryFault
from qvmi.memory.physical import PhysicalMemory

__all__ = ["VmcoreInfo", "find_vmcoreinfo", "parse_vmcoreinfo"]

_PATTERN: Final = b"VMCOREINFO\0\0OSRELEASE="
_NOTE_HEADER: Final = Struct("<III")
_NOTE_NAME_SIZE: Final = 11
_MAX_NOTE: Final = 16 << 10
"""``VMCOREINFO_BYTES`` is one page; some kernels use more."""
_MAX_NOTES: Final = 4096
"""A kernel has one note and perhaps a stale copy or two; any program in the guest can fake more."""
_CHUNK: Final = 16 << 20
"""Bytes copied at once where RAM is not mapped."""
_BUILD_ID: Final = re.compile(r"(?:[0-9a-f]{2}){8,32}")


@dataclass(frozen=True, slots=True)
class VmcoreInfo:
    """This is the note's text.

    Args:
        pa: where the text lies, None where that is not known.
        values: ``KEY=VALUE`` lines, such as ``SYMBOL(init_uts_ns)``.
    """

    pa: Pa | None
    values: Mapping[str, str]

    def symbol(self, name: str) -> Va | None:
        """This is the address of ``SYMBOL(name)``, KASLR included; None where it is missing."""
        value = self._number(f"SYMBOL({name})", 16)
        return None if value is None else Va(value)

    def number(self, name: str) -> int | None:
        """This is ``NUMBER(name)``; None where it is missing."""
        return self._number(f"NUMBER({name})", 0)

    @property
    def kaslr_offset(self) -> int | None:
        """This is ``KERNELOFFSET``; None where it is missing."""
        return self._number("KERNELOFFSET", 16)

    @property
    def build_id(self) -> str:
        """This is ``BUILD-ID`` in hexadecimal, empty before Linux 5.9 or where it is no such id."""
        value = self.values.get("BUILD-ID", "")
        return value if _BUILD_ID.fullmatch(value) else ""

    def _number(self, key: str, base: int) -> int | None:
        try:
            number = int(self.values[key], base)
        except (KeyError, ValueError):
            return None
        return number if -1 << 63 <= number < 1 << 64 else None


def parse_vmcoreinfo(text: bytes, pa: Pa | None = None) -> VmcoreInfo:
    """This parses the note's text, up to its first NUL."""
    lines = text[:_MAX_NOTE].partition(b"\0")[0].decode("ascii", "backslashreplace").split("\n")
    pairs = (line.partition("=") for line in lines)
    return VmcoreInfo(pa, {key: value for key, equals, value in pairs if equals})


def find_vmcoreinfo(memory: PhysicalMemory) -> Iterator[VmcoreInfo]:
    """This searches the guest's RAM for the note; there may be stale copies, and forgeries.

    Memory that the guest never touched is skipped, so the cost goes with what it uses.

    Raises:
        MemoryFault: the memory was closed meanwhile.
    """
    names = (pa for data in memory.data_ranges() for pa in _occurrences(memory, data))
    for pa in islice(names, _MAX_NOTES):
        header = Pa(pa - _NOTE_HEADER.size)
        text = Pa(pa + _NOTE_NAME_SIZE + 1)
        try:
            name_size, size, _ = _NOTE_HEADER.unpack(memory.read(header, _NOTE_HEADER.size))
            if name_size == _NOTE_NAME_SIZE and 0 < size <= _MAX_NOTE:
                yield parse_vmcoreinfo(memory.read(text, size), text)
        except MemoryFault:
            continue


def _occurrences(memory: PhysicalMemory, data: PaRange) -> Iterator[Pa]:
    """This iterates where the note's name and first key stand in a range."""
    if not memory.windows:
        yield from _occurrences_by_copy(memory, data)
    for window in memory.windows:
        start, end = max(data.start, window.start), min(data.end, window.end)
        to_index = window.offset - window.start
        here: int = start
        while here < end:
            try:
                at = window.buffer.find(_PATTERN, here + to_index, end + to_index)
            except ValueError as error:
                raise MemoryFault(here, len(_PATTERN), why=str(error)) from error
            if at < 0:
                break
            yield Pa(at - to_index)
            here = at - to_index + 1


def _occurrences_by_copy(memory: PhysicalMemory, data: PaRange) -> Iterator[Pa]:
    """This is the same where RAM is not mapped; a part that cannot be read is passed over."""
    for start in range(data.start, data.end, _CHUNK):
        size = min(data.end - start, _CHUNK + len(_PATTERN) - 1)
        try:
            chunk = memory.read(Pa(start), size)
        except MemoryFault:
            continue
        at = chunk.find(_PATTERN)
        while at >= 0:
            yield Pa(start + at)
            at = chunk.find(_PATTERN, at + 1)
