"""BTF, the kernel's own type information in memory: single types without decoding the others.

References: Linux Documentation/bpf/btf.rst and include/uapi/linux/btf.h; split BTF:
Linux kernel/bpf/btf.c (``btf_parse_module``): ids and string offsets go on behind the base's.
"""

import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from struct import Struct
from typing import Final, NamedTuple

from qvmi.errors import CorruptTable
from qvmi.symbols.btf_strings import BtfStrings
from qvmi.symbols.btf_table import BtfTable

__all__ = ["BTF_MAGIC", "Btf", "BtfKind", "BtfMember", "BtfType", "btf_size"]

BTF_MAGIC: Final = b"\x9f\xeb\x01"
"""The first bytes of little-endian BTF of version 1."""

MAX_BTF_SIZE: Final = 32 << 20
"""A distribution's kernel has 3 to 6 MiB: bounds what a lying guest costs."""

MAX_TYPES: Final = 1_000_000
"""A distribution's kernel has 80,000 to 120,000; the smallest records would fill 12 MiB."""

_MAX_DEPTH: Final = 32
"""Typedefs and qualifiers chain a few links long; a longer chain is a loop."""

_MAX_CANDIDATES: Final = 1 << 20
"""A number that is a name's offset stands in the types a few thousand times for other reasons."""

_HEADER: Final = Struct("<HBBIIIII")
_TYPE: Final = Struct("<III")
_MEMBER: Final = Struct("<III")
_NAME: Final = Struct("<I")
_TYPE_WORDS: Final = 3


class BtfKind(IntEnum):
    """This is the kind of a type, ``BTF_KIND_*``."""

    VOID = 0
    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


_EXTRA_WORDS: Final = {
    # kind: 32-bit words behind the common three: (always, for each of vlen)
    BtfKind.INT: (1, 0),
    BtfKind.ARRAY: (3, 0),
    BtfKind.STRUCT: (0, 3),
    BtfKind.UNION: (0, 3),
    BtfKind.ENUM: (0, 2),
    BtfKind.FUNC_PROTO: (0, 2),
    BtfKind.VAR: (1, 0),
    BtfKind.DATASEC: (0, 3),
    BtfKind.DECL_TAG: (1, 0),
    BtfKind.ENUM64: (0, 3),
}
_FIXED_WORDS: Final = tuple(
    _TYPE_WORDS + _EXTRA_WORDS[BtfKind(kind)][0] if kind in _EXTRA_WORDS else _TYPE_WORDS
    for kind in BtfKind
)
_WORDS_EACH: Final = tuple(
    _EXTRA_WORDS[BtfKind(kind)][1] if kind in _EXTRA_WORDS else 0 for kind in BtfKind
)

TRANSPARENT: Final = frozenset(
    {BtfKind.TYPEDEF, BtfKind.VOLATILE, BtfKind.CONST, BtfKind.RESTRICT, BtfKind.TYPE_TAG}
)
"""Kinds that only point at another type."""

_COMPOUND: Final = (BtfKind.STRUCT, BtfKind.UNION)
_ENUMS: Final = (BtfKind.ENUM, BtfKind.ENUM64)


class BtfType(NamedTuple):
    """This is one type record.

    Args:
        kind: what it is.
        name: empty for anonymous ones.
        size_or_type: bytes of a struct, union, enum, int or float; else the id of another type.
        vlen: number of members, enumerators or parameters.
        kind_flag: bit 31 of ``info``; of a struct: members carry bit-field sizes.
        offset: of what follows the common three words, in the type section.
    """

    kind: BtfKind
    name: str
    size_or_type: int
    vlen: int
    kind_flag: bool
    offset: int


class BtfMember(NamedTuple):
    """This is one member of a struct or union.

    Args:
        name: empty for anonymous structs and unions.
        type_id: of its type.
        bit_offset: from the start of the struct, in bits.
        bit_size: width of a bit-field in bits; 0 for other members.
    """

    name: str
    type_id: int
    bit_offset: int
    bit_size: int


@dataclass(frozen=True, slots=True)
class _Sections:
    """These are the bounds of the two sections, checked against the data."""

    types: int
    types_end: int
    strings: int
    strings_end: int

    @property
    def size(self) -> int:
        """This is where the later of them ends."""
        return max(self.types_end, self.strings_end)


def btf_size(header: bytes) -> int:
    """This is the size of a whole BTF, told by its first 24 bytes.

    Raises:
        CorruptTable: these bytes are no BTF header.
    """
    return _sections(header).size


