"""A program image in memory, as far as it says which symbols belong to it.

References: Microsoft, PE Format (MS-DOS stub, COFF file header, optional header PE32+, debug directory);
LLVM, include/llvm/Object/CVDebugRecord.h (``PDB70DebugInfo``: the signature ``RSDS``, GUID, age and name).
"""

from dataclasses import dataclass
from struct import Struct
from typing import Final

import msgspec

from qvmi.addr import PAGE_SIZE, Va
from qvmi.errors import MemoryFault
from qvmi.memory.address_space import AddressSpace

__all__ = ["PdbIdentity", "PeImage", "image_at"]

_DOS_MAGIC: Final = b"MZ"
_E_LFANEW: Final = Struct("<60xI")
_HEADERS: Final = Struct("<4sH18xH54xI")
"""The signature, ``Machine``, then of the optional header ``Magic`` and ``SizeOfImage``."""
_SIGNATURE: Final = b"PE\0\0"
_AMD64: Final = 0x8664
_PE32_PLUS: Final = 0x20B
_COUNT_AT: Final = 24 + 108
"""``NumberOfRvaAndSizes``, from the signature; the directories follow it."""
_DIRECTORY: Final = Struct("<II")
_DEBUG: Final = 6
_COUNT: Final = Struct("<I")
_DEBUG_ENTRY: Final = Struct("<12xIII4x")
"""``Type``, ``SizeOfData``, ``AddressOfRawData``."""
_CODE_VIEW: Final = 2
_MAX_DEBUG_ENTRIES: Final = 16
"""Kernels have four or five."""
_RSDS: Final = Struct("<4sIHH8sI")
_MAX_NAME: Final = 260
"""``MAX_PATH``; a kernel's name has no folder."""
_MAX_SIZE: Final = 256 << 20
"""No kernel is nearly so large."""


class PdbIdentity(msgspec.Struct, frozen=True):
    """This names the symbols of one build.

    Args:
        name: of the PDB, such as ``ntkrnlmp.pdb``. It is the guest's word.
        guid: 32 hexadecimal digits, as symbol servers write them.
        age: of the PDB.
    """

    name: str
    guid: str
    age: int

    def __str__(self) -> str:
        return f"{self.name} {self.guid}-{self.age}"


@dataclass(frozen=True, slots=True)
class PeImage:
    """This is an image of x86-64 code.

    Args:
        base: address of its first byte.
        size: ``SizeOfImage``, in bytes.
        pdb: its symbols; None where it names none.
    """

    base: Va
    size: int
    pdb: PdbIdentity | None


def image_at(space: AddressSpace, base: Va) -> PeImage | None:
    """This reads the headers of an image, None where there is none, or none of x86-64."""
    try:
        if space.read(base, len(_DOS_MAGIC)) != _DOS_MAGIC:
            return None
        (offset,) = _E_LFANEW.unpack(space.read(base, _E_LFANEW.size))
        if offset > PAGE_SIZE - _HEADERS.size:
            return None
        headers = _HEADERS.unpack(space.read(Va(base + offset), _HEADERS.size))
    except MemoryFault:
        return None
    signature, machine, magic, size = headers
    if (signature, machine, magic) != (_SIGNATURE, _AMD64, _PE32_PLUS):
        return None
    if not PAGE_SIZE <= size <= _MAX_SIZE:
        return None
    try:
        pdb = _pdb_of(space, base, Va(base + offset), size)
    except MemoryFault:
        pdb = None
    return PeImage(base, size, pdb)


def _pdb_of(space: AddressSpace, base: Va, headers: Va, size: int) -> PdbIdentity | None:
    """This follows the debug directory to what names the symbols; raises MemoryFault."""
    count = _COUNT.unpack(space.read(Va(headers + _COUNT_AT), _COUNT.size))[0]
    if count <= _DEBUG:
        return None
    place = headers + _COUNT_AT + _COUNT.size + _DEBUG * _DIRECTORY.size
    start, length = _DIRECTORY.unpack(space.read(Va(place), _DIRECTORY.size))
    entries = min(length // _DEBUG_ENTRY.size, _MAX_DEBUG_ENTRIES)
    if start + entries * _DEBUG_ENTRY.size > size:
        return None
    table = space.read(Va(base + start), entries * _DEBUG_ENTRY.size)
    for kind, extent, at in _DEBUG_ENTRY.iter_unpack(table):
        if kind == _CODE_VIEW and _RSDS.size < extent and at + extent <= size:
            return _code_view(space.read(Va(base + at), min(extent, _RSDS.size + _MAX_NAME)))
    return None


def _code_view(record: bytes) -> PdbIdentity | None:
    signature, first, second, third, rest, age = _RSDS.unpack_from(record)
    name, end, _ = record[_RSDS.size :].partition(b"\0")
    if signature != b"RSDS" or not end:
        return None
    guid = f"{first:08X}{second:04X}{third:04X}{rest.hex().upper()}"
    return PdbIdentity(name.decode("utf-8", "backslashreplace"), guid, age)
