"""A kernel's symbols as those of an ISF file: where they are linked, and what lies there.

References: Linux kernel/kallsyms_internal.h, kernel/panic.c (``taint_flags``),
kernel/time/timekeeping.c (``tk_core``, ``timekeeper_data``).
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qvmi.addr import Va
from qvmi.errors import MemoryFault
from qvmi.symbols.isf_schema import (
    VOID,
    Array,
    Base,
    Member,
    StructRef,
    Symbol,
    TypeRef,
    UserType,
)
from qvmi.symbols.isf_types import KernelTypes
from qvmi.symbols.kallsyms import Addressing, KallsymsTables, ReadVirtual
from qvmi.symbols.known_types import ARRAYS_TO_NEXT_SYMBOL, KNOWN_TYPES

__all__ = ["SymbolSource", "add_missing_types", "symbol_entries", "table_symbols"]

_KERNEL_HALF: Final = 1 << 63
"""What lies below is no address but an offset into per-CPU areas, which KASLR does not move."""

_MAX_ARRAY: Final = 1 << 16
"""Entries of the largest array whose end is told by the next symbol (``__per_cpu_offset``: 8192)."""

_MAX_TAINTS: Final = 64
"""The bits of a ``long``."""

_MAX_TAINT_FLAG: Final = 64
"""Bytes; it is two letters and a boolean or a pointer."""

_OTHER_NAMES: Final = {
    "Elf64_Ehdr": "elf64_hdr",
    "Elf64_Phdr": "elf64_phdr",
    "Elf64_Shdr": "elf64_shdr",
    "Elf64_Sym": "elf64_sym",
}
"""What C code calls some structs by ``typedef`` (include/uapi/linux/elf.h), and Volatility does too."""

_TK_CORE: Final = "tk_core"
_TAINT_FLAG: Final = "taint_flag"


@dataclass(frozen=True, slots=True)
class SymbolSource:
    """This is what the symbols are made of.

    Args:
        addresses: of all symbols as they are now, KASLR included.
        slide: the distance that KASLR moved the kernel, in bytes.
        banner: of ``linux_banner``, without the newline and NUL.
        read: reads the kernel's virtual memory.
    """

    addresses: Mapping[str, Va]
    slide: int
    banner: bytes
    read: ReadVirtual


def table_symbols(tables: KallsymsTables, read: ReadVirtual) -> dict[str, Va]:
    """These are the symbols of kallsyms' own tables, which it does not list itself."""
    found = {
        "kallsyms_names": tables.names,
        "kallsyms_markers": tables.markers,
        "kallsyms_token_table": tables.token_table,
        "kallsyms_token_index": tables.token_index,
        "kallsyms_offsets": tables.offsets,
    }
    if tables.seqs_of_names:
        found["kallsyms_seqs_of_names"] = tables.seqs_of_names
    count = tables.count.to_bytes(4, "little")
    for at in (Va(tables.names - 4), Va(tables.names - 8)):
        if _holds(read, at, count):
            found["kallsyms_num_syms"] = at
            break
    if tables.addressing is not Addressing.PLACE_RELATIVE:
        base = tables.relative_base.to_bytes(8, "little")
        behind_offsets = Va(-(-(tables.offsets + 4 * tables.count) // 8) * 8)
        for at in (behind_offsets, Va((tables.names - 4) // 8 * 8 - 8)):
            if _holds(read, at, base):
                found["kallsyms_relative_base"] = at
                break
    return found


def add_missing_types(types: KernelTypes) -> None:
    """This adds what Volatility looks for and the kernel's BTF does not have."""
    user_types = types.user_types
    for other, tag in _OTHER_NAMES.items():
        if tag in user_types:
            user_types.setdefault(other, user_types[tag])
    if "tk_data" not in user_types and "timekeeper" in user_types:
        # Before 6.13 `tk_core` is of a type without a name: a sequence counter, then the timekeeper
        timekeeper = user_types["timekeeper"]
        fields = {
            "seq": Member(Base("unsigned int"), 0),
            "timekeeper": Member(StructRef("timekeeper"), 8),
        }
        user_types.setdefault(_TK_CORE, UserType(8 + timekeeper.size, fields, "struct"))
    flag = user_types.get(_TAINT_FLAG)
    if flag is not None and "module" not in flag.fields and "c_true" in flag.fields:
        # Without this member (7.x) every flag is one of modules too: read the letter as a boolean
        module = Member(Base("_Bool"), flag.fields["c_true"].offset)
        user_types[_TAINT_FLAG] = UserType(flag.size, flag.fields | {"module": module}, flag.kind)


def symbol_entries(source: SymbolSource, types: KernelTypes) -> dict[str, Symbol]:
    """This makes the entry of every symbol."""
    known = _known_types(source, types)
    slide = source.slide
    entries = {
        name: Symbol(known.get(name, VOID), at - slide if at >= _KERNEL_HALF else at)
        for name, at in source.addresses.items()
    }
    if _TK_CORE not in entries and "timekeeper_data" in entries:
        entries[_TK_CORE] = Symbol(StructRef("tk_data"), entries["timekeeper_data"].address)
    if "linux_banner" in entries:
        text = source.banner + b"\n\0"
        banner_type = Array(len(text), Base("char"))
        entries["linux_banner"] = Symbol(banner_type, entries["linux_banner"].address, text)
    return entries


def _known_types(source: SymbolSource, types: KernelTypes) -> dict[str, TypeRef]:
    """This is the type of every variable that has a known one; the kernel's word comes first."""
    known = {
        name: type_ref
        for name, type_ref in KNOWN_TYPES.items()
        if name in source.addresses and types.has(type_ref)
    }
    core = "tk_data" if "tk_data" in types.user_types else _TK_CORE
    if core in types.user_types:
        known[_TK_CORE] = StructRef(core)
    ends = sorted(source.addresses.values())
    for name, element in ARRAYS_TO_NEXT_SYMBOL.items():
        size = types.size(element)
        if name in source.addresses and size and types.has(element):
            room = _room(source.addresses[name], ends)
            known[name] = Array(min(room // size, _MAX_ARRAY), element)
    if _TAINT_FLAG in types.user_types and "taint_flags" in source.addresses:
        count = _count_taint_flags(source, types.user_types[_TAINT_FLAG], ends)
        known["taint_flags"] = Array(count, StructRef(_TAINT_FLAG))
    return known | types.variables


def _room(at: Va, ends: list[Va]) -> int:
    """This is the distance to the next symbol, 0 behind the last."""
    position = bisect_right(ends, at)
    return ends[position] - at if position < len(ends) else 0


def _count_taint_flags(source: SymbolSource, flag: UserType, ends: list[Va]) -> int:
    """This counts the entries that have a letter; what follows them is padding."""
    at = source.addresses["taint_flags"]
    if not 0 < flag.size <= _MAX_TAINT_FLAG or "c_true" not in flag.fields:
        return 0
    most = min(_room(at, ends) // flag.size, _MAX_TAINTS)
    try:
        entries = source.read(at, most * flag.size)
    except MemoryFault:
        return 0
    letters = entries[flag.fields["c_true"].offset :: flag.size]
    return len(letters.partition(b"\0")[0])


def _holds(read: ReadVirtual, at: Va, wanted: bytes) -> bool:
    try:
        return read(at, len(wanted)) == wanted
    except MemoryFault:
        return False