class Btf:
    """This reads types out of one BTF.

    Args:
        data: the whole BTF, header included.
        base: the kernel's own BTF when this is a module's split BTF.

    Raises:
        CorruptTable: the header contradicts the data.
    """

    def __init__(self, data: bytes, base: "Btf | None" = None) -> None:
        sections = _sections(data)
        if sections.size > len(data):
            raise CorruptTable("BTF", f"needs {sections.size} bytes, there are {len(data)}")
        self.base = base
        self._header = data[: _HEADER.size]
        self._sections = sections
        self._types = data[sections.types : sections.types_end]
        names = data[sections.strings : sections.strings_end]
        self.strings: BtfStrings = BtfStrings(names, None if base is None else base.strings)
        self._first_id = 1 if base is None else len(base)
        self._first_string = 0 if base is None else base.strings.size

    def __len__(self) -> int:
        """This is the number of type ids, void and those of the base included."""
        return self._first_id + len(self._offsets)

    def own_ids(self) -> range:
        """These are the type ids that this BTF itself defines."""
        return range(self._first_id, len(self))

    def string(self, offset: int) -> str:
        """This is the name at an offset.

        Raises:
            CorruptTable: there is none, or it is too long for one.
        """
        return self.strings.at(offset)

    def type(self, type_id: int) -> BtfType:
        """This is the type with an id.

        Raises:
            CorruptTable: there is no such id.
        """
        if type_id == 0:
            return BtfType(BtfKind.VOID, "void", 0, 0, kind_flag=False, offset=0)
        if self.base is not None and type_id < self._first_id:
            return self.base.type(type_id)
        try:
            return self._record(self._offsets[type_id - self._first_id])
        except IndexError as error:
            raise CorruptTable("BTF", f"no type with the id {type_id}") from error

    def resolved(self, type_id: int) -> int:
        """This is the id behind all typedefs and qualifiers.

        Raises:
            CorruptTable: they form a loop.
        """
        behind = type_id
        for _ in range(_MAX_DEPTH):
            found = self.type(behind)
            if found.kind not in TRANSPARENT:
                return behind
            behind = found.size_or_type
        raise CorruptTable("BTF", f"type {type_id} is defined by itself")

    def owner(self, type_id: int) -> "Btf":
        """This is the BTF, this one or its base, whose bytes define a type id."""
        if self.base is not None and type_id < self._first_id:
            return self.base
        return self

    def words(self, record: BtfType, count: int) -> tuple[int, ...]:
        """These are 32-bit words that follow the common part of one of this BTF's own records."""
        try:
            return Struct(f"<{count}I").unpack_from(self._types, record.offset)
        except struct.error as error:
            raise CorruptTable("BTF", f"{record.name}: cut off") from error

    def members(self, record: BtfType) -> Iterator[BtfMember]:
        """This iterates the members of one of this BTF's own structs or unions.

        Raises:
            CorruptTable: the record is cut off or names no string.
        """
        end = record.offset + record.vlen * _MEMBER.size
        if end > len(self._types):
            raise CorruptTable("BTF", f"{record.name}: {record.vlen} members are cut off")
        members = _MEMBER.iter_unpack(memoryview(self._types)[record.offset : end])
        for name, type_id, place in members:
            if record.kind_flag:
                yield BtfMember(self.string(name), type_id, place & 0xFFFFFF, place >> 24)
            else:
                yield BtfMember(self.string(name), type_id, place, 0)

    def enumerators(self, record: BtfType) -> Iterator[tuple[str, int]]:
        """This iterates names and values of one of this BTF's own enumerations.

        Raises:
            CorruptTable: the record is cut off or names no string.
        """
        each = _WORDS_EACH[record.kind]
        words = self.words(record, each * record.vlen)
        for at in range(0, len(words), each):
            value = words[at + 1] | (words[at + 2] << 32 if record.kind is BtfKind.ENUM64 else 0)
            sign = 1 << (32 * (each - 1) - 1) if record.kind_flag else 0
            yield self.string(words[at]), value - 2 * (value & sign)

    def witness(self, record: BtfType, member: str | None = None) -> Iterator[tuple[int, bytes]]:
        """These are the bytes that say what one of this BTF's own compounds or enumerations is.

        Args:
            record: the struct, union or enumeration.
            member: one of its own members; None for the struct's size alone.

        Returns:
            Pairs of an offset in the BTF and the bytes there.
        """
        each = 4 * _WORDS_EACH[record.kind]
        begin, end = record.offset - _TYPE.size, record.offset + record.vlen * each
        yield 0, self._header
        yield self._sections.types + begin, self._types[begin:end]
        names = [_NAME.unpack_from(self._types, begin)[0]]
        for at in range(record.offset, end, each):
            (name,) = _NAME.unpack_from(self._types, at)
            if member is not None and self.string(name) == member:
                names.append(name)
                break
        for name in names:
            text = self.strings.bytes_at(name)
            yield self._sections.strings + name - self._first_string - 1, text

    def table(self) -> BtfTable:
        """This is all of this BTF's own types at once, for those who need them all.

        Raises:
            CorruptTable: a record is unknown or cut off.
        """
        return BtfTable(self._types, self._offsets)

    def find_compound(self, name: str) -> BtfType | None:
        """This finds a struct or union with members that this BTF itself defines, by its name.

        It searches for the name's bytes and decodes nothing else, which makes a first answer
        possible in about a millisecond.

        Raises:
            CorruptTable: the types hold the name's offset over and over, and no such type.
        """
        return self._find(name, self._looks_compound)

    def find_enum(self, name: str) -> BtfType | None:
        """This finds an enumeration that this BTF itself defines, by its name.

        Raises:
            CorruptTable: as :meth:`find_compound`.
        """
        return self._find(name, self._looks_enum)

    def _find(self, name: str, looks_right: Callable[[int], bool]) -> BtfType | None:
        name_offset = self.strings.offset_of(name)
        if not name_offset:  # anonymous ones are many
            return None
        wanted = _NAME.pack(name_offset)
        at = self._types.find(wanted)
        for _ in range(_MAX_CANDIDATES):
            if at < 0:
                return None
            if at % 4 == 0 and looks_right(at):
                return self._record(at)
            at = self._types.find(wanted, at + 1)
        raise CorruptTable("BTF", f"{name!r} occurs more than {_MAX_CANDIDATES} times")

    def _looks_enum(self, at: int) -> bool:
        """This tells whether an enumeration with names begins at an offset."""
        try:
            _, info, size = _TYPE.unpack_from(self._types, at)
            kind, vlen = info >> 24 & 0x1F, info & 0xFFFF
            if kind not in _ENUMS or not vlen or size not in {1, 2, 4, 8}:
                return False
            first, each = at + _TYPE.size, 4 * _WORDS_EACH[kind]
            return all(
                self.strings.begins_at(_NAME.unpack_from(self._types, place)[0])
                for place in (first, first + (vlen - 1) * each)
            )
        except struct.error:
            return False

    def _looks_compound(self, at: int) -> bool:
        """This tells whether a struct or union with sane members begins at an offset."""
        try:
            _, info, size = _TYPE.unpack_from(self._types, at)
            vlen = info & 0xFFFF
            if info >> 24 & 0x1F not in _COMPOUND or not vlen:
                return False
            first, last = at + _TYPE.size, at + _TYPE.size + (vlen - 1) * _MEMBER.size
            return all(
                self.strings.begins_at(name)
                and (place & 0xFFFFFF if info >> 31 else place) <= 8 * size
                for name, _, place in (
                    _MEMBER.unpack_from(self._types, first),
                    _MEMBER.unpack_from(self._types, last),
                )
            )
        except struct.error:
            return False

    def _record(self, at: int) -> BtfType:
        try:
            name, info, size = _TYPE.unpack_from(self._types, at)
            kind = BtfKind(info >> 24 & 0x1F)
        except (struct.error, ValueError) as error:
            raise CorruptTable("BTF", f"no type at offset {at}") from error
        text = self.string(name) if name else ""
        return BtfType(kind, text, size, info & 0xFFFF, bool(info >> 31), at + _TYPE.size)

    @cached_property
    def _offsets(self) -> "array[int]":
        """The offset of every record by id, found by stepping through all of them once."""
        words = array("I", self._types[: len(self._types) & ~3])
        offsets = array("I")
        at, end = 0, len(words)
        try:
            while at < end and len(offsets) < MAX_TYPES:
                offsets.append(4 * at)
                info = words[at + 1]
                kind = info >> 24 & 0x1F
                at += _FIXED_WORDS[kind] + _WORDS_EACH[kind] * (info & 0xFFFF)
        except IndexError as error:
            raise CorruptTable("BTF", f"unknown or cut-off type at offset {4 * at}") from error
        if at < end:
            raise CorruptTable("BTF", f"more than {MAX_TYPES} types")
        if at > end:
            raise CorruptTable("BTF", f"the last type ends {4 * (at - end)} bytes too late")
        return offsets


def _sections(data: bytes) -> _Sections:
    """This reads and checks the header."""
    if len(data) < _HEADER.size or not data.startswith(BTF_MAGIC):
        raise CorruptTable("BTF", f"no BTF header: {data[:8].hex(' ')}")
    _, _, _, header, type_off, type_len, str_off, str_len = _HEADER.unpack_from(data)
    types, strings = header + type_off, header + str_off
    sections = _Sections(types, types + type_len, strings, strings + str_len)
    if header < _HEADER.size or sections.size > MAX_BTF_SIZE:
        raise CorruptTable("BTF", f"impossible header: {data[: _HEADER.size].hex(' ')}")
    return sections
