"""An ELF file that has names and addresses and nothing else, as gdb reads a program's.

References: elf(5); System V Application Binary Interface, chapter 4, "Symbol Table": local symbols come
first, and ``sh_info`` counts them. GDB ``elfread.c`` (``elf_symtab_read``): whether a symbol is code is
told by its section; ``jit.c``, ``solib-svr4.c`` and ``symfile.c``: what gdb does about certain names.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import accumulate, pairwise
from struct import Struct
from typing import Final, NamedTuple

import msgspec

from qvmi.addr import Va
from qvmi.errors import CorruptTable

__all__ = ["ElfMachine", "ElfRange", "ElfSymbol", "harmless_name", "symbols_elf"]


class ElfMachine(IntEnum):
    """This is a processor, as ELF numbers it."""

    X86_64 = 62
    AARCH64 = 183


class ElfRange(NamedTuple):
    """This is a run of addresses with names in it, [start, end); it becomes a section.

    Args:
        name: of the section.
        start: its first address.
        end: the first address behind it.
        is_code: whether instructions are there.
    """

    name: str
    start: Va
    end: Va
    is_code: bool


class ElfSymbol(msgspec.Struct, frozen=True, gc=False):
    """This is one name.

    Args:
        address: of its first byte.
        name: as the guest says it.
        is_global: whether other files of the program may use it.
    """

    address: Va
    name: str
    is_global: bool


_MAX_NAMES: Final = 256 << 20
"""Bytes of all names together; a kernel with all its modules has 10 MiB of them."""
_MAX_RANGES: Final = 1 << 15
"""Sections have numbers below 0xff00; 300 modules have 2,100 parts."""

_HEADER: Final = Struct("<16sHHIQQQIHHHHHH")
_SECTION: Final = Struct("<IIQQQQIIQQ")
_SYMBOL: Final = Struct("<IBBHQQ")
_IDENT: Final = b"\x7fELF\x02\x01\x01"  # 64-bit, little-endian, version 1
_ET_EXEC: Final = 2
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOBITS = 1, 2, 3, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_STT_OBJECT, _STT_FUNC = 1, 2
_STB_GLOBAL: Final = 1 << 4
_PART_NAMES: Final = (".symtab", ".strtab", ".eh_frame", ".shstrtab")
_STRINGS: Final = (_SHT_STRTAB, 0, 0)  # kind, link and info, as of all parts
_CODE_FACTS: Final = (_SHT_PROGBITS, 0, 0)

_STRANGE: Final = re.compile(r"[^A-Za-z0-9_.$@]")
"""No kernel has these in a name; in a terminal, or a command made of a name, they might do something."""
_MEANT_FOR_GDB: Final = re.compile(
    r"__jit_debug_|_r_debug|_dl_|_ovly|nptl_version|_?(?:sig)?longjmp"
)
"""Names that make gdb read object files and names of files out of the memory of what it debugs."""
_OF_GUEST: Final = "guest_"


def harmless_name(name: str) -> str:
    """This is a name that means nothing to gdb or a terminal; that of an honest kernel is unchanged."""
    plain = _STRANGE.sub("_", name)
    return _OF_GUEST + plain if _MEANT_FOR_GDB.match(plain) else plain


def symbols_elf(
    ranges: Iterable[ElfRange],
    symbols: Iterable[ElfSymbol],
    *,
    machine: ElfMachine,
    callers: bytes = b"",
) -> bytes:
    """This makes the file; a symbol ends where the next begins, and those outside of all ranges go.

    Args:
        ranges: where there is something; of two that overlap the first one stays.
        symbols: in any order; several may be at one address or have one name.
        machine: the processor.
        callers: an ``.eh_frame`` section; empty for none.

    Raises:
        CorruptTable: there are more ranges, or longer names, than any kernel has.
    """
    sections = _apart(ranges)
    table, names, local_count = _symbol_table(sections, symbols)
    parts = _Parts(table, names, local_count, callers)
    return _file(sections, parts, machine=machine)


def _apart(ranges: Iterable[ElfRange]) -> list[ElfRange]:
    """These are the ranges by address, without those that lie in another."""
    found: list[ElfRange] = []
    for one in sorted(ranges, key=lambda one: one.start):
        if one.start < one.end and (not found or one.start >= found[-1].end):
            found.append(one)
    if len(found) > _MAX_RANGES:
        raise CorruptTable("symbols", f"{len(found)} parts of kernel and modules are too many")
    return found


def _symbol_table(
    sections: Sequence[ElfRange], symbols: Iterable[ElfSymbol]
) -> tuple[bytes, bytes, int]:
    """These are the entries, their names, and how many entries come before the global ones."""
    entries: tuple[list[bytes], list[bytes]] = ([_SYMBOL.pack(0, 0, 0, 0, 0, 0)], [])
    names: list[bytes] = [b"\0"]
    offset = 1
    for symbol, section, end in _placed(sections, symbols):
        name = harmless_name(symbol.name).encode() + b"\0"
        kind = _STT_FUNC if sections[section].is_code else _STT_OBJECT
        info = kind | (_STB_GLOBAL if symbol.is_global else 0)
        size = end - symbol.address
        entries[symbol.is_global].append(
            _SYMBOL.pack(offset, info, 0, section + 1, symbol.address, size)
        )
        names.append(name)
        offset += len(name)
        if offset > _MAX_NAMES:
            raise CorruptTable("symbols", f"their names have more than {_MAX_NAMES} bytes")
    return b"".join(entries[0] + entries[1]), b"".join(names), len(entries[0])


def _placed(
    sections: Sequence[ElfRange], symbols: Iterable[ElfSymbol]
) -> Iterator[tuple[ElfSymbol, int, Va]]:
    """This iterates symbols by address, each with the number of its range and its own end."""
    starts = [one.start for one in sections]
    by_address = sorted(symbols, key=lambda one: one.address)
    addresses = sorted({one.address for one in by_address})
    following = dict(pairwise(addresses))
    for symbol in by_address:
        number = bisect_right(starts, symbol.address) - 1
        if number >= 0 and symbol.address < sections[number].end:
            end = sections[number].end
            yield symbol, number, min(end, following.get(symbol.address, end))


class _Parts(NamedTuple):
    """These are the parts of the file that have bytes in it; symbols below ``local_count`` are local."""

    symbols: bytes
    names: bytes
    local_count: int
    callers: bytes


def _file(sections: Sequence[ElfRange], parts: _Parts, *, machine: ElfMachine) -> bytes:
    """This puts the parts together: header, symbols, names, callers, names of sections, their headers."""
    section_names, name_offsets = _strings(
        [*(harmless_name(one.name) for one in sections), *_PART_NAMES]
    )
    bodies = (parts.symbols, parts.names, parts.callers, section_names)
    places = [*accumulate(map(len, bodies), initial=_HEADER.size)]
    headers_at = -(-places[-1] // 8) * 8
    first = len(sections) + 1
    extras = ((_SHT_SYMTAB, first + 1, parts.local_count), _STRINGS, _CODE_FACTS, _STRINGS)
    headers = [_SECTION.pack(*[0] * 10), *map(_range_header, sections, name_offsets)]
    for name, at, body, (kind, link, info) in zip(
        name_offsets[len(sections) :], places[:-1], bodies, extras, strict=True
    ):
        entry = _SYMBOL.size if kind == _SHT_SYMTAB else 0
        headers.append(_SECTION.pack(name, kind, 0, 0, at, len(body), link, info, 8, entry))
    # No entry point: gdb would take the function that has it for the last one of each backtrace.
    header = _HEADER.pack(
        *(_IDENT, _ET_EXEC, machine, 1, 0, 0, headers_at, 0),
        *(_HEADER.size, 0, 0, _SECTION.size, len(headers), len(headers) - 1),
    )
    return b"".join([header, *bodies]).ljust(headers_at, b"\0") + b"".join(headers)


def _strings(texts: Sequence[str]) -> tuple[bytes, list[int]]:
    """This is a table of strings, and where each one is in it."""
    table, offsets = bytearray(b"\0"), []
    for text in texts:
        offsets.append(len(table))
        table += text.encode() + b"\0"
    return bytes(table), offsets


def _range_header(one: ElfRange, name: int) -> bytes:
    """This is the header of a section whose bytes are in the guest and not in the file."""
    flags = _SHF_ALLOC | (_SHF_EXECINSTR if one.is_code else _SHF_WRITE)
    size = one.end - one.start
    return _SECTION.pack(name, _SHT_NOBITS, flags, one.start, _HEADER.size, size, 0, 0, 1, 0)
